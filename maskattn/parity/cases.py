"""The one list of cases: what the parity suite runs, and where tests, benchmarks and documents take theirs from.

A case is data. Everything in it, and every number `inputs` makes from it, follows from its seed.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from maskattn import biases, masks
from maskattn._pairs import grid
from maskattn.config import AttentionConfig
from maskattn.numerics import dropout, rng
from maskattn.parity.draws import Draws
from maskattn.parity.mask_table import Shape, compose, families

Array = np.ndarray[Any, Any]

DTYPES = ("float64", "float32", "bfloat16", "float16")

#: Few shapes, since JAX compiles each once: grouped, equal and single key/value heads. D and Dv are distinct primes,
#: since equal sizes hide exchanged axes.
SQUARE = Shape(batch=4, q_len=24, kv_len=24, heads=6, kv_heads=2, head_dim=7, v_head_dim=5)
WIDE = Shape(batch=2, q_len=5, kv_len=17, heads=3, kv_heads=3, head_dim=7, v_head_dim=3)
TALL = Shape(batch=3, q_len=13, kv_len=7, heads=5, kv_heads=1, head_dim=3, v_head_dim=5)
ROW = Shape(batch=2, q_len=1, kv_len=11, heads=2, kv_heads=2, head_dim=5, v_head_dim=3)
ONE = Shape(batch=1, q_len=1, kv_len=1, heads=1, kv_heads=1, head_dim=3, v_head_dim=2)
SHAPES = {"square": SQUARE, "wide": WIDE, "tall": TALL, "row": ROW, "one": ONE}
#: Those on which every mask runs by itself; the others are for compositions.
ALONE = ("square", "wide", "tall")


@dataclass(frozen=True, eq=False)
class Case:
    """One thing to compute.

    Attributes:
      id: unique, `family/shape/dtype/...`; the same id is the same case for ever.
      family: the line of the report it is counted in: a mask's class name, or what else is tried.
      mask: the mask object (True = may attend), or None.
      bias: "dense" (an array in the inputs, differentiated), a `Bias` object, or None.
      sinks: whether the inputs hold sinks.
      config: where given, the case is a whole `MultiHeadAttention` and the inputs hold its weights.
      plant: a value put into every key and value that no query may reach.
      spread: the standard deviation of the queries; large values make large logits.
      dropout_rate, dropout_broadcast: as of attention; a module's rates are in its config.
      tags: free words: "smoke" marks the few cases that stand for all.
    """

    id: str
    family: str
    shape: Shape
    dtype: str
    mask: masks.Mask | None
    bias: Any = None
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    empty_rows: str = "zero"
    config: AttentionConfig | None = None
    plant: float | None = None
    spread: float = 2.0
    dropout_rate: float = 0.0
    dropout_broadcast: tuple[str, ...] = ()
    seed: int = 0
    tags: frozenset[str] = field(default_factory=frozenset)

    def __repr__(self) -> str:
        return f"Case({self.id!r})"

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of query, key, value and output."""
        return np.dtype(getattr(ml_dtypes, self.dtype, self.dtype))

    @property
    def lse_dtype(self) -> np.dtype[Any]:
        """float64 for float64 inputs, float32 otherwise."""
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    @property
    def allowed(self) -> Array:
        """The mask as bool [B, H, L, S]."""
        s = self.shape
        if self.mask is None:
            return np.ones(s.scores, dtype=bool)
        dense = self.mask.dense(s.q_len, s.kv_len, batch=s.batch, heads=s.heads)
        return np.ascontiguousarray(np.broadcast_to(dense, s.scores))

    @property
    def dropout_key(self) -> Array:
        """The key of the case's dropout, two uint32 words: attention's own, or the one that the module is given."""
        return rng.fold_in(rng.key(self.seed), 1)

    @property
    def dropped(self) -> dict[str, Any]:
        """`keep` (bool [B, H, L, S], True = kept) and `dropout_rate` of the attention weights; {} without dropout."""
        rate, key = self.dropout_rate, self.dropout_key
        if self.config is not None:
            rate, key = self.config.dropout_rate, rng.fold_in(key, 0)
        if not rate:
            return {}
        keep = dropout.dense(rate, key, self.shape.scores, self.dropout_broadcast)
        return {"keep": np.ascontiguousarray(np.broadcast_to(keep, self.shape.scores)), "dropout_rate": rate}

    @property
    def table(self) -> Array | None:
        """The learned table of the bias, which is differentiated too, or None."""
        return self.bias.table if isinstance(self.bias, biases.TableBias) else None

    @property
    def must_raise(self) -> bool:
        """Whether the right answer is an error: `empty_rows="error"` and a row that may attend to nothing."""
        return self.empty_rows == "error" and not self.sinks and not self.allowed.any(axis=-1).all()


