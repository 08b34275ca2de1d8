"""Every exact function of a layer: a call, arrays for it, and the published formula in any precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from maskattn.numerics import exact

GOLDEN_FILE = Path(__file__).with_name("layer_golden.json")

KINDS: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


class Case(NamedTuple):
    """`call(layer, *arrays)`; `arrays(draw, kind)`; `truth(*arrays)`, whose floats are of one type, wide enough."""

    call: Callable[..., Any]
    arrays: Callable[..., tuple[Any, ...]]
    truth: Callable[..., Any]


def normal(seed: int) -> Callable[..., np.ndarray]:
    """Fresh numbers of the size of a network's."""
    return np.random.default_rng(seed).standard_normal


def fixed(shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that no version of NumPy changes, from -1.5 to 1.5."""
    n = np.arange(np.prod(shape, dtype=int), dtype=np.int64)
    return ((n * 7919 + 104729) % 997 - 498).reshape(shape) / 331


def _x(draw, kind, *shape):
    return np.asarray(draw(shape)).astype(kind)


def _fifth(x):
    """x to the fifth by products: NumPy's own power has other bits on other processors."""
    return x * x * x * x * x


X = (2, 3, 4, 6)
POSITIONS = np.array([[0, 7, 100_003]], np.int32)
GRID = np.array([[[0, 3, 5], [1, 90, 2], [2, 8, 1000]]], np.int32)
IDS = np.array([[3, 0, 3, 5], [1, 3, 5, 6]], np.int32)
FREQUENCIES = np.array([1.0, 0.1, 0.0123], np.float32)


def _rms(x, axes, eps):
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + eps)


def _turned(x, positions, frequencies, pairs, factor):
    width = 2 * len(frequencies)
    places = np.float32(positions[..., None] if positions.ndim == 2 else positions)
    angle = places * np.float32(frequencies)
    assert angle.dtype == np.float32
    angle = angle.astype(x.dtype)[:, :, None]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    one, two = (np.s_[..., : width // 2], np.s_[..., width // 2 : width])
    if pairs == "interleaved":
        one, two = (np.s_[..., :width:2], np.s_[..., 1:width:2])
    out = x.copy()
    out[one], out[two] = x[one] * cos - x[two] * sin, x[two] * cos + x[one] * sin
    return out


def _unit(x, eps):
    return x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), eps)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _probability(x):
    """Of less than x in a normal distribution: a series of one sign, or beyond 3 Laplace's continued fraction."""
    kind, size = x.dtype.type, np.abs(x)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.arccos(kind(-1)))
    term = series = np.minimum(size, 3)
    for n in range(3, 99, 2):
        term = term * np.minimum(size, 3) ** 2 / n
        series = series + term
    far = below = np.maximum(size, 3)
    for n in range(200, 0, -1):
        below = far + n / below
    tail = np.where(size < 3, kind(0.5) - series * density, density / below)
    return np.where(x < 0, tail, 1 - tail)


