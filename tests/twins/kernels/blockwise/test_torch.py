"""The blockwise kernel of the PyTorch twin against the float64 oracle, at sizes where it has several pieces.

The suite's own cases have Dv other than D and a cotangent for the log-sum-exp: they test the matrix products. Here D is
Dv and the log-sum-exp has no cotangent, so that SDPA's operators are tested, and both at longer lengths.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from tests.twins.kernels import judged

torch = pytest.importorskip("torch")

from maskattn import biases, masks, standards
from maskattn.parity.attention import cases
from maskattn.parity.attention.cases import Case, Shape, compose, families
from maskattn.parity.draws import Draws
from maskattn_torch import attention
from maskattn_torch.kernels.blockwise import flash, products, walk
from maskattn_torch.testing.adapter import Adapter

TWIN = Adapter(kernel="blockwise")


def failures(case, cotangent_of_lse=False, blocks=None):
    """What the suite's checks find wrong."""
    twin = replace(TWIN, blocks=blocks)
    return judged.failures(case, lambda inputs, cotangent: twin.run(case, inputs, None, cotangent), cotangent_of_lse)


def case(mask, shape, dtype="float32", name="case", **options):
    return Case(name, "blockwise", shape, dtype, mask, seed=Draws(f"{name}{shape}").integer(0, 1 << 30), **options)


@contextlib.contextmanager
def counted(monkeypatch):
    """How many rectangles each engine does, forward and backward."""
    counts = {}
    with monkeypatch.context() as patch:
        for module in (flash, products):
            for name in ("forward", "backward"):
                key, inner = f"{module.__name__.rpartition('.')[2]} {name}", getattr(module, name)

                def run(*arguments, key=key, inner=inner, **options):
                    counts[key] = counts.get(key, 0) + 1
                    return inner(*arguments, **options)

                patch.setattr(module, name, run)
        yield counts


@pytest.mark.parametrize("tiles", [(4, 4), (5, 3)])
def test_the_suites_cases_by_sdpa(tiles, monkeypatch):
    found, ran = [], 0
    with counted(monkeypatch) as counts:
        for given in cases.registry():
            if (
                given.config is None
                and given.dtype == "float32"
                and given.empty_rows != "mean"
                and not given.must_raise
            ):
                narrow = replace(given, shape=replace(given.shape, v_head_dim=given.shape.head_dim))
                found += failures(narrow, blocks=tiles)
                ran += 1
    assert not found, "\n".join(found)
    assert ran > 150 and min(counts["flash forward"], counts["flash backward"]) > 400


FEW = Shape(2, 40, 56, 4, 2, 8, 8)


@pytest.mark.parametrize("lse", [False, True], ids=["sdpa", "products"])
def test_random_compositions(lse):
    found = []
    for number in range(100):
        name = f"{lse}{number}"
        mask = compose(FEW, Draws(name), depth=1 + number % 3)
        found += failures(case(mask, FEW, name=name), cotangent_of_lse=lse, blocks=(8, 8))
    assert not found, "\n".join(found)


def test_an_average_of_one_number_is_that_number():
    """What a large log-sum-exp loses by rounding must not scale the output when partial results are merged."""
    query, key = (torch.sin(n * torch.arange(1 * 40 * 2 * 8.0)).reshape(1, 40, 2, 8) for n in (1, 2))
    query[..., 0], key[..., 0] = 1000, 3
    value = torch.ones(1, 40, 2, 5)
    output = attention(query, key, value, masks.Causal(), kernel="blockwise", blocks=(8, 8))
    assert float((output - 1).abs().max()) <= standards.value("merge.average") * standards.eps("float32")


@pytest.mark.parametrize("softcap", [None, 50.0], ids=["SDPA's operator", "products"])
def test_an_infinite_value_that_is_attended_to_stays_infinite(softcap):
    query, key, value = (torch.sin(n * torch.arange(1 * 24 * 2 * 8.0)).reshape(1, 24, 2, 8) for n in (1, 2, 3))
    value[0, 3, 0, 1] = torch.inf
    output = attention(query, key, value, masks.Causal(), softcap=softcap, kernel="blockwise", blocks=(8, 8))
    assert (output[0, 8:, 0, 1] == torch.inf).all()
    assert int(output[0, 8:].isfinite().logical_not().sum()) == 16


