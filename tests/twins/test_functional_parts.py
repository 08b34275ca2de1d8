"""A part of a call has the mask and the bias of the whole there: every mask and bias of the library, and one's own."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from maskattn import biases, masks
from maskattn.parity.attention.cases import Shape
from maskattn.parity.attention.cases.mask_table import families
from maskattn.parity.draws import Draws
from tests.frameworks import optional

parts = optional("maskattn_torch._parts")
SHAPES = [Shape(4, 12, 17, 4, 2, 4, 4), Shape(4, 9, 9, 3, 3, 4, 4), Shape(8, 36, 36, 2, 2, 4, 4)]
RNG = np.random.default_rng(3)
pytestmark = pytest.mark.torch


@dataclass(frozen=True)
class Odd(masks.Mask):
    """A mask of somebody's own, whose data say nothing of their axes, and which reads the numbers of row and head."""

    keep: object = masks.data()

    def allowed(self, b, h, q, k):
        return (self.keep[b % 4, k % 5] != 0) & ((b + h + q) % 3 != k % 2)


@dataclass(frozen=True)
class Turned(masks.Mask):
    """A mask of somebody's own around another."""

    of: masks.Mask = masks.part()

    def allowed(self, b, h, q, k):
        return self.of.allowed(b, h, k, q) | ((q - b) % 4 == 0)


EXTRA = [
    (masks.Causal(3) & masks.KeyPadding([17, 11, 0, 6])) | masks.PrefixLM([2, 3, 4, 5]),
    masks.SlidingWindow(4, 1).at(np.array([0, 3, 5, 1]), 2) & masks.Dense(RNG.random((4, 4, 12, 17)) < 0.7),
    masks.Dense(RNG.random((1, 4, 20, 17)) < 0.5).at(5) | ~masks.Dense(RNG.random((4, 1, 12, 1)) < 0.5),
    masks.Causal(2).with_positions(RNG.integers(0, 9, (4, 12)), RNG.integers(0, 9, (4, 17))) & ~masks.Strided(3),
    masks.PerHead((masks.Causal(), masks.KeyPadding([3, 4, 5, 6]), masks.Full(), masks.Causal().at(3))),
    Odd(RNG.integers(0, 2, (4, 5))) & masks.Causal(),
    Turned(masks.KeyPadding([3, 4, 5, 6]) & masks.Causal()) & masks.Causal(4),
]


def every_mask():
    for cls in families().values():
        for number, shape in enumerate(SHAPES):
            for i, mask in enumerate(cls.examples(shape, Draws(f"parts/{cls.__name__}/{number}"))):
                yield pytest.param(mask, shape, id=f"{cls.__name__}-{number}-{i}")
    for i, mask in enumerate(EXTRA):
        yield pytest.param(mask, SHAPES[0], id=f"extra-{i}")


def every_part(shape):
    """Parts along each axis by itself, along all, and with none of an axis."""
    halves = {"B": (shape.batch // 2, shape.batch - shape.batch // 2), "H": (1, shape.heads - 1), "L": (5, 3)}
    for letters in ("B", "H", "L", "BHL"):
        yield part_of(shape, {letter: halves[letter] for letter in letters})
    yield part_of(shape, {"L": (0, 4), "B": (0, 1)})
    yield part_of(shape, {"H": (shape.heads, 0)})


def part_of(shape, chosen):
    whole = {"B": (0, shape.batch), "H": (0, shape.heads), "L": (0, shape.q_len)} | chosen
    first, count = ({letter: pair[i] for letter, pair in whole.items()} for i in (0, 1))
    made = parts.Part(first, count, frozenset(chosen), None)
    return replace(made, local=made.cut)


def cut(dense, part):
    place = tuple(slice(part.first[x], part.first[x] + part.count[x]) for x in "BHL")
    return np.broadcast_to(dense, dense.shape)[place]


@pytest.mark.parametrize("mask, shape", list(every_mask()))
def test_masks(mask, shape):
    whole = mask.dense(shape.q_len, shape.kv_len, shape.batch, shape.heads)
    for part in every_part(shape):
        found = parts.mask_of(mask, part)
        rows, heads, queries = (part.count[letter] for letter in "BHL")
        dense = found.dense(queries, shape.kv_len, rows, heads)
        assert np.array_equal(dense, cut(whole, part)), (found, part)
        if dense.size:
            some, every = found.tile(np.arange(rows)[:, None], np.arange(heads), 1, queries - 1, 2, shape.kv_len - 3)
            tile = dense[:, :, 1:, 2:-2]
            assert (some >= tile.any((2, 3))).all() and (every <= tile.all((2, 3))).all(), (found, part)


@pytest.mark.parametrize(
    "bias",
    [
        biases.DenseBias(RNG.random((4, 4, 12, 17))),
        biases.DenseBias(RNG.random((4, 1, 17))),
        biases.ALiBi(4),
        biases.ALiBi(1, offset=np.array([0, 3, 1, 2]), form="key"),
        biases.ALiBi(4, offset=np.array([0, 3, 1, 2])),
        biases.T5Buckets(RNG.random((8, 4)), 16, offset=np.array([4, 3, 1, 2])),
        biases.T5Buckets(RNG.random((8, 1)), 16, offset=2),
        biases.Additive(masks.KeyPadding([2, 3, 4, 5]) & masks.Causal()),
    ],
    ids=lambda bias: type(bias).__name__,
)
def test_biases(bias):
    check_bias(bias, SHAPES[0])


def test_a_table_without_an_offset():
    check_bias(biases.RelativeTable(RNG.random((11 * 3, 4)), (6, 2)), Shape(4, 12, 12, 4, 2, 4, 4))


def check_bias(bias, shape):
    at = np.ogrid[: shape.batch, : shape.heads, : shape.q_len, : shape.kv_len]
    whole = np.broadcast_to(bias.values(*at), shape.scores)
    for part in every_part(shape):
        found = parts.bias_of(bias, part)
        rows, heads, queries = (part.count[letter] for letter in "BHL")
        if not heads:
            continue
        assert not found.conflicts({"batch": rows, "heads": heads, "q_len": queries, "kv_len": shape.kv_len})
        values = found.values(*np.ogrid[:rows, :heads, :queries, : shape.kv_len])
        assert np.array_equal(np.broadcast_to(values, (rows, heads, queries, shape.kv_len)), cut(whole, part)), found


def test_what_can_be_cut_keeps_its_class():
    part = part_of(SHAPES[0], {"B": (2, 2)})
    found = parts.mask_of(masks.KeyPadding([1, 2, 3, 4]) & masks.Causal(), part)
    assert found == masks.KeyPadding([3, 4]) & masks.Causal()
    part = part_of(SHAPES[0], {"L": (4, 4)})
    assert parts.mask_of(masks.Causal(), part) == masks.Causal().at(4)
