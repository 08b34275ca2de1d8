from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings

from maskattn import masks, recipes
from maskattn.masks._names import library_classes
from maskattn.parity.attention.cases import Shape, compose
from maskattn.parity.draws import Draws
from tests.frameworks import jax, jnp, torch
from tests.masks.definitions import Even, shaped_expressions

SHAPES = [Shape(2, 6, 6, 2, 1, 8, 8), Shape(1, 1, 1, 1, 1, 8, 8), Shape(4, 3, 50, 2, 1, 8, 8)]


def round_trip(mask):
    text = mask.to_json()
    read = masks.from_json(text)
    assert read == mask and read.to_json() == text
    assert masks.from_json(text.encode()) == mask


def test_every_mask_survives():
    for shape in SHAPES:
        for name, cls in library_classes().items():
            for mask in cls.examples(shape, Draws(name)):
                round_trip(mask)
    for example in recipes.EXAMPLES.values():
        round_trip(example.mask)


@settings(deadline=None, max_examples=100)
@given(shaped_expressions())
def test_expressions_survive(case):
    round_trip(case[1])


@pytest.mark.parametrize("seed", range(20))
def test_compositions_of_all_patterns_survive(seed):
    round_trip(compose(Shape(2, 9, 9, 2, 1, 8, 8), Draws(f"json {seed}"), depth=4))


def test_structures_that_no_operator_builds_survive():
    causal = masks.Causal()
    for mask in (masks.Not(masks.Not(causal)), masks.And((causal, causal)), masks.At(masks.At(causal, 1, 0), 0, 2)):
        round_trip(mask)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_data_keep_their_dtype_and_bytes(dtype):
    most = np.iinfo(dtype).max
    values = np.array([[most, 0, -1], [np.iinfo(dtype).min, 1, 2]], dtype)
    for data in (values, np.asfortranarray(values), values[:, ::-1], values.astype(values.dtype.newbyteorder(">"))):
        read = masks.from_json(masks.Segments(data).to_json())
        assert read.q_ids.dtype == dtype and read.q_ids.tobytes() == data.astype(dtype).tobytes()
    for shape in ((0, 3), (3, 0)):
        assert masks.from_json(masks.Segments(np.zeros(shape, dtype)).to_json()).q_ids.shape == shape


def test_the_format_is_the_one_that_is_documented():
    mask = masks.Causal(-1) & masks.KeyPadding(np.array([1, 258], np.int16))
    lengths = {"dtype": "int16", "shape": [2], "base64": base64.b64encode(b"\1\0\2\1").decode()}
    parts = [{"Causal": {"offset": -1}}, {"KeyPadding": {"lengths": lengths}}]
    assert json.loads(mask.to_json()) == {"maskattn": 1, "mask": {"And": {"parts": parts}}}


def test_data_of_a_framework_are_written_and_come_back_in_numpy():
    lengths = np.array([3, 1], np.int32)
    for data in (torch.tensor(lengths), jnp.asarray(lengths)):
        assert masks.from_json(masks.KeyPadding(data).to_json()) == masks.KeyPadding(lengths)
    # unsigned data become int64 in the constructor, as everywhere in NumPy
    assert masks.from_json(masks.KeyPadding(jnp.asarray([3, 1], jnp.uint8)).to_json()) == masks.KeyPadding([3, 1])
    with pytest.raises(ValueError, match="KeyPadding.lengths cannot be read here"):
        jax.jit(lambda x: len(masks.KeyPadding(x).to_json()))(lengths)


def test_masks_of_others_are_read_only_where_they_are_passed():
    text = (Even(3) & masks.Causal()).to_json()
    assert masks.from_json(text, classes=[Even]) == Even(3) & masks.Causal()
    with pytest.raises(ValueError, match=r'mask.And.parts\[0\]: there is no mask "Even"'):
        masks.from_json(text)
    impostor = dataclass(frozen=True)(type("Causal", (Even,), {}))
    with pytest.raises(ValueError, match="has the name of one of the library's masks"):
        impostor().to_json()


