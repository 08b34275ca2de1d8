"""Declared fields: each kind takes what is right, names what is wrong, and says itself in the documentation."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from torch.utils import _pytree

from maskattn import biases, corruption, masks
from maskattn._declared import (
    Declared,
    choice,
    data,
    declared,
    flag,
    integer,
    integers,
    interval,
    number,
    part,
)
from maskattn._problems import Problems

PUBLIC = {
    f"{module.__name__}.{name}": cls
    for module in (masks, biases, corruption)
    for name in module.__all__
    if isinstance(cls := getattr(module, name), type) and issubclass(cls, Declared) and dataclasses.is_dataclass(cls)
}


def one(field: Any) -> type[Any]:
    """A class with this field, x, after `grid`."""

    @declared
    class One(Declared):
        grid: Any = integers(minimum=1, least=1, most=3, meaning="lengths of the axes")
        x: Any = field

    return One


def options(**more: Any) -> dict[str, Any]:
    return {"meaning": "what is asked", **more}


#: name -> the field, what it says, values with what they become, values with their error
KINDS: dict[str, tuple[Any, str, list[tuple[Any, Any]], list[tuple[Any, type[Exception], str]]]] = {
    "integer": (
        lambda: integer(**options()),
        "int",
        [(3, 3), (np.int8(-3), -3)],
        [(1.0, TypeError, "x must be an int, got 1.0 (float)"), (True, TypeError, "x must be an int, got True")],
    ),
    "integer with bounds": (
        lambda: integer(minimum=1, below=2**31, none="all", **options()),
        "int in [1, 2**31), or None: all",
        [(None, None), (1, 1), (2**31 - 1, 2**31 - 1)],
        [
            (0, ValueError, "x (None = all) must be at least 1, got 0"),
            (2**31, ValueError, "x (None = all) must be less than 2**31, got 2147483648"),
        ],
    ),
    "integers": (
        lambda: integers(minimum=1, least=1, most=2, alone=True, **options()),
        "1 to 2 axes, each an int >= 1, or one int",
        [([1, np.int64(2)], (1, 2)), (3, (3,))],
        [
            ((), ValueError, "x must have 1 to 2 axes, got ()"),
            ((1, 2, 3), ValueError, "x must have 1 to 2 axes, got (1, 2, 3)"),
            ((1, 0), ValueError, "x[1] must be at least 1, got 0"),
            ("12", TypeError, "x must be a tuple of ints, got '12'"),
        ],
    ),
    "integers, two": (
        lambda: integers(minimum=1, per=2, **options()),
        "int >= 1, or 2 of them",
        [(3, (3, 3)), ([3, 4], (3, 4))],
        [((1, 2, 3), ValueError, "x must have 2 entries, got 3"), (0, ValueError, "x must be at least 1, got 0")],
    ),
    "integers, per axis": (
        lambda: integers(per="grid", **options()),
        "int, or one per axis of grid",
        [(3, (3, 3)), ([3, -4], (3, -4))],
        [((1,), ValueError, "x must have 2 entries, got 1"), (0.5, TypeError, "x must be an int, got 0.5")],
    ),
    "number": (
        lambda: number(minimum=0, below=1, none="none", **options()),
        "number in [0, 1), or None: none",
        [(0, 0.0), (np.float32(0.5), 0.5), (None, None)],
        [
            (1, ValueError, "x (None = none) must be in [0, 1), got 1.0"),
            (float("nan"), ValueError, "must be in [0, 1), got nan"),
            ("half", TypeError, "must be a number, got 'half'"),
            (False, TypeError, "must be a number, got False"),
        ],
    ),
    "number, positive": (
        lambda: number(above=0, **options()),
        "number > 0",
        [(1e-9, 1e-9)],
        [
            (0, ValueError, "x must be positive and finite, got 0.0"),
            (float("inf"), ValueError, "must be positive and finite, got inf"),
        ],
    ),
    "number, of float32": (
        lambda: number(float32=True, **options()),
        "number, finite in float32",
        [(-0.1, float(np.float32(-0.1)))],
        [(1e39, ValueError, "x must be finite in float32, got 1e+39"), (-np.inf, ValueError, "finite in float32")],
    ),
    "interval": (
        lambda: interval(above=0, maximum=1, **options()),
        "(low, high), numbers in (0, 1], low <= high",
        [((0.5, 1), (0.5, 1.0)), ([1, 1], (1.0, 1.0))],
        [
            ((0.2, 0.1), ValueError, "x must be (low, high), low <= high, in (0, 1], got (0.2, 0.1)"),
            ((0, 1), ValueError, "in (0, 1], got (0.0, 1.0)"),
            (0.5, TypeError, "x must be (low, high), got 0.5"),
            ((0.5, "1"), TypeError, "x[1] must be a number, got '1'"),
        ],
    ),
    "flag": (
        lambda: flag(**options()),
        "bool",
        [(True, True), (False, False)],
        [(1, TypeError, "x must be True or False, got 1 (int)")],
    ),
    "choice": (
        lambda: choice("near", "far", **options()),
        "'near' or 'far'",
        [("far", "far")],
        [("row", ValueError, "x must be one of near, far, got 'row'"), (3, TypeError, "one of near, far, got 3")],
    ),
    "data": (
        lambda: data("int", "[S] or [B, S]", minimum=0, none="all", **options()),
        "int array [S] or [B, S], >= 0, or None: all",
        [([1, 2], np.array([1, 2])), (np.uint8([[3]]), np.array([[3]])), (None, None)],
        [
            (3, ValueError, "x must have shape [S] or [B, S], got []"),
            ([-1], ValueError, "x must not be negative, got -1"),
            ([0.5], TypeError, "x must be an int array, got dtype float64"),
        ],
    ),
    "data, broadcastable": (
        lambda: data("float32", "broadcastable to [H, L]", **options()),
        "float32 array broadcastable to [H, L]",
        [(np.float32(1), np.float32(1)), (np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))],
        [
            (np.zeros((1, 1, 1), np.float32), ValueError, "x must have shape broadcastable to [H, L], got [1, 1, 1]"),
            ([0.5], TypeError, "x must be a float32 array, got dtype float64"),
        ],
    ),
    "data or int": (
        lambda: data("int", "[B]", minimum=0, or_int=True, **options()),
        "int, or int array [B], >= 0",
        [(3, 3), (np.int64(3), 3), ([3], np.array([3]))],
        [
            (-1, ValueError, "x must be at least 0, got -1"),
            ([-1], ValueError, "x must not be negative, got -1"),
            (None, TypeError, "x must be an int, got None"),
        ],
    ),
    "part": (
        lambda: part(masks.Mask, **options()),
        "Mask",
        [(masks.Causal(), masks.Causal())],
        [(None, TypeError, "x must be a Mask, got None"), (biases.ALiBi(1), TypeError, "x must be a Mask")],
    ),
    "parts": (
        lambda: part(masks.Mask, many=True, **options()),
        "tuple of Masks",
        [([masks.Causal()], (masks.Causal(),)), ((), ())],
        [
            (masks.Causal(), TypeError, "x must be a list of masks, got Causal()"),
            ([masks.Causal(), 3], TypeError, "x[1] must be a mask, got 3"),
        ],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_converts_what_is_right(name):
    make, _, good, _ = KINDS[name]
    for value, expected in good:
        found = one(make())((2, 2), value).x
        assert type(found) is type(expected) or (hasattr(expected, "dtype") and found.dtype == expected.dtype)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_names_what_is_wrong(name):
    make, _, _, bad = KINDS[name]
    for value, error, message in bad:
        with pytest.raises(error) as caught:
            one(make())((2, 2), value)
        assert str(caught.value).startswith("One: ") and message in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_says_itself_in_the_documentation(name):
    make, says, _, _ = KINDS[name]
    assert f"    x ({says}): what is asked.\n" in one(make()).__doc__.replace("\n        ", " ") + "\n"


@declared
class Pair(Declared):
    """low < high.

    >>> Pair(1, 2)
    Pair(low=1, high=2)
    """

    low: int = integer(minimum=0, meaning="the first")
    high: int = integer(minimum=0, meaning="the second")
    total: int | None = integer(none="the sum", default=None, meaning="what they make")
    made: Any = data(init=False, meaning="their difference")

    def _check(self, problems: Problems) -> None:
        """low is not less than high"""
        if self.low >= self.high:
            problems.value(f"low must be less than high, got {self.low} and {self.high}")
        self._set(made=self.high - self.low)


def test_the_documentation_has_fields_before_the_example_and_errors_after():
    assert (
        Pair.__doc__
        == """low < high.

