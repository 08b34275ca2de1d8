"""The calls of the kernels: their grids, what of each array a program is shown, and what they are given besides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from maskattn.biases import Additive, ALiBi
from maskattn_jax._varying import manual_axes, vary
from maskattn_jax.kernels.blockwise.pallas import backward, forward
from maskattn_jax.kernels.blockwise.pallas.lists import Lists, lists_of
from maskattn_jax.kernels.blockwise.pallas.operands import Given, operands
from maskattn_jax.kernels.blockwise.pallas.pairs import Job
from maskattn_jax.kernels.blockwise.pallas.sides import Side
from maskattn_jax.kernels.blockwise.sizes import LEAST, Sizes, Tile, power_of_two
from maskattn_jax.kernels.blockwise.tiled_call import Conditions, Options
from maskattn_jax.kernels.blockwise.tiling import CallTiling
from maskattn_jax.types import DType

#: Biases that are finite wherever they are.
_FINITE = (ALiBi, Additive)


@dataclass(frozen=True)
class Prepared:
    """A call as its kernels take it: what is static of it, and `arrays`, the operands of `Given`."""

    tiling: CallTiling
    options: Options
    conditions: Conditions
    given: Given
    depth: tuple[int, int]
    v_depth: tuple[int, int]

    @classmethod
    def of(
        cls,
        tiling: CallTiling,
        options: Options,
        query: Array,
        value: Array,
        sinks: Array | None,
        conditions: Conditions,
        bias: Any,
    ) -> Prepared:
        """The call of these arrays; `bias` is the one of `conditions`, its arrays those that are differentiated."""
        given = Given(conditions.mask, bias, conditions.dropout, sinks, conditions.origin)
        depth, v_depth = ((x.shape[-1], max(LEAST, power_of_two(x.shape[-1]))) for x in (query, value))
        return cls(tiling, options, conditions, given, depth, v_depth)

    @property
    def sizes(self) -> Sizes:
        return self.conditions.steps

    def job(self, tile: Tile, lists: Lists | None) -> tuple[Job, list[Array]]:
        """What a kernel of these tiles is made for, and its further operands."""
        arrays, structure = operands(self.given)
        queries, keys = Side(self.tiling.q_len, tile.q), Side(self.tiling.kv_len, tile.k)
        bias = self.given.bias
        job = Job(
            self.tiling,
            self.options,
            structure,
            queries,
            keys,
            self.depth,
            self.v_depth,
            lists is not None and lists.ranges,
            has_mask=self.given.mask is not None,
            has_bias=bias is not None,
            may_forbid=bias is not None and not isinstance(bias, _FINITE),
            interpret=self.sizes.interpret,
        )
        return job, arrays

    def lists(self, tile: Tile, *, by_key: bool, shared: bool | None = None) -> Lists:
        """What programs walk; `shared`: one order for all heads, as dk/dv needs it."""
        shared = by_key if shared is None else shared
        return lists_of(self.given.mask, self.tiling, self.given.origin, tile, by_key=by_key, shared=shared)


def run_forward(prepared: Prepared, query: Array, key: Array, value: Array) -> tuple[Array, Array, Array | None]:
    """(output [B, L, H, Dv] in the dtype of the query, lse [B, L, H], `_found` [B, L, H] or None)."""
    tile, (batch, q_len, heads, _) = prepared.sizes.forward, query.shape
    lists = prepared.lists(tile, by_key=False)
    job, arrays = prepared.job(tile, lists)
    numbers = [((batch, heads, q_len), jnp.float32, numbers_of(q_len))] * (2 if job.has_bias else 1)
    results = call(
        partial(forward.forward_kernel, job=job),
        (lists.rows.shape[2], heads, batch),
        [
            *plane(lists),
            (query, rows_of(q_len, prepared.depth)),
            (key, rows_of(key.shape[1], prepared.depth, heads // key.shape[2])),
            (value, rows_of(key.shape[1], prepared.v_depth, heads // key.shape[2])),
            *whole(arrays),
        ],
        [((batch, q_len, heads, value.shape[-1]), query.dtype, rows_of(q_len, prepared.v_depth)), *numbers],
        tile,
        prepared.sizes.interpret,
    )
    output, lse, *found = results
    return output, jnp.swapaxes(lse, 1, 2), jnp.swapaxes(found[0], 1, 2) if found else None


def run_backward(
    prepared: Prepared, query: Array, key: Array, value: Array, d_output: Array, lse: Array, delta: Array
) -> tuple[Array, Array, Array]:
    """The gradients of query, key and value, in their dtypes; lse, delta: float32 [B, H, L]."""
    batch, q_len, heads, _ = query.shape
    kv_len, kv_heads = key.shape[1:3]
    group = heads // kv_heads
    tile = prepared.sizes.dq
    lists = prepared.lists(tile, by_key=False)
    job, arrays = prepared.job(tile, lists)
    (dq,) = call(
        partial(backward.dq_kernel, job=job),
        (lists.rows.shape[2], heads, batch),
        [*plane(lists), *of_query_heads(prepared, (query, key, value, d_output, lse, delta)), *whole(arrays)],
        [(query.shape, query.dtype, rows_of(q_len, prepared.depth))],
        tile,
        prepared.sizes.interpret,
    )
    tile = prepared.sizes.dkv
    lists = prepared.lists(tile, by_key=True)
    job, arrays = prepared.job(tile, lists)
    dk, dv = call(
        partial(backward.dkv_kernel, job=job, group=group, planes=lists.rows.shape[1]),
        (lists.rows.shape[2], kv_heads, batch),
        [
            *plane(lists, group),
            (query, rows_of(q_len, prepared.depth, together=group)),
            (key, rows_of(kv_len, prepared.depth)),
            (value, rows_of(kv_len, prepared.v_depth)),
            (d_output, rows_of(q_len, prepared.v_depth, together=group)),
            (lse, numbers_of(q_len, group)),
            (delta, numbers_of(q_len, group)),
            *whole(arrays),
        ],
        [(x.shape, x.dtype, rows_of(kv_len, width)) for x, width in ((key, prepared.depth), (value, prepared.v_depth))],
        tile,
        prepared.sizes.interpret,
    )
    return dq, dk, dv


Operand = tuple[Any, pl.BlockSpec]


def call(
    kernel: Callable[..., None],
    grid: tuple[int, int, int],
    given: Sequence[Operand],
    results: Sequence[tuple[tuple[int, ...], DType, pl.BlockSpec]],
    tile: Tile,
    interpret: bool,
) -> list[Array]:
    """A kernel over a grid of (rows of tiles, heads, batch rows)."""
    arrays = [jnp.asarray(x) for x, _ in given]
    axes = manual_axes(arrays)
    shapes = [_shape(shape, dtype, axes) for shape, dtype, _ in results]
    # a name that says what it is in a profile
    kernel.__name__ = f"maskattn_{kernel.func.__name__}"  # type: ignore[attr-defined]
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[spec for _, spec in given],
        out_specs=[spec for _, _, spec in results],
        out_shape=shapes,
        compiler_params=plt.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name=kernel.__name__,
    )(*vary(arrays, axes))


def _shape(shape: tuple[int, ...], dtype: DType, axes: tuple[str, ...]) -> jax.ShapeDtypeStruct:
    """A result's shape, which inside a `shard_map` says over which axes it varies."""
    if not axes:
        return jax.ShapeDtypeStruct(shape, dtype)
    varying = jax.sharding.ManualAxisType(varying=frozenset(axes))
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)