LENGTHS = [(1, 1), (1, 129), (2, 3), (3, 2), (127, 127), (129, 127), (127, 1000), (1000, 1000), (1000, 3)]


def long_masks(shape):
    draws = Draws(f"long{shape}")
    ids = np.sort(draws.integers(-1, 5, (shape.batch, shape.kv_len)), axis=1)
    square = shape.q_len == shape.kv_len
    yield masks.Causal(offset=shape.kv_len - shape.q_len)
    yield masks.SlidingWindow(40, 7) | masks.PrefixLM(3)
    yield masks.KeyPadding(draws.integers(0, shape.kv_len + 1, (shape.batch,))) & masks.Causal()
    yield masks.Segments(ids) if square else masks.Segments(np.sort(draws.integers(0, 5, (2, shape.q_len))), ids)
    yield masks.PerHead([masks.Causal(), masks.SlidingWindow(64), masks.Dilated(5, 9), masks.Full()])


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_lengths(q_len, kv_len):
    shape, found = Shape(2, q_len, kv_len, 4, 2, 8, 8), []
    for number, mask in enumerate([None, *long_masks(shape)]):
        found += failures(case(mask, shape, name=str(number)), cotangent_of_lse=number == 2)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("family", families())
def test_every_mask_at_300(family):
    """In tiles as they are chosen, in rectangles of several sizes, with one head for two."""
    shape = Shape(2, 300, 300, 4, 2, 8, 8)
    found = [
        line
        for number, mask in enumerate(families()[family].examples(shape, Draws(family)))
        for line in failures(case(mask, shape, name=f"{family}{number}"))
    ]
    assert not found, "\n".join(found)


LONG = Shape(1, 600, 600, 4, 2, 8, 8)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "options",
    [
        {"sinks": True},
        {"softcap": 3.0, "bias": biases.ALiBi(4)},
        {"bias": np.linspace(-2, 2, 128).reshape(32, 4)},
        {"bias": "dense", "sinks": True},
        {"bias": biases.Additive(masks.KeyPadding([500]))},
        {"dropout_rate": 0.3},
    ],
    ids=["sinks", "softcap", "table", "dense", "additive", "dropout"],
)
def test_options(options, dtype):
    mask = masks.Causal() & masks.SlidingWindow(300)
    if isinstance(options.get("bias"), np.ndarray):
        table = options["bias"].astype(case(mask, LONG, dtype).numpy_dtype)
        options = {"bias": biases.T5Buckets(table)}
    assert not failures(case(mask, LONG, dtype, **options), cotangent_of_lse=True)
    assert not failures(case(mask, LONG, dtype, **options))


FAULTS = {
    "a tile skipped": lambda piece: None if piece.k == 0 and piece.q > 0 else piece,
    "keys one tile on": lambda piece: replace(piece, k=piece.k + 8 if piece.count == 1 and piece.k < 24 else piece.k),
    "a column less": lambda piece: replace(piece, cols=max(piece.cols - 1, 1)),
    "a mask left out": lambda piece: replace(piece, kind=0),
    "written twice as the first": lambda piece: replace(piece, first=True),
}


@pytest.mark.parametrize("products", [False, True], ids=["sdpa", "products"])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault, products, monkeypatch):
    sink = masks.KeyMask(np.arange(40)[None] < 3)
    given = case(masks.Causal() & (masks.SlidingWindow(13) | sink), replace(FEW, q_len=40, kv_len=40))
    assert not failures(given, cotangent_of_lse=products, blocks=(8, 8))
    inner = walk.patches_of

    def planted(mask, sizes):
        found = inner(mask, sizes)
        patches = [replace(patch, piece=piece) for patch in found.backward if (piece := FAULTS[fault](patch.piece))]
        if fault in ("a column less", "a mask left out", "keys one tile on"):
            patches = [replace(patch, kept=None) for patch in patches]
        return replace(found, backward=tuple(patches), forward=tuple(patches), covered=False)

    monkeypatch.setattr(walk, "patches_of", planted)
    assert failures(given, cotangent_of_lse=products, blocks=(8, 8))