Args:
    low (int >= 0): the first.
    high (int >= 0): the second.
    total (int; default None: the sum): what they make.

Attributes:
    made: their difference.

>>> Pair(1, 2)
Pair(low=1, high=2)

Raises:
    TypeError: a field is of another type. ValueError: its shape or value is out of bounds, or low is not less
        than high. One error names every fault."""
    )


def test_all_faults_are_in_one_error_and_what_holds_between_fields_is_asked_of_right_fields_only():
    with pytest.raises(TypeError) as caught:
        Pair(-1, "2", 0.5)
    assert str(caught.value) == (
        "Pair: 3 problems:\n  - low must be at least 0, got -1\n  - high must be an int, got '2' (str)\n"
        "  - total (None = the sum) must be an int, got 0.5 (float)"
    )
    with pytest.raises(ValueError, match="^Pair: low must be less than high, got 2 and 1$"):
        Pair(2, 1)


def test_an_object_is_frozen_equal_copied_and_replaced():
    pair = Pair(np.int64(1), 3)
    assert type(pair.low) is int and pair.made == 2 and pair == Pair(1, 3) != Pair(1, 4)
    assert hash(pair) == hash(Pair(1, 3)) and repr(Pair(1, 3, 4)) == "Pair(low=1, high=3, total=4)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.low = 3
    assert pickle.loads(pickle.dumps(pair)) == pair == copy.deepcopy(pair)
    assert dataclasses.replace(pair, low=2).made == 1
    with pytest.raises(ValueError, match="low must be less than high"):
        dataclasses.replace(pair, low=3)


def test_a_subclass_has_its_bases_fields_and_may_say_them_anew():
    @declared
    class Wider(Pair):
        low: int = integer(minimum=-5, meaning="the first, lower")
        name: str = choice("a", "b", default="a", meaning="its name")

    assert Wider(-5, 1).made == 6 and "low (int >= -5): the first, lower." in Wider.__doc__
    with pytest.raises(ValueError, match=r"low must be at least -5, got -6\n  - name must be one of a, b, got 'c'"):
        Wider(-6, 1, name="c")
    with pytest.raises(ValueError, match="low must be at least 0"):
        Pair(-5, 1)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_field_has_a_meaning_and_a_line(name):
    cls = PUBLIC[name]
    for field in dataclasses.fields(cls):
        kind = cls._kinds.get(field.name)
        assert kind is not None and kind.meaning and not kind.meaning.endswith("."), field.name
        assert kind.says or not field.init, field.name
        assert f"\n    {field.name}" in cls.__doc__, field.name
    assert "__post_init__" not in vars(cls)
    assert cls._check is Declared._check or (cls._check.__doc__ and cls._check.__doc__[-1] != "."), "a rule in words"
    assert (">>> " in cls.__doc__) and ("Raises:" in cls.__doc__) == bool(cls._checks)
    assert issubclass(cls, masks.Mask) <= ("True = may attend" in cls.__doc__)


def test_there_is_a_page_for_each():
    assert len(PUBLIC) == 29 + 6 + 6


# Masks of a user's own, as they are written without any of this.


@dataclass(frozen=True)
class Plain(masks.Mask):
    rows: Any = masks.data()
    inner: tuple[masks.Mask, ...] = masks.part()
    offset: Any = masks.data(default=0)
    size: int = 2

    def allowed(self, b, h, q, k):
        return (k < self.rows[0] + self.offset) & self.inner[0].allowed(b, h, q, k)


@dataclass(frozen=True)
class Checked(masks.Mask):
    size: Any

    def _check(self, problems):
        self._set(size=problems.integer("size", self.size, minimum=1))

    def allowed(self, b, h, q, k):
        return k % self.size == 0


@dataclass(frozen=True)
class ByHand(masks.Mask):
    size: Any

    def __post_init__(self):
        object.__setattr__(self, "size", int(self.size))

    def allowed(self, b, h, q, k):
        return k % self.size == 0


@dataclass(frozen=True, slots=True)
class Slotted(masks.Mask):
    rows: Any = masks.data()

    def allowed(self, b, h, q, k):
        return k < self.rows[0]


@dataclass(frozen=True)
class Told(masks.Mask):
    rows: Any = masks.data("int", "[B]", minimum=0)

    def allowed(self, b, h, q, k):
        return k < self.rows[0]


OWN = [
    Plain(np.array([2]), (masks.Causal(),)),
    Plain(np.array([2]), (masks.KeyPadding([1]),), np.array(1), 3),
    Checked(np.int64(2)),
    ByHand("3"),
    Slotted(np.array([1])),
    Told([1, 2]),
]


@pytest.mark.parametrize("mask", OWN, ids=lambda mask: type(mask).__name__)
def test_plain_dataclasses_are_masks_as_good_as_any(mask):
    leaves, structure = jax.tree.flatten(mask)
    assert jax.tree.unflatten(structure, leaves) == mask and len(leaves) == len(_pytree.tree_leaves(mask))
    assert mask.map_data(lambda array: array) == mask and mask.with_children(mask.children()) == mask
    assert masks.from_json(mask.to_json(), classes=[type(mask)]) == mask
    assert np.array_equal(mask.at(0).dense(2, 4), mask.dense(2, 4))


def test_their_checks_are_theirs():
    with pytest.raises(ValueError, match="Checked: size must be at least 1, got 0"):
        Checked(0)
    with pytest.raises(ValueError, match="Told: rows must not be negative, got -1"):
        Told([-1])
    assert Checked(np.int64(2)).size == 2 and ByHand("3").size == 3 and Plain(3, 4).rows == 3


def test_a_text_may_give_a_part_as_its_class_says_it():
    with pytest.raises(ValueError, match="mask.And.parts: expected a list of masks"):
        masks.from_json('{"maskattn": 1, "mask": {"And": {"parts": {"Full": {}}}}}')
    with pytest.raises(ValueError, match="mask.Not.part: expected a mask"):
        masks.from_json('{"maskattn": 1, "mask": {"Not": {"part": [{"Full": {}}]}}}')
