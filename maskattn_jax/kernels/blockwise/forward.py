"""The forward pass of the blockwise kernel: for each row of tiles, a softmax kept up to date as its keys are visited.

    m' = max(m, max x)    e = exp(x - m')    l' = l exp(m - m') + sum e    o' = o exp(m - m') + e v

(Milakov and Gimelshein 2018, algorithm 3; Rabe and Staats 2021; Dao et al. 2022, algorithm 1.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from maskattn_jax.kernels.blockwise.arrays import (
    Operands,
    Part,
    computed_in,
    key_tile,
    put_query_tile,
    query_tile,
    row,
    rows,
    ungroup_heads,
    visit,
)
from maskattn_jax.kernels.blockwise.plan import Layout, Steps
from maskattn_jax.kernels.blockwise.shards import manual_axes, vary
from maskattn_jax.kernels.blockwise.tile import Conditions, Options, kept, scores, slice_at

Array = Any


class _Sums(NamedTuple):
    """The softmax of a tile so far: its largest logit and denominator [rows, columns, group, q_block], its output
    [rows, columns, group * q_block, Dv] before the division.
    """

    highest: Array
    total: Array
    output: Array


def forward(
    layout: Layout, options: Options, given: Operands, conditions: Conditions, sinks: Array | None, plan: Any
) -> tuple[Array, Array]:
    """The output [B, L, H, Dv] in the dtype of the computation, and the log-sum-exp [B, L, H]."""
    dtype = computed_in(given.query)
    if sinks is not None:
        sinks = sinks.astype(dtype).reshape(-1, layout.group)
    axes = manual_axes(given)
    nothing = _Sums(
        jnp.full(layout.tile, jnp.finfo(dtype).min, dtype),
        jnp.zeros(layout.tile, dtype),
        jnp.zeros((layout.rows, layout.columns, layout.group * layout.q_block, given.value.shape[-1]), dtype),
    )
    nothing = vary(nothing, axes)

    def attend(results: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        at = row(layout, number)
        scale = jnp.asarray(options.scale, dtype)
        queries = [query_tile(layout, given.query, part, dtype) * scale for part in at.parts]
        sums = [nothing] * len(at.parts)
        for steps in plan:

            def step(parts: list[Part], sums: list[_Sums], steps: Steps = steps) -> list[_Sums]:
                each = zip(parts, queries, sums, strict=True)
                return [_step(layout, options, conditions, given, *one, steps) for one in each]

            sums = visit(layout, steps, conditions.origin, at, step, sums)
        output, lse = results
        for part, one in zip(at.parts, sums, strict=True):
            sink = None if sinks is None else slice_at(sinks, (part.place.column, 0), layout.tile[1:3])[..., None]
            found = _finish(options, one, sink)
            output, lse = (put_query_tile(layout, x, y, part) for x, y in zip((output, lse), found, strict=True))
        return (output, lse), None

    shape = given.query.shape[:-1]
    start = jnp.zeros((*shape, given.value.shape[-1]), dtype), jnp.zeros((*shape, 1), dtype)
    (output, lse), _ = lax.scan(attend, vary(start, axes), rows(layout))
    return ungroup_heads(layout, output), ungroup_heads(layout, lse)[..., 0]


def _step(
    layout: Layout,
    options: Options,
    conditions: Conditions,
    given: Operands,
    part: Part,
    query: Array,
    sums: _Sums,
    steps: Steps,
) -> _Sums:
    width = steps.width * layout.kv_block
    key, value = (key_tile(layout, x, part, width, query.dtype) for x in (given.key, given.value))
    found = scores(layout, options, conditions, part.place, query, key, value, steps.masked)
    highest = jnp.maximum(sums.highest, jnp.max(found.logits, axis=-1))
    e = jnp.exp(found.logits - highest[..., None])
    shrink = jnp.exp(sums.highest - highest)
    total = sums.total * shrink + jnp.sum(e, axis=-1)
    factor = kept(layout, conditions, part.place, width)
    e = e if factor is None else e * factor.astype(e.dtype)  # the denominator is that without dropout
    flat = (layout.rows, layout.columns, layout.group * layout.q_block)
    added = jnp.einsum("...qk,...kd->...qd", e.reshape(*flat, width), found.value, precision=options.precision)
    return _Sums(highest, total, sums.output * shrink.reshape(*flat, 1) + added)


def _finish(options: Options, sums: _Sums, sink: Array | None) -> tuple[Array, Array]:
    """The row's output [rows, columns, group * q_block, Dv] and log-sum-exp [rows, columns, group, q_block]."""
    highest, total, output = sums
    shrink = jnp.ones_like(total)
    if sink is not None:
        most = jnp.maximum(highest, sink)
        shrink = jnp.exp(highest - most)
        highest, total = most, total * shrink + jnp.exp(sink - most)
    empty = total == 0
    total = jnp.where(empty, 1, total)
    flat = (*output.shape[:-1], 1)
    output = output * (shrink / total).reshape(flat)
    instead = jnp.nan if options.empty_rows == "nan" else 0.0
    output = jnp.where(empty.reshape(flat), jnp.asarray(instead, output.dtype), output)
    return output, jnp.where(empty, -jnp.inf, highest + jnp.log(total))
