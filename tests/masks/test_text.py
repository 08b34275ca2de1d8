from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings

from maskattn import masks, recipes
from maskattn.masks._names import library_classes, snake_case
from maskattn.parity.attention.cases import Shape, compose
from maskattn.parity.draws import Draws
from tests.masks.definitions import Even, shaped_expressions

SHAPES = [Shape(2, 4, 4, 2, 1, 8, 8), Shape(1, 1, 1, 1, 1, 8, 8), Shape(4, 3, 5, 2, 1, 8, 8)]


def every_example():
    for shape in SHAPES:
        for name, cls in library_classes().items():
            yield from cls.examples(shape, Draws(name))
    yield from (example.mask for example in recipes.EXAMPLES.values())


def shortened(mask):
    return "int64[" in repr(mask) or "bool[" in repr(mask)


def test_every_mask_is_read_back_from_its_repr():
    read = set()
    for mask in every_example():
        if not shortened(mask):
            assert masks.parse(repr(mask)) == mask, repr(mask)
            read.add(type(mask).__name__)
    assert read >= {name for name, cls in library_classes().items() if cls.examples(SHAPES[0], Draws(0))}


@settings(deadline=None, max_examples=150)
@given(shaped_expressions())
def test_expressions_are_read_back_from_their_repr(case):
    _, mask = case
    if not shortened(mask):
        assert masks.parse(repr(mask)) == mask


@pytest.mark.parametrize("seed", range(40))
def test_compositions_of_all_patterns_are_read_back(seed):
    mask = compose(Shape(1, 3, 3, 1, 1, 8, 8), Draws(f"text {seed}"), depth=4)
    assert shortened(mask) or masks.parse(repr(mask)) == mask


def test_every_mask_is_known_by_class_name_and_in_snake_case():
    assert [snake_case(name) for name in ("PrefixLM", "SlidingWindow", "T5Mask", "Full")] == [
        "prefix_lm",
        "sliding_window",
        "t5_mask",
        "full",
    ]
    for name, cls in library_classes().items():
        for mask in cls.examples(SHAPES[0], Draws(name))[:1]:
            text = repr(mask)
            if text.startswith(f"{name}(") and not shortened(mask):
                assert masks.parse(snake_case(name) + text.removeprefix(name)) == mask


A, B, C = masks.Causal(), masks.SlidingWindow(2), masks.KeyPadding([1, 3])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("causal", A),
        (" causal ( ) ", A),
        ("causal & window(2) | padding([1, 3])", (A & B) | C),
        ("causal | window(2) & padding([1, 3])", A | (B & C)),
        ("(causal | window(2)) & padding([1, 3])", (A | B) & C),
        ("~causal & window(2)", ~A & B),
        ("~(causal & window(2))", ~(A & B)),
        ("~~~causal", ~A),
        ("~causal.at(3)", ~(A.at(3))),
        ("(~causal).at(3)", (~A).at(3)),
        ("causal.at(q_offset=-1, k_offset=[1, 2]).at(2)", A.at(-1, [1, 2]).at(2)),
        ("causal.at(int64(3))", A.at(np.array(3))),
        ("causal.with_positions([[0, 1]], [[1, 2]])", A.with_positions([[0, 1]], [[1, 2]])),
        ("window(None, none,)", masks.SlidingWindow(None, None)),
        ("window(right=1, left=2)", masks.SlidingWindow(2, 1)),
        ("padding(int32([1, 3]))", masks.KeyPadding(np.array([1, 3], np.int32))),
        ("padding(int8([]))", None),
        ("padding(int16[0])", masks.KeyPadding(np.zeros(0, np.int16))),
        ("segments(int64[0, 3])", masks.Segments(np.zeros((0, 3), np.int64))),
        ("key_mask([[True, false], [true, False]])", masks.KeyMask([[True, False], [True, False]])),
        ("dense(bool(true))", masks.Dense(np.array(True))),
        ("documents.from_sizes((3, 5))", masks.Segments.from_sizes([3, 5])),
        ("Causal.end_aligned(3, kv_len=5)", masks.Causal(2)),
        ("per_head([causal, (window(2) | causal).at(1)])", masks.PerHead([A, (B | A).at(1)])),
        ("chunked((4))", masks.Chunked(4)),
        ("recipes.mistral(3) & padding([1, 3])", recipes.mistral(3) & C),
        ("causal\n  & window(2)\n", A & B),
    ],
)
def test_the_grammar(text, expected):
    if expected is None:
        with pytest.raises(ValueError, match="cannot hold float64 entries"):
            masks.parse(text)
    else:
        assert masks.parse(text) == expected