def inputs(case: Case) -> dict[str, Array]:
    """The arrays of a case: query, key, value, mask (bool [B, H, L, S], True = may attend), and where the case has them
    bias (float, as added to the logits), sinks [H] and keep (bool, the shape of mask, True = not dropped). Same case,
    same bytes, with any version of NumPy."""
    s, draws = case.shape, Draws(case.seed * 2 + 1)
    if case.config is not None:
        c = case.config
        widths = (c.embed_dim, c.kdim or c.embed_dim, c.vdim or c.embed_dim)
        sizes: list[tuple[int, ...]] = [
            (s.batch, s.q_len, widths[0]),
            (s.batch, s.kv_len, widths[1]),
            (s.batch, s.kv_len, widths[2]),
        ]
    else:
        sizes = [
            (s.batch, s.q_len, s.heads, s.head_dim),
            (s.batch, s.kv_len, s.kv_heads, s.head_dim),
            (s.batch, s.kv_len, s.kv_heads, s.v_head_dim),
        ]
    dtype, allowed = case.numpy_dtype, case.allowed
    query = (case.spread * draws.normal(sizes[0])).astype(dtype)
    key, value = (draws.normal(size).astype(dtype) for size in sizes[1:])
    if case.config is not None and s.q_len == s.kv_len and len({size for size in sizes}) == 1:
        key = value = query  # self-attention
    if case.plant is not None:
        key, value = plant(case, key, case.plant), plant(case, value, case.plant)
    made = {"query": query, "key": key, "value": value, "mask": allowed}
    if isinstance(case.bias, str):
        bias = draws.normal(s.scores if case.bias == "dense" else (1, s.heads, s.q_len, s.kv_len))
        if case.bias == "dense-inf":
            bias = np.where(draws.booleans(bias.shape, 0.3), -np.inf, bias)
        made["bias"] = bias.astype(dtype)
    elif case.bias is not None:
        made["bias"] = np.broadcast_to(bias_values(case.bias, s), s.scores).astype(case.lse_dtype)
    if case.table is not None:
        made["table"] = case.table
    if case.sinks:
        made["sinks"] = draws.normal((s.heads,)).astype(dtype)
    if case.config is None and case.dropped:
        made["keep"] = case.dropped["keep"]
    return made


def bias_values(bias: Any, shape: Shape) -> Array:
    """A `Bias` object's values, broadcastable to [B, H, L, S]: size 1 on the axes that it does not read."""
    return np.asarray(bias.values(*grid(bias.depends, shape.scores, np.arange)))


def bias_rows(bias: biases.TableBias, shape: Shape) -> Array:
    """The row of its table for each of `bias_values`, int64 [B or 1, 1, L, S]."""
    b, _, q, k = grid(bias.depends, shape.scores, np.arange)
    rows = np.asarray(bias.rows(b, q, k))
    return np.broadcast_to(rows, (len(b), 1, shape.q_len, shape.kv_len)).astype(np.int64)


def cotangent(case: Case) -> dict[str, Array]:
    """What is multiplied with the results before they are summed and differentiated: output [B, L, H, Dv] (of a module
    [B, L, out]) in the case's dtype and lse [B, L, H]."""
    s, draws = case.shape, Draws(case.seed * 2 + 2)
    if case.config is not None:
        c = case.config
        return {"output": draws.normal((s.batch, s.q_len, c.out_dim or c.embed_dim)).astype(case.numpy_dtype)}
    output = draws.normal((s.batch, s.q_len, s.heads, s.v_head_dim)).astype(case.numpy_dtype)
    return {"output": output, "lse": draws.normal((s.batch, s.q_len, s.heads)).astype(case.lse_dtype)}