def whole(arrays: Sequence[Array]) -> list[Operand]:
    """Arrays that every program is shown whole."""
    return [(x, pl.BlockSpec(x.shape, lambda *_, rank=x.ndim: (0,) * rank)) for x in arrays]


def of_query_heads(prepared: Prepared, tensors: Sequence[Array]) -> list[Operand]:
    """query, key, value, d_output, lse and delta as the program of one query head is shown them."""
    query, key, value, d_output, lse, delta = tensors
    q_len, kv_len, group = query.shape[1], key.shape[1], query.shape[2] // key.shape[2]
    return [
        (query, rows_of(q_len, prepared.depth)),
        (key, rows_of(kv_len, prepared.depth, group)),
        (value, rows_of(kv_len, prepared.v_depth, group)),
        (d_output, rows_of(q_len, prepared.v_depth)),
        (lse, numbers_of(q_len)),
        (delta, numbers_of(q_len)),
    ]


def plane(lists: Lists, group: int | None = None) -> list[Operand]:
    """The rows and entries that a program reads; `group`: those of all query heads of its key/value head."""
    by_b, by_h = (size > 1 for size in lists.rows.shape[:2])
    together = None if group is None else group if by_h else 1

    def spec(x: Any) -> pl.BlockSpec:
        block = (None, together, *x.shape[2:])
        return pl.BlockSpec(block, lambda i, h, b: (b if by_b else 0, h if by_h else 0, 0, 0))

    return [(lists.rows, spec(lists.rows)), (lists.index, spec(lists.index))]


def rows_of(length: int, width: tuple[int, int], group: int = 1, *, together: int = 1) -> pl.BlockSpec:
    """All rows of one head of [B, length, heads, width]; `group`: how many query heads read it; `together`: of so many
    heads that are next to each other.
    """
    heads = None if together == 1 else together
    return pl.BlockSpec((None, length, heads, width[1]), lambda i, h, b: (b, 0, _head(h, group), 0))


def numbers_of(length: int, together: int = 1, more: tuple[int, ...] = ()) -> pl.BlockSpec:
    """The numbers of all rows of one head of [B, heads, length, *more]."""
    block = (None, None if together == 1 else together, length, *more)
    return pl.BlockSpec(block, lambda i, h, b: (b, h, 0, *[0] * len(more)))


def _head(h: Any, group: int) -> Any:
    return h if group == 1 else lax.div(h, jnp.int32(group))