BAD = [
    ("", 1, "expected a mask, got the end of the text"),
    ("   ", 4, "expected a mask"),
    ("causal &", 9, "expected a mask"),
    ("causal & window(255 & full)", 17, "expected a mask, got 255"),
    ("window(255", 11, 'expected "," or ")", got the end of the text'),
    ("(causal", 8, 'expected "," or ")"'),
    ("causal)", 7, 'expected "&", "|" or the end, got ")"'),
    ("causal causal", 8, 'got "causal"'),
    ("causal & causel", 10, "there is no mask 'causel'; did you mean 'causal'?"),
    ("__import__('os')", 12, "unexpected character"),
    ("__import__(os)", 1, "there is no mask '__import__'"),
    ("causal.__class__", 17, 'expected "("'),
    ("causal.__class__()", 8, "there is no method '__class__'; there are at, with_positions"),
    ("causal.at(1).__class__.at(1)", 23, 'expected "("'),
    ("padding.unflatten([1], [2])", 1, "missing a required argument: 'lengths'"),
    ("segments.examples(1, 2)", 1, "missing a required argument: 'q_ids'"),
    ("causal $", 8, "unexpected character '$'"),
    ("window(1.5)", 9, 'expected "," or ")", got "."'),
    ("window(1_000)", 9, 'expected "," or ")", got "_000"'),
    ("window(0x10)", 9, 'expected "," or ")", got "x10"'),
    ("window(f)", 8, "there is no mask 'f'"),
    ('window(f"{1}")', 9, "unexpected character"),
    ("window(*[1])", 8, "unexpected character '*'"),
    ("(x := causal)", 4, "unexpected character ':'"),
    ("lambda: causal", 7, "unexpected character ':'"),
    ("causal if full else empty", 8, 'expected "&", "|" or the end, got "if"'),
    ("per_head([x for x in full])", 13, 'expected "," or "]", got "for"'),
    ("not causal", 5, 'expected "&", "|" or the end, got "causal"'),
    ("not", 1, "there is no mask 'Not'"),
    ("causal & c\u00e1usal", 11, "unexpected character '\u00e1'"),
    ("causal # all", 8, "unexpected character '#'"),
    ("causal == full", 8, 'expected "&", "|" or the end, got "="'),
    ("window(3 - 1)", 10, 'expected "," or ")", got "-"'),
    ("window(--1)", 9, 'expected a number, got "-"'),
    ("recipes.mistral(3)(4)", 19, 'expected "&", "|" or the end, got "("'),
    ("causal[0]", 1, "expected a mask or a value"),
    ("window(2=3)", 9, 'expected "," or ")", got "="'),
    ("(causal]", 8, 'expected "," or ")", got "]"'),
    ("causal,", 7, 'expected "&", "|" or the end, got ","'),
    ("window('a')", 8, "unexpected character"),
    ("window", 1, "window(left, right=0): missing a required argument: 'left'"),
    ("full & causal(1, 2)", 8, "causal(offset=0): too many positional arguments"),
    ("full & window(1, wide=2)", 8, "unexpected keyword argument 'wide'"),
    ("full & window(-1)", 8, "left (None = unbounded) must be at least 0, got -1"),
    ("window(left=3, 4)", None, "positional argument follows keyword argument"),
    ("causal(offset=1, offset=2)", 18, "offset is given twice"),
    ("padding(int64[2000])", 9, "these data were left out when the mask was printed; to_json keeps them"),
    ("padding(int8([300]))", 9, "an entry does not fit in int8"),
    ("padding(int8([true]))", 9, "int8 cannot hold bool entries"),
    ("padding(bool([1]))", 9, "bool cannot hold int64 entries"),
    ("padding([1, [2]])", 1, "ragged"),
    ("causal(9223372036854775808)", 8, "does not fit in 64 bits"),
    ("causal(- causal)", 10, "expected a number"),
    ("causal\n& \n  foo", 3, "there is no mask 'foo'"),
    ("recipes.mistrial(3)", 9, "there is no recipe 'mistrial'; did you mean 'mistral'?"),
    ("recipes.nothing(3)", 9, "there is no recipe 'nothing'; there are bigbird, "),
    ("recipes.mistral", 16, 'expected "("'),
    ("recipes", 8, 'expected "." and the name of a recipe'),
    ("~3", 2, "expected a mask, got 3"),
    ("[causal]", 1, "expected a mask"),
    ("(" * 60 + "causal" + ")" * 60, 51, "nested more than 50 deep"),
    (" & ".join(f"causal({i})" for i in range(1100)), 13904, "more than 1000 operators"),
]


