"""The backward pass of the blockwise kernel: each tile's weights once more, from the log-sum-exp.

With p = exp(x - lse), dp = dO v and delta = sum(dO O) - dlse for each query,

    ds = p (dp - delta)   dq = scale ds k   dk = scale ds^T q   dv = p^T dO   dbias = ds   dsink = -sum(p_sink delta)

(Dao et al. 2022, appendix B.4; a cotangent of the log-sum-exp adds p dlse to ds.) The gradients of keys and values are
summed transposed, [D, S]: XLA's CPU backend has no fast product of a transposed left operand.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from maskattn.biases import DenseBias
from maskattn_jax._varying import manual_axes, vary
from maskattn_jax.kernels.blockwise import arrays
from maskattn_jax.kernels.blockwise.tile import bias_values, cleared, kept, scores, window
from maskattn_jax.kernels.blockwise.tiled_call import TiledCall, float_leaves, group_heads, ungroup_heads
from maskattn_jax.types import DType


class CallGradients(NamedTuple):
    """Of query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv], each float leaf of the bias, and sinks [H]."""

    query: Array
    key: Array
    value: Array
    bias: list[Array]
    sinks: Array | None


class _Queries(NamedTuple):
    """What a row of tiles knows of its queries: [rows, columns, group * q_block, D or Dv], and per query."""

    query: Array
    d_output: Array
    query_t: Array  # transposed
    d_output_t: Array
    lse: Array  # [rows, columns, group, q_block], 0 where the row is empty
    delta: Array
    empty: Array


class _Sums(NamedTuple):
    """The gradients so far: of all queries as `group_heads` has them (a row of tiles adds its own when it is done), of
    all keys [B, K, D, S] and values [B, K, Dv, S], of the bias.
    """

    query: Array
    key: Array
    value: Array
    bias: list[Array]


def gradients(tiled: TiledCall, output: Array, lse: Array, d_output: Array, d_lse: Array) -> CallGradients:
    """The gradients, in the dtype of the computation, from what the forward pass returned and its cotangents."""
    tiling, dtype, bias = tiled.tiling, tiled.dtype, tiled.conditions.bias
    d_sinks = None
    if tiled.sinks is not None:
        _, shift, delta = _from_output(output, d_output.astype(dtype), lse, d_lse.astype(dtype))
        d_sinks = -jnp.sum(jnp.exp(tiled.sinks.astype(dtype) - shift) * delta, axis=(0, 1))
    per_query = [group_heads(tiling, x) for x in (output, d_output, lse[..., None], d_lse[..., None])]
    axes = manual_axes((tiled.query, tiled.key, tiled.value))
    start = _Sums(
        jnp.zeros(tiled.query.shape, dtype),
        _transposed_zeros(tiled.key, dtype),
        _transposed_zeros(tiled.value, dtype),
        [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in float_leaves(bias)[0]],
    )

    def attend(at: arrays.Row, sums: _Sums) -> _Sums:
        queries = [_queries(tiled, per_query, part) for part in at.parts]
        d_queries, rest = [vary(jnp.zeros_like(one.query), axes) for one in queries], sums

        def step(parts: list[arrays.Part], carry: tuple[list[Array], _Sums]) -> tuple[list[Array], _Sums]:
            d_queries, sums = list(carry[0]), carry[1]
            for i, part in enumerate(parts):
                d_queries[i], sums = _step(tiled, part, queries[i], d_queries[i], sums)
            return d_queries, sums

        d_queries, rest = arrays.visit(tiled, at, step, (d_queries, rest))
        whole = sums.query
        scale = jnp.asarray(tiled.options.scale, dtype)
        for part, one, d_query in zip(at.parts, queries, d_queries, strict=True):
            # a negative scale would make 0 -0
            nothing = (d_query == 0) | one.empty.reshape(*d_query.shape[:-1], 1)
            d_query = jnp.where(nothing, 0, d_query * scale)
            whole = arrays.put_query_tile(tiled, whole, d_query, part)
        return rest._replace(query=whole)

    sums = arrays.each_row(tiling, attend, vary(start, axes))
    d_key, d_value = (x[..., : tiling.kv_len].transpose(0, 3, 1, 2) for x in (sums.key, sums.value))
    return CallGradients(ungroup_heads(tiling, sums.query), d_key, d_value, sums.bias, d_sinks)


def _queries(tiled: TiledCall, per_query: list[Array], part: arrays.Part) -> _Queries:
    query, output, d_output, *rest = (arrays.query_tile(tiled, x, part) for x in (tiled.query, *per_query))
    lse, d_lse = (x[..., 0] for x in rest)
    query = query * jnp.asarray(tiled.options.scale, tiled.dtype)
    d_output, shift, delta = _from_output(output, d_output, lse, d_lse)
    empty = lse == -jnp.inf
    # 0 times a query that is not finite would be NaN in the gradients of keys that it may not attend to
    attending = jnp.where(empty[..., None], 0, query)
    query_t, d_output_t = (jnp.swapaxes(x, -1, -2) for x in (attending, d_output))
    shift, delta, empty = (x.reshape(tiled.tiling.tile) for x in (shift, delta, empty))
    return _Queries(query, d_output, query_t, d_output_t, shift, delta, empty)


def _from_output(output: Array, d_output: Array, lse: Array, d_lse: Array) -> tuple[Array, Array, Array]:
    """(d_output, lse, delta = sum(d_output * output) - d_lse), each 0 in rows that attend to nothing."""
    empty = lse == -jnp.inf
    d_output = jnp.where(empty[..., None], 0, d_output)
    delta = jnp.where(empty, 0, jnp.sum(d_output * output, axis=-1) - d_lse)
    return d_output, jnp.where(empty, 0, lse), delta


def _transposed_zeros(x: Array, dtype: DType) -> Array:
    """[B, S, K, D] -> [B, K, D, S]."""
    batch, length, heads, width = x.shape
    return jnp.zeros((batch, heads, width, length), dtype)


def _step(tiled: TiledCall, part: arrays.Part, queries: _Queries, d_query: Array, sums: _Sums) -> tuple[Array, _Sums]:
    """The gradients with those of one step of a tile added: of its queries, and of all the rest."""
    place, width = part.place, tiled.step_width
    flat, precision = (*tiled.tiling.flat, width), tiled.options.precision
    key, value = arrays.key_tiles(tiled, part, width)
    logits, slope = scores(tiled, place, queries.query, key)
    p = jnp.exp(logits - queries.lse[..., None])
    dp = jnp.einsum("...qd,...kd->...qk", queries.d_output, value, precision=precision).reshape(p.shape)
    factor = kept(tiled, place, width)
    weights = p
    if factor is not None:
        factor = factor.astype(p.dtype)
        weights, dp = p * factor, dp * factor
    ds = p * (dp - queries.delta[..., None])
    raw = ds if slope is None else ds * (1 - slope * slope)
    ds, raw = (jnp.where(p == 0, 0, x) for x in (ds, raw))  # whatever is in a place that is not attended
    key = cleared(tiled, key, p, 0)
    d_query = d_query + jnp.einsum("...qk,...kd->...qd", raw.reshape(flat), key, precision=precision)
    d_key_t, d_value_t = (
        jnp.einsum("...dq,...qk->...dk", x, w.reshape(flat), precision=precision)
        for x, w in ((queries.query_t, raw), (queries.d_output_t, weights))
    )
    starts = (place.row, part.kv_column, 0, place.key)
    return d_query, _Sums(
        sums.query,
        arrays.add_at(sums.key, d_key_t, starts),
        arrays.add_at(sums.value, d_value_t, starts),
        _bias_sums(tiled, place, ds, sums.bias),
    )


def _bias_sums(tiled: TiledCall, place: arrays.Place, ds: Array, sums: list[Array]) -> list[Array]:
    """The gradients of the bias's arrays with those of one tile added; no array of L x S entries but the bias's own."""
    bias, width = tiled.conditions.bias, ds.shape[-1]
    floats, rebuild = float_leaves(bias)
    if not floats:
        return sums
    if isinstance(bias, DenseBias):
        starts, sizes = window(tiled, floats[0].shape, place, width)
        d_values = ds.reshape(ds.shape[0], -1, *ds.shape[3:])
        axes = tuple(axis for axis, size in enumerate(floats[0].shape) if size == 1)
        part = jnp.sum(d_values, axis=axes, keepdims=True).reshape(sizes).astype(sums[0].dtype)
        return [arrays.add_at(sums[0], part, starts)]
    values, pull = jax.vjp(lambda floats: bias_values(tiled, rebuild(floats), place, width), floats)
    axes = tuple(axis for axis, size in enumerate(values.shape) if size == 1)
    (parts,) = pull(jnp.sum(ds, axis=axes, keepdims=True).astype(values.dtype))
    return [total + part.astype(total.dtype) for total, part in zip(sums, parts, strict=True)]