def test_what_json_cannot_say_is_refused():
    for value, message in ((1.5, "got float"), ("x", "got str"), (1 << 63, "must fit in 64 bits"), ((1, {}), r"\[1\]")):
        with pytest.raises(ValueError, match=rf"to_json: Even.period.*{message}"):
            Even(value).to_json()


def document(mask):
    return json.dumps({"maskattn": 1, "mask": mask})


def array(dtype="int64", shape=(2,), content=b"\0" * 16, **other):
    return {"dtype": dtype, "shape": list(shape), "base64": base64.b64encode(content).decode(), **other}


def padding(**changes):
    return document({"KeyPadding": {"lengths": array(**changes)}})


CAUSAL = {"Causal": {"offset": 0}}
AT = "mask.KeyPadding.lengths"
HOSTILE = [
    ("", "not JSON: .*line 1 column 1"),
    ("causal", "not JSON: .*column 1"),
    ('{"maskattn": 1, "mask": {"Causal": {"offset": 0}}} x', "not JSON: Extra data.*column 52"),
    (b"\xff", "not UTF-8"),
    ("[]", "the document: expected an object with maskattn, mask, got a list of 0"),
    ("{}", "the document: missing maskattn; missing mask"),
    (document(CAUSAL)[:-1] + ', "more": 1}', 'the document: unexpected "more"'),
    (document(CAUSAL).replace("1", "2"), "maskattn: expected version 1, got 2"),
    (document(CAUSAL).replace("1", "true"), "maskattn: expected version 1, got true"),
    (document(CAUSAL).replace("0", "1.0"), "expected integers only, got 1.0"),
    (document(CAUSAL).replace("0", "NaN"), "expected integers only, got NaN"),
    (document(CAUSAL).replace("0", "-Infinity"), "expected integers only, got -Infinity"),
    (document(CAUSAL).replace("0", "1e999"), "expected integers only, got 1e999"),
    (document(CAUSAL).replace("0", "9" * 5000), "expected integers of 64 bits, got 999"),
    (document(CAUSAL).replace("0", str(1 << 63)), "expected integers of 64 bits"),
    (document(CAUSAL).replace('"offset"', '"offset": 1, "offset"'), 'the key "offset" is given twice'),
    (document([]), "mask: expected a mask, .*, got a list of 0"),
    (document({**CAUSAL, "Full": {}}), "mask: expected a mask, .*, got an object with 2 keys"),
    (document({"Mask": {}}), 'mask: there is no mask "Mask"; there are And, At, '),
    (document({"os.system": {}}), 'there is no mask "os.system"'),
    (document({"x" * 10**6: {}}), "there is no mask .x{56}\\.\\.\\.; there are"),
    (document({"Causal": {}}), "mask.Causal: missing offset"),
    (document({"Causal": []}), "mask.Causal: expected an object with offset, got a list of 0"),
    (document({"Causal": {"offset": 0, "rule": 1}}), 'mask.Causal: unexpected "rule"'),
    (document({"Causal": {"offset": None}}), "mask.Causal: .*offset must be an int, got None"),
    (document({"Causal": {"offset": True}}), "mask.Causal: .*offset must be an int, got True"),
    (document({"Causal": {"offset": "0"}}), 'mask.Causal.offset: expected an integer, .* got "0"'),
    (document({"Causal": {"offset": {"a": 1}}}), "mask.Causal.offset: .* got an object with 1 keys"),
    (document({"SlidingWindow": {"left": -1, "right": 0}}), "mask.SlidingWindow: .* at least 0, got -1"),
    (document({"And": {"parts": CAUSAL}}), "mask.And.parts: expected a list of masks, got an object"),
    (document({"And": {"parts": [CAUSAL, 3]}}), r"mask.And.parts\[1\]: expected a mask, .* got 3"),
    (document({"Not": {"part": [CAUSAL]}}), "mask.Not.part: expected a mask"),
    (document({"KeyPadding": {"lengths": [1, 2]}}), f"{AT}: expected an object with dtype, shape, base64, got a list"),
    (document({"KeyPadding": {"lengths": None}}), r"mask.KeyPadding: .*\n.*lengths must be"),
    (document({"KeyPadding": {"lengths": True}}), f"{AT}: expected an object with dtype, shape, base64, got true"),
    (padding(dtype="object"), f'{AT}.dtype: expected one of bool, int8, .*, got "object"'),
    (padding(dtype="float64"), f"{AT}.dtype: expected one of"),
    (padding(dtype=["int64"]), f"{AT}.dtype: expected one of"),
    (padding(dtype="bool", content=b"\0\1"), "mask.KeyPadding: .*lengths must be an int array, got dtype bool"),
    (padding(dtype="bool", content=b"\0\2"), f"{AT}.base64: expected bytes 0 and 1"),
    (padding(shape=(3,)), rf"{AT}.base64: expected 32 characters \(24 bytes for int64\[3\]\), got 24"),
    (padding(shape=(1 << 39, 1 << 39)), f"{AT}.base64: expected .* characters"),
    (padding(shape=(-2,)), f"{AT}.shape: expected a list of up to 8 lengths"),
    (padding(shape=(True, 2)), f"{AT}.shape: expected a list"),
    (padding(shape=(1 << 60,)), f"{AT}.shape: expected a list"),
    (padding(shape=(1,) * 9), f"{AT}.shape: expected a list of up to 8 lengths, got a list of 9"),
    (padding(shape=(0, 1 << 39, 1 << 39), content=b""), f"{AT}.shape|mask.KeyPadding: "),
    (padding(shape=(1, 2)), r"mask.KeyPadding: .*lengths must have shape \[B\], got \[1, 2\]"),
    (padding(content=b"\xff" * 16), "mask.KeyPadding: .*must not be negative, got -1"),
    (padding(extra=1), f'{AT}: unexpected "extra"'),
    (padding().replace("AAAA", "AA!A"), f"{AT}.base64: expected base64"),
    (padding().replace("AAAA", "A===", 1), f"{AT}.base64: expected base64"),
    (padding(base64=3), f"{AT}.base64: expected a string, got 3"),
    ("[" * 10**6, "nested more than 100 deep, at character 100"),
    ('{"a":' * 10**5, "nested more than 100 deep"),
    ('{"mask": ' + "[" + "[]," * 300_000, "more than 200000 objects, at character"),
    ('"' + '\\"' * 10**6, "not JSON"),
    (document(CAUSAL).replace("Causal", "\\ud800"), "there is no mask"),
]