def unreached(case: Case) -> Any:
    """bool [B, S, K]: keys that no query may reach (through any head that reads them)."""
    s = case.shape
    reached: Any = case.allowed.any(axis=2).reshape(s.batch, s.kv_heads, s.heads // s.kv_heads, s.kv_len).any(axis=2)
    return ~reached.transpose(0, 2, 1)


def plant(case: Case, array: Array, number: float) -> Array:
    """`array` ([B, S, K, D], or a module's [B, S, E]) with `number` in every key that no query may reach."""
    dead = unreached(case)[..., None] if array.ndim == 4 else unreached(case).all(axis=2)[..., None]
    return np.where(dead, np.asarray(number, dtype=array.dtype), array)


def registry() -> Iterator[Case]:
    """Every case of the suite, in a fixed order."""
    from maskattn.parity import more_cases, zoo_cases

    yield from _alone()
    yield from zoo_cases.recipes()
    yield from zoo_cases.biases()
    yield from more_cases.options()
    yield from more_cases.dropped()
    yield from more_cases.planted()
    yield from more_cases.modules()
    yield from (composition(number) for number in range(COMPOSITIONS))


def _alone() -> Iterator[Case]:
    """Every mask by itself, on three shapes (grouped, full and single key/value heads): all its examples in float32,
    the first in every dtype."""
    for family, cls in families().items():
        for shape_name in ALONE:
            shape = SHAPES[shape_name]
            for variant, mask in enumerate(cls.examples(shape, Draws(f"{family}/{shape_name}"))):
                for dtype in DTYPES if not variant else ("float32",):
                    name = f"{family}/{shape_name}/{dtype}/{variant}"
                    tags = frozenset({"smoke"}) if shape_name == "square" and not variant else frozenset()
                    yield Case(name, family, shape, dtype, mask, seed=Draws(name).integer(0, 1 << 30), tags=tags)


#: How many random expressions are in the registry, and the shapes and dtypes that they take in turn.
COMPOSITIONS = 48
_TURNS = ("square", "wide", "one", "tall", "square", "row", "wide", "tall")


def composition(number: int, shape_name: str | None = None, dtype: str | None = None) -> Case:
    """Case `number` of the endless list of random expressions of masks, on a shape and in a dtype of its own choice."""
    shape_name = shape_name or _TURNS[number % len(_TURNS)]
    dtype = dtype or (DTYPES[number // len(_TURNS) % len(DTYPES)] if shape_name == "square" else "float32")
    name = f"composition/{shape_name}/{dtype}/{number}"
    draws = Draws(name)
    mask = compose(SHAPES[shape_name], draws, depth=1 + number % 4)
    return Case(
        name,
        "composition",
        SHAPES[shape_name],
        dtype,
        mask,
        spread=(0.5, 2.0, 8.0)[draws.integer(0, 3)],
        seed=draws.integer(0, 1 << 30),
        tags=frozenset({"smoke"}) if number < 6 else frozenset(),
    )


def fresh(start: int = 1000) -> Iterator[Case]:
    """Random cases without end, none of them in the registry: float32, where a difference is likeliest to show."""
    number = start
    while True:
        yield composition(number, "square", "float32")
        number += 1


def select(pattern: str | None = None, tag: str | None = None) -> list[Case]:
    """The registry's cases whose id matches the shell pattern (or contains it) and that carry the tag."""
    found = []
    for case in registry():
        if pattern and not (fnmatch.fnmatch(case.id, pattern) or pattern.lower() in case.id.lower()):
            continue
        if tag is None or tag in case.tags:
            found.append(case)
    return found


def get(case_id: str) -> Case:
    """The case of this id, or a KeyError with the nearest ids."""
    import difflib

    known = _by_id(tuple(families()))
    if case_id not in known:
        near = difflib.get_close_matches(case_id, known, n=3)
        raise KeyError(
            f"case id: expected an id of the registry, got {case_id!r}; near it: {', '.join(near) or 'none'}"
        )
    return known[case_id]


@functools.lru_cache(maxsize=1)
def _by_id(_: tuple[str, ...]) -> dict[str, Case]:
    """The registry by id, made anew where the library has another mask."""
    return {case.id: case for case in registry()}


__all__ = ["DTYPES", "SHAPES", "Case", "biases", "cotangent", "fresh", "get", "inputs", "registry", "select"]
