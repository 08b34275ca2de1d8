"""The backward pass of the blockwise kernel: each tile's weights once more, from the log-sum-exp.

With p = exp(x - lse), dp = dO v and delta = sum(dO O) - dlse for each query,

    ds = p (dp - delta)   dq = scale ds k   dk = scale ds^T q   dv = p^T dO   dbias = ds   dsink = -sum(p_sink delta)

(Dao et al. 2022, appendix B.4; a cotangent of the log-sum-exp adds p dlse to ds.) The gradients of keys and values are
summed transposed, [D, S]: XLA's CPU backend has no fast product of a transposed left operand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maskattn.biases import Bias, DenseBias
from maskattn_jax.kernels.blockwise.arrays import (
    Operands,
    Part,
    computed_in,
    group_heads,
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
from maskattn_jax.kernels.blockwise.tile import Conditions, Options, Place, add_at, bias_values, kept, scores, window

Array = Any


class Gradients(NamedTuple):
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


def backward(
    layout: Layout,
    options: Options,
    given: Operands,
    conditions: Conditions,
    sinks: Array | None,
    plan: Any,
    output: Array,
    lse: Array,
    d_output: Array,
    d_lse: Array,
) -> Gradients:
    """The gradients, in the dtype of the computation, from what the forward pass returned and its cotangents."""
    dtype = computed_in(given.query)
    d_sinks = None
    if sinks is not None:
        _, shift, delta = _from_output(output, d_output.astype(dtype), lse, d_lse.astype(dtype))
        d_sinks = -jnp.sum(jnp.exp(sinks.astype(dtype) - shift) * delta, axis=(0, 1))
    per_query = [group_heads(layout, x) for x in (output, d_output, lse[..., None], d_lse[..., None])]
    floats, rebuild = float_leaves(conditions.bias)
    axes = manual_axes(given)
    start = _Sums(
        jnp.zeros(given.query.shape, dtype),
        _transposed_zeros(given.key, dtype),
        _transposed_zeros(given.value, dtype),
        [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in floats],
    )

    def attend(sums: _Sums, number: Array) -> tuple[_Sums, None]:
        at = row(layout, number)
        queries = [_queries(layout, options, given.query, per_query, part, dtype) for part in at.parts]
        d_queries, rest = [vary(jnp.zeros_like(one.query), axes) for one in queries], sums
        for steps in plan:

            def step(parts: list[Part], carry: Any, steps: Steps = steps) -> Any:
                d_queries, sums = list(carry[0]), carry[1]
                for i, part in enumerate(parts):
                    d_queries[i], sums = _step(
                        layout, options, conditions, given, part, queries[i], d_queries[i], sums, steps, floats, rebuild
                    )
                return d_queries, sums

            d_queries, rest = visit(layout, steps, conditions.origin, at, step, (d_queries, rest))
        whole = sums.query
        for part, one, d_query in zip(at.parts, queries, d_queries, strict=True):
            # a negative scale would make an empty row -0
            d_query = jnp.where(
                one.empty.reshape(*d_query.shape[:-1], 1), 0, d_query * jnp.asarray(options.scale, dtype)
            )
            whole = put_query_tile(layout, whole, d_query, part)
        return rest._replace(query=whole), None

    sums, _ = lax.scan(attend, vary(start, axes), rows(layout))
    d_key, d_value = (x[..., : layout.kv_len].transpose(0, 3, 1, 2) for x in (sums.key, sums.value))
    return Gradients(ungroup_heads(layout, sums.query), d_key, d_value, sums.bias, d_sinks)


def _queries(
    layout: Layout, options: Options, query: Array, per_query: list[Array], part: Part, dtype: Any
) -> _Queries:
    query, output, d_output, *rest = (query_tile(layout, x, part, dtype) for x in (query, *per_query))
    lse, d_lse = (x[..., 0] for x in rest)
    query = query * jnp.asarray(options.scale, dtype)
    d_output, shift, delta = _from_output(output, d_output, lse, d_lse)
    query_t, d_output_t = (jnp.swapaxes(x, -1, -2) for x in (query, d_output))
    shift, delta, empty = (x.reshape(layout.tile) for x in (shift, delta, lse == -jnp.inf))
    return _Queries(query, d_output, query_t, d_output_t, shift, delta, empty)


def _from_output(output: Array, d_output: Array, lse: Array, d_lse: Array) -> tuple[Array, Array, Array]:
    """(d_output, lse, delta = sum(d_output * output) - d_lse), each 0 in rows that attend to nothing."""
    empty = lse == -jnp.inf
    d_output = jnp.where(empty[..., None], 0, d_output)
    delta = jnp.where(empty, 0, jnp.sum(d_output * output, axis=-1) - d_lse)
    return d_output, jnp.where(empty, 0, lse), delta


def _transposed_zeros(x: Array, dtype: Any) -> Array:
    """[B, S, K, D] -> [B, K, D, S]."""
    batch, length, heads, width = x.shape
    return jnp.zeros((batch, heads, width, length), dtype)


def float_leaves(bias: Bias | None) -> tuple[list[Array], Any]:
    """The differentiable arrays of a bias, and the function that puts others in their place."""
    leaves, structure = jax.tree.flatten(bias)
    where = [n for n, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def rebuild(floats: list[Array]) -> Any:
        replaced = list(leaves)
        for n, leaf in zip(where, floats, strict=True):
            replaced[n] = leaf
        return jax.tree.unflatten(structure, replaced)

    return [leaves[n] for n in where], rebuild


def _step(
    layout: Layout,
    options: Options,
    conditions: Conditions,
    given: Operands,
    part: Part,
    queries: _Queries,
    d_query: Array,
    sums: _Sums,
    steps: Steps,
    floats: list[Array],
    rebuild: Any,
) -> tuple[Array, _Sums]:
    width, dtype = steps.width * layout.kv_block, queries.query.dtype
    place = part.place
    flat = (layout.rows, layout.columns, layout.group * layout.q_block, width)
    key, value = (key_tile(layout, x, part, width, dtype) for x in (given.key, given.value))
    found = scores(layout, options, conditions, place, queries.query, key, value, steps.masked)
    p = jnp.exp(found.logits - queries.lse[..., None])
    dp = jnp.einsum("...qd,...kd->...qk", queries.d_output, found.value, precision=options.precision).reshape(p.shape)
    factor = kept(layout, conditions, place, width)
    weights = p
    if factor is not None:
        factor = factor.astype(dtype)
        weights, dp = p * factor, dp * factor
    ds = p * (dp - queries.delta[..., None])
    if found.allowed is not None:
        ds = jnp.where(found.allowed, ds, 0)
    raw = ds if found.slope is None else ds * (1 - found.slope * found.slope)
    d_query = d_query + jnp.einsum("...qk,...kd->...qd", raw.reshape(flat), found.key, precision=options.precision)
    d_key_t, d_value_t = (
        jnp.einsum("...dq,...qk->...dk", x, w.reshape(flat), precision=options.precision)
        for x, w in ((queries.query_t, raw), (queries.d_output_t, weights))
    )
    starts = (place.row, part.kv_column, 0, place.key)
    return d_query, _Sums(
        sums.query,
        add_at(sums.key, d_key_t, starts),
        add_at(sums.value, d_value_t, starts),
        _bias_sums(layout, conditions, place, ds, sums.bias, floats, rebuild),
    )


def _bias_sums(
    layout: Layout,
    conditions: Conditions,
    place: Place,
    ds: Array,
    sums: list[Array],
    floats: list[Array],
    rebuild: Any,
) -> list[Array]:
    """The gradients of the bias's arrays with those of one tile added; no array of L x S entries but the bias's own."""
    bias, origin = conditions.bias, conditions.origin
    if bias is None or not floats:
        return sums
    if isinstance(bias, DenseBias):
        starts, sizes = window(layout, floats[0].shape, origin, place, ds.shape[-1])
        d_values = ds.reshape(ds.shape[0], -1, *ds.shape[3:])
        axes = tuple(axis for axis, size in enumerate(floats[0].shape) if size == 1)
        part = jnp.sum(d_values, axis=axes, keepdims=True).reshape(sizes).astype(sums[0].dtype)
        return [add_at(sums[0], part, starts)]
    values, pull = jax.vjp(lambda floats: bias_values(layout, rebuild(floats), origin, place, ds.shape[-1]), floats)
    axes = tuple(axis for axis, size in enumerate(values.shape) if size == 1)
    (parts,) = pull(jnp.sum(ds, axis=axes, keepdims=True).astype(values.dtype))
    return [total + part.astype(total.dtype) for total, part in zip(sums, parts, strict=True)]