CASES: dict[str, Case] = {
    "rms": Case(
        lambda e, x, s: e.norm(x, s, None, kind="rms", eps=1e-5),
        lambda draw, kind: (_x(draw, kind, *X), _x(draw, kind, 6)),
        lambda x, s: _rms(x, -1, 1e-5) * s,
    ),
    "rms-all": Case(  # a scale of another type
        lambda e, x, s: e.norm(x, s, None, kind="rms", eps=1e-6, over="all", plus_one=True),
        lambda draw, kind: (_x(draw, kind, *X), _x(draw, np.float32, 4, 6)),
        lambda x, s: _rms(x, (-2, -1), 1e-6) * (1 + s),
    ),
    "layer": Case(
        lambda e, *a: e.norm(*a, kind="layer", eps=1e-3),
        lambda draw, kind: (_x(draw, kind, *X), _x(draw, kind, 4, 6), _x(draw, kind, 6)),
        lambda x, s, b: _rms(x - x.mean(-1, keepdims=True), -1, 1e-3) * s + b,
    ),
    "layer-bare": Case(
        lambda e, x: e.norm(x, None, None, kind="layer", eps=1e-5, over="all"),
        lambda draw, kind: (_x(draw, kind, *X),),
        lambda x: _rms(x - x.mean((-2, -1), keepdims=True), (-2, -1), 1e-5),
    ),
    "rotate": Case(
        lambda e, *a: e.rotate(*a),
        lambda draw, kind: (_x(draw, kind, *X), POSITIONS, FREQUENCIES),
        lambda x, p, f: _turned(x, p, f, "half", 1),
    ),
    "rotate-part": Case(
        lambda e, *a: e.rotate(*a, pairs="interleaved", factor=1.25),
        lambda draw, kind: (_x(draw, kind, *X), POSITIONS, FREQUENCIES[:2]),
        lambda x, p, f: _turned(x, p, f, "interleaved", 1.25),
    ),
    "rotate-axes": Case(
        lambda e, *a: e.rotate(*a),
        lambda draw, kind: (_x(draw, kind, *X), GRID, FREQUENCIES),
        lambda x, p, f: _turned(x, p, f, "half", 1),
    ),
    "temperature": Case(
        lambda e, *a: e.temperature(*a, scale=0.1, floor=7),
        lambda draw, kind: (_x(draw, kind, *X), POSITIONS),
        lambda x, p: x * (1 + 0.1 * np.log1p(np.floor((p + 1) / 7).astype(x.dtype)))[..., None, None],
    ),
    "cosine": Case(
        lambda e, *a: e.cosine(*a, eps=1e-12, most=2.0),
        lambda draw, kind: (_x(draw, kind, *X), _x(draw, kind, 4)),
        lambda x, s: _unit(x, 1e-12) * np.exp(np.minimum(s, np.log(s.dtype.type(2))))[:, None],
    ),
    "cosine-short": Case(  # some vectors are longer, some are not
        lambda e, x: e.cosine(x, eps=2.5),
        lambda draw, kind: (_x(draw, kind, *X),),
        lambda x: _unit(x, 2.5),
    ),
    "clip": Case(
        lambda e, x: e.clip(x, 0.75),
        lambda draw, kind: (_x(draw, kind, *X),),
        lambda x: np.clip(x, -0.75, 0.75),
    ),
    "gate": Case(  # one for each head
        lambda e, *a: e.gate(*a),
        lambda draw, kind: (_x(draw, kind, *X), _x(draw, kind, 2, 3, 4, 1)),
        lambda x, g: x * _sigmoid(g),
    ),
    "gate-silu": Case(
        lambda e, *a: e.gate(*a, "silu"),
        lambda draw, kind: (_x(draw, kind, *X), _x(draw, kind, *X)),
        lambda x, g: x * g * _sigmoid(g),
    ),
    "gate-tanh": Case(  # small numbers, too
        lambda e, *a: e.gate(*a, "tanh"),
        lambda draw, kind: (_x(draw, kind, *X), _fifth(_x(draw, kind, *X)) / 128),
        lambda x, g: x * np.tanh(g),
    ),
    "sigmoid": Case(
        lambda e, x: e.activate(x, "sigmoid", 16),
        lambda draw, kind: (_x(draw, kind, 5, 4),),
        lambda x: 16 * _sigmoid(x),
    ),
    "relu": Case(
        lambda e, x: e.activate(x, "relu"),
        lambda draw, kind: (_x(draw, kind, 5, 4),),
        lambda x: np.maximum(x, 0),
    ),
    "relu2": Case(
        lambda e, x: e.activate(x, "relu2"),
        lambda draw, kind: (_x(draw, kind, 5, 4),),
        lambda x: np.maximum(x, 0) ** 2,
    ),
    "gelu": Case(
        lambda e, x: e.activate(x, "gelu"),
        lambda draw, kind: (_x(draw, kind, 5, 4),),
        lambda x: x * _probability(x),
    ),
    "gelu-tanh": Case(
        lambda e, x: e.activate(x, "gelu_tanh"),
        lambda draw, kind: (_x(draw, kind, 5, 4),),
        lambda x: x * _sigmoid(np.sqrt(8 / np.arccos(x.dtype.type(-1))) * (x + x.dtype.type(0.044715) * x**3)),
    ),
    "quick-gelu": Case(
        lambda e, x: e.activate(x, "quick_gelu"),
        lambda draw, kind: (_x(draw, kind, 5, 4),),
        lambda x: x * _sigmoid(x.dtype.type(1.702) * x),
    ),
    "scaled": Case(
        lambda e, x: e.activate(x, "linear", 0.3),
        lambda draw, kind: (_x(draw, kind, 5, 4),),
        lambda x: x * x.dtype.type(0.3),
    ),
    "add": Case(  # as positions are added, of another type
        lambda e, *a: e.add(*a),
        lambda draw, kind: (_x(draw, kind, 2, 3, 5), _x(draw, np.float32, 1, 3, 5)),
        lambda x, y: x + y,
    ),
    "add-scaled": Case(
        lambda e, *a: e.add(*a, 0.3),
        lambda draw, kind: (_x(draw, kind, 2, 3, 5), _x(draw, kind, 5)),
        lambda x, y: x + x.dtype.type(0.3) * y,
    ),
    "multiply": Case(
        lambda e, *a: e.multiply(*a),
        lambda draw, kind: (_x(draw, kind, 2, 3, 5), _x(draw, kind, 5)),
        lambda x, y: x * y,
    ),
    "merge": Case(
        lambda e, *a: e.merge(*a),
        lambda draw, kind: (_x(draw, kind, 4, 5), _x(draw, kind, 4, 5)),
        lambda x, y: x + y,
    ),
    "embed": Case(
        lambda e, *a: e.embed(*a),
        lambda draw, kind: (_x(draw, kind, 7, 3), IDS),
        lambda table, ids: table[ids],
    ),
    "products": Case(
        lambda e, *a: e.products(*a, 4, 0.3),
        lambda draw, kind: (_x(draw, kind, 2, 3, 2, 5), _x(draw, kind, 7, 4, 5)),
        lambda x, y: 0.3 * np.einsum("blhd,rhd->bhlr", np.repeat(x, 2, 2), y),
    ),
    "products-grouped": Case(
        lambda e, *a: e.products(*a, 4, 2.0),
        lambda draw, kind: (_x(draw, kind, 2, 3, 4, 5), _x(draw, kind, 7, 2, 5)),
        lambda x, y: 2 * np.einsum("blhd,rhd->bhlr", x, np.repeat(y, 2, 1)),
    ),
    "linear": Case(
        lambda e, *a: e.linear(*a),
        lambda draw, kind: (_x(draw, kind, 5, 7), _x(draw, kind, 7, 3), _x(draw, kind, 3)),
        lambda x, w, b: x @ w + b,
    ),
}


def digests() -> dict[str, dict[str, str]]:
    """A hash of the result and the gradients of each case, by dtype."""
    found: dict[str, dict[str, str]] = {}
    for name, case in CASES.items():
        for kind, dtype in KINDS.items():
            arrays = case.arrays(fixed, dtype)
            out = case.call(exact.LAYER, *arrays)
            d_out = (fixed(out.shape) / 2 + 0.125).astype(dtype)
            results = [out, *(x for x in case.call(exact.gradients(d_out), *arrays) if x is not None)]
            digest = hashlib.sha256(b"".join(x.tobytes() for x in results)).hexdigest()
            found.setdefault(name, {})[kind] = digest[:16]
    return found


if __name__ == "__main__":
    GOLDEN_FILE.write_text(json.dumps(digests(), indent=1) + "\n")