@pytest.mark.parametrize("text, column, message", BAD, ids=[text[:30] for text, _, _ in BAD])
def test_errors_point_at_the_place(text, column, message):
    with pytest.raises(ValueError) as caught:
        masks.parse(text)
    said = str(caught.value)
    first, *_, line, caret = said.split("\n")
    assert message in said and first.startswith("masks.parse: ")
    if column is None:
        return  # where Python says
    assert f"column {column}: " in first and ("line 3, " in first) == ("\n" in text)
    shown = text.split("\n")[-1]
    if len(shown) <= 100:
        assert line == f"  {shown}"
        assert caret.index("^") == len(caret) - 1 == column + 1
    else:
        assert line[caret.index("^")] == shown[column - 1] and len(line) < 120


def test_what_is_not_text_or_too_long_is_refused():
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        masks.parse(b"causal")
    with pytest.raises(ValueError, match="at most 65536 characters, got 70000"):
        masks.parse("~" * 70000)
    assert masks.parse("~" * 60000 + "causal") == A


@pytest.mark.parametrize(
    "text",
    [
        "~ " * 30000,
        "-" * 60000 + "1",
        "(" * 60000,
        "[" * 50000 + "]" * 50000,
        "(" * 30000 + ")" * 30000,
        "causal & " * 7000,
        "causal" + ".at(1)" * 9000,
        "causal" + "()" * 30000,
        "int8" + "[0]" * 20000,
        "causal(" + "9" * 60000 + ")",
        "not " * 15000 + "causal",
        "causal" + " if causal else causal" * 2900,
        "causal(" + "offset=1, " * 6000 + ")",
        "padding([" + "[1], " * 12000 + "1])",
        "\n" * 60000 + "$",
        "x" * 65000,
        "causal & \x00full",
    ],
    ids=lambda text: text[:12],
)
def test_hostile_texts_are_refused_in_little_memory(text):
    tracemalloc.start()
    with pytest.raises(ValueError, match="masks.parse: ") as caught:
        masks.parse(text[: 1 << 16])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20 and len(str(caught.value)) < 2000


def test_masks_of_others_are_named_only_where_they_are_passed():
    assert masks.parse("even(3) & causal", classes=[Even]) == Even(3) & A
    assert masks.parse(repr(Even(3)), classes=[Even]) == Even(3)
    with pytest.raises(ValueError, match="there is no mask 'even'"):
        masks.parse("even(3)")
    with pytest.raises(TypeError, match="classes must hold dataclasses derived from Mask, got 3"):
        masks.parse("causal", classes=[3])
    with pytest.raises(ValueError, match="two classes are named Causal"):
        masks.parse("causal", classes=[type("Causal", (Even,), {"__dataclass_fields__": {}})])


def test_functions_of_others_are_called_where_they_are_passed():
    names = {"mine": {"pattern": lambda width: masks.SlidingWindow(width) & A}}
    assert masks.parse("mine.pattern(3) | recipes.mistral(2)", names=names) == (
        masks.SlidingWindow(3) & A | recipes.mistral(2)
    )
    with pytest.raises(ValueError, match=r"column 6: there is no recipe 'other'; there are pattern"):
        masks.parse("mine.other(3)", names=names)
    with pytest.raises(ValueError, match="there is no mask 'mine'"):
        masks.parse("mine.pattern(3)")


def test_repr_leaves_out_large_data_and_says_so():
    mask = masks.KeyMask(np.ones((2, 17), bool))
    assert repr(mask) == "KeyMask(bool[2, 17])"
    assert repr(masks.KeyMask(np.ones((2, 16), bool))).startswith("KeyMask([[True, ")
    with pytest.raises(ValueError, match="column 9: these data were left out"):
        masks.parse(repr(mask))