@pytest.mark.parametrize("text, message", HOSTILE, ids=[str(text)[:40] for text, _ in HOSTILE])
def test_hostile_texts_are_refused_with_the_place(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        masks.from_json(text)
    assert type(caught.value) is ValueError and str(caught.value).startswith("from_json: ")
    assert len(str(caught.value)) < 1000


def test_depth_is_bounded_for_what_is_well_formed():
    mask = CAUSAL
    for _ in range(60):
        mask = {"Not": {"part": mask}}
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        masks.from_json(document(mask))


def test_size_is_bounded_and_the_bound_can_be_set():
    text = document(CAUSAL)
    with pytest.raises(ValueError, match=f"at most 10 characters, got {len(text)}"):
        masks.from_json(text, max_characters=10)
    with pytest.raises(ValueError, match="at most 67108864 characters"):
        masks.from_json(" " * ((64 << 20) + 1))
    with pytest.raises(TypeError, match="text must be str or bytes, got dict"):
        masks.from_json({})


@settings(deadline=None, max_examples=100)
@given(shaped_expressions())
def test_a_damaged_text_is_read_or_refused_but_never_breaks(case):
    text = case[1].to_json()
    rng = np.random.default_rng(len(text))
    for _ in range(5):
        place, char = int(rng.integers(len(text))), chr(int(rng.integers(32, 127)))
        damaged = text[:place] + char + text[place + 1 :]
        try:
            assert isinstance(masks.from_json(damaged), masks.Mask)
        except ValueError as error:
            assert str(error).startswith("from_json: ")
