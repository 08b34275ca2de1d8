"""The reference kernel: dense, written to be read beside the formula.

    x = softcap(scale * q.k) + bias        p = exp(x - max x) / sum exp(x - max x)        out = p v

(Vaswani et al. 2017, eq. 1.) Everything is computed in float32 (float64 for float64 inputs) and rounded once, at the
end.

What is masked out never leaks: a forbidden pair's logit is replaced before anything is computed from it, and the two
products below, with their derivatives, take a weight of exactly 0 to contribute exactly 0, whatever it meets.

There are derivatives of every order, in forward and reverse mode, however they are mixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType

from maskattn._pairs import restrict
from maskattn.attention import Call
from maskattn.biases import Bias, DenseBias, Disentangled, TableBias
from maskattn.masks import Dense, Mask, fold
from maskattn_jax import lower, tables
from maskattn_jax._linear import linear as differentiated
from maskattn_jax._mesh import automatic_inside, axis_types
from maskattn_jax._scope import own_modes
from maskattn_jax.dropout import dense, keep

#: Up to so many queries times keys are done at once; beyond, so many scores of all rows and heads, but so many queries.
_FEW, _AT_ONCE, _LEAST = 1 << 20, 1 << 22, 16


@automatic_inside
def attention(call: Call[Array]) -> tuple[Array, Array]:
    """Attend densely: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H].

    Long sequences are done some queries at a time, in memory that is linear in the lengths, as are the derivatives.
    """
    operands = call.query, call.key, call.value
    call = replace(call, mask=lower.opaque(call.mask, *operands), bias=lower.opaque(call.bias, *operands))
    if rows_at_once(call) < call.sizes[2]:
        return by_rows(call)
    dropout = call.dropout
    return _formula(
        call,
        lower.allowed(call.mask, *call.sizes),
        lower.bias(call.bias, *call.sizes),
        None if dropout is None else dense(dropout, call.sizes),
    )


def unsupported(call: Call[Array]) -> list[str]:
    """Why this kernel cannot run a call: it runs every call."""
    return []


def by_rows(
    call: Call[Array], first: tuple[Array | int, ...] = (0, 0, 0), whole: tuple[int, int, int, int] | None = None
) -> tuple[Array, Array]:
    """`attention`, `rows_at_once` queries at a time; derivatives compute the scores of those again.

    Args:
        first: the batch row, head and query of the whole call that this one begins with.
        whole: (B, H, L, S) of the whole call.
    """
    batch, heads, q_len, kv_len = call.sizes
    for node in (call.mask, call.bias):
        if node is not None:
            lower.check(node, *(whole or call.sizes))
    count = -(-q_len // max(1, rows_at_once(call)))
    rows = -(-q_len // max(1, count))
    # on a mesh every `count`-th query, so that each device has some of its own
    stride = count if AxisType.Auto in axis_types(call.query) else 1
    dropout = call.dropout
    added = _part(call.bias.array.reshape(call.bias.shape), first, call.sizes) if _is_dense(call.bias) else None

    def some(start: Array | int, query: Array, added: Array | None) -> tuple[Array, Array]:
        sizes = (batch, heads, rows, 1)
        begins = zip(sizes[:3], (first[0], first[1], first[2] + start), (1, 1, stride), strict=True)
        b, h, q = (
            (jnp.arange(n, dtype=jnp.int32) * step + begin).reshape([-1 if axis == i else 1 for i in range(4)])
            for axis, (n, begin, step) in enumerate(begins)
        )
        at = (b, h, q, jnp.arange(kv_len, dtype=jnp.int32).reshape(1, 1, 1, -1))
        allowed = None if call.mask is None else fold(call.mask, lambda part: _allowed(part, at))
        if call.bias is not None and added is None:
            added = _added(call.bias, at)
        kept = None if dropout is None else keep(dropout, *at, whole or call.sizes)
        return _formula(replace(call, query=query), allowed, added, kept)

    if count <= 1:
        return some(0, call.query, added)
    more = count * rows - q_len
    shape, axis = ((count, rows), 1) if stride == 1 else ((rows, count), 2)

    def parts(x: Array, length_axis: int) -> Array:
        """`count` parts of `rows` queries each, along a first axis."""
        x = jnp.pad(x, [(0, more if n == length_axis else 0) for n in range(x.ndim)])
        divided = x.reshape(*x.shape[:length_axis], *shape, *x.shape[length_axis + 1 :])
        return jnp.moveaxis(divided, length_axis + axis - 1, 0)

    query = parts(call.query, 1)
    fixed = added if added is None or added.shape[2] == 1 else None
    added = None if added is None or fixed is not None else parts(added, 2)
    remade = jax.checkpoint(lambda start, query, added: some(start, query, fixed if added is None else added))
    starts = jnp.arange(count, dtype=jnp.int32) * (rows if stride == 1 else 1)
    found = jax.lax.map(lambda given: remade(*given), (starts, query, added))
    output, lse = (jnp.moveaxis(x, 0, axis).reshape(batch, count * rows, *x.shape[3:])[:, :q_len] for x in found)
    return output, lse


def rows_at_once(call: Call[Array]) -> int:
    """How many queries are done at once: all of them, where that is no more scores than a few."""
    batch, heads, q_len, kv_len = call.sizes
    if not call.is_sized or q_len * kv_len <= _FEW:
        return q_len
    return min(q_len, max(_LEAST, _AT_ONCE // max(1, batch * heads * kv_len)))


def _formula(call: Call[Array], allowed: Array | None, added: Array | None, kept: Array | None) -> tuple[Array, Array]:
    """The output and the log-sum-exp, where arrays say what is allowed, added, and kept by dropout."""
    query, key, value, sinks = call.query, call.key, call.value, call.sinks
    dtype = jnp.float64 if query.dtype == jnp.float64 else jnp.float32
    batch, heads, q_len, kv_len = sizes = call.sizes
    kv_heads = key.shape[2]

    q = _heads_first(query.astype(dtype))
    k = _heads_first(key.astype(dtype))
    v = _heads_first(value.astype(dtype))

    allowed = jnp.ones((1, 1, 1, kv_len), bool) if allowed is None else allowed
    if added is not None:
        added = added.astype(dtype)
        allowed = allowed & (added != -jnp.inf)
    allowed = jnp.broadcast_to(allowed, (*allowed.shape[:3], kv_len))

    # head h reads key/value head h // (H // K): the queries of one group are stacked, so k and v are never repeated,
    if AxisType.Auto in axis_types(query) and heads != kv_heads:  # but on a mesh, where stacked queries are gathered
        k, v = (jnp.repeat(x, heads // max(1, kv_heads), axis=1) for x in (k, v))
        kv_heads = heads
    logits = _ungroup(pair_products(_group(q, kv_heads), k, call.precision), sizes)
    logits = jnp.where(allowed, call.scale * logits, 0)
    if call.softcap is not None:
        logits = call.softcap * jnp.tanh(logits / call.softcap)
    if added is not None:
        logits = logits + jnp.where(allowed, added, 0)
    logits = jnp.where(allowed, logits, -jnp.inf)

    highest = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
    sink = None if sinks is None else sinks.astype(dtype)[None, :, None, None]
    if sink is not None:
        highest = jnp.maximum(highest, sink)
    highest = jax.lax.stop_gradient(jnp.where(highest == -jnp.inf, 0, highest))
    e = jnp.exp(logits - highest)
    total = jnp.sum(e, axis=-1, keepdims=True)
    if sink is not None:
        total = total + jnp.exp(sink - highest)
    empty = ~jnp.any(allowed, axis=-1, keepdims=True) & (total == 0)
    total = jnp.where(empty, 1, total)
    p = jnp.where(allowed, e / total, 0)
    lse = jnp.where(empty, -jnp.inf, highest + jnp.log(total))

    if call.empty_rows == "mean" and sink is None and kv_len:
        p = jnp.where(empty, 1 / kv_len, p)
    if kept is not None:
        p = jnp.where(kept, p / (1.0 - call.dropout_rate), 0)
    out = _ungroup(weighted_sum(_group(p, kv_heads), v, call.precision), (batch, heads, q_len, v.shape[-1]))
    if call.empty_rows == "nan" and sink is None:
        out = jnp.where(empty, jnp.nan, out)
    return _heads_first(out).astype(query.dtype), jnp.swapaxes(lse[..., 0], 1, 2)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def pair_products(a: Array, b: Array, precision: str) -> Array:
    """a [..., M, D], b [..., N, D] -> [..., M, N]: the product of every row of `a` with every row of `b`.

    What is not finite stays in its own row and column; in the derivative, a pair whose cotangent is 0 contributes 0.
    """
    return jnp.matmul(a, jnp.swapaxes(b, -1, -2), precision=precision)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def weighted_sum(weights: Array, rows: Array, precision: str) -> Array:
    """weights [..., M, N], rows [..., N, D] -> [..., M, D], where a weight of exactly 0 contributes exactly +0.

    The finite parts are multiplied; the result is NaN where a weight that is not 0 meets a value that is not finite, or
    a weight is itself not finite. No result is -0.
    """
    strange_weight, strange_value = ~jnp.isfinite(weights), ~jnp.isfinite(rows)
    product = jnp.matmul(jnp.where(strange_weight, 0, weights), jnp.where(strange_value, 0, rows), precision=precision)
    met = jnp.matmul((weights != 0).astype(rows.dtype), strange_value.astype(rows.dtype)) > 0
    met = met | jnp.any(strange_weight, axis=-1, keepdims=True)
    return jnp.where(met, jnp.nan, jnp.where(product == 0, 0, product))


@dataclass(frozen=True)
class _PairProducts:
    """The derivative of `pair_products`, both ways."""

    precision: str

    def forward(self, saved: tuple[Array, Array], tangents: tuple[Array, Array]) -> Array:
        (a, b), (d_a, d_b) = saved, tangents
        return pair_products(d_a, b, self.precision) + pair_products(a, d_b, self.precision)

    def transpose(self, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
        a, b = saved
        d_b = weighted_sum(jnp.swapaxes(cotangent, -1, -2), a, self.precision)
        return weighted_sum(cotangent, b, self.precision), d_b


@dataclass(frozen=True)
class _WeightedSum:
    """The derivative of `weighted_sum`, both ways."""

    precision: str

    def forward(self, saved: tuple[Array, Array], tangents: tuple[Array, Array]) -> Array:
        (weights, rows), (d_weights, d_rows) = saved, tangents
        return weighted_sum(d_weights, rows, self.precision) + weighted_sum(weights, d_rows, self.precision)

    def transpose(self, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
        weights, rows = saved
        d_rows = weighted_sum(jnp.swapaxes(weights, -1, -2), cotangent, self.precision)
        return pair_products(cotangent, rows, self.precision), d_rows


@pair_products.defjvp
@own_modes
def _(precision: str, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    output = pair_products(*primals, precision)
    return output, differentiated(_PairProducts(precision), primals, tangents, output)


@weighted_sum.defjvp
@own_modes
def _(precision: str, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    output = weighted_sum(*primals, precision)
    return output, differentiated(_WeightedSum(precision), primals, tangents, output)


def _allowed(mask: Mask, at: tuple[Array, ...]) -> Array:
    """Where one part of a mask's expression allows, rank 4, on the axes that it reads."""
    if not isinstance(mask, Dense):
        return _rank_4(mask.allowed(*restrict(mask, *at)))
    array = mask.keep.reshape(mask.shape)
    for axis, index in enumerate(at[:3]):
        if array.shape[axis] > 1 and (axis == 2 or array.shape[axis] != index.size):
            array = jnp.take(array, index.reshape(-1), axis=axis, mode="fill", fill_value=False)
    return array


def _added(bias: Bias, at: tuple[Array, ...]) -> Array:
    """A bias that is no DenseBias, rank 4, on the axes that it reads."""
    if isinstance(bias, Disentangled):  # which a device may have the part of that is its own
        sizes = max(bias.of_queries.shape[0], bias.of_keys.shape[0]), bias.of_queries.shape[1]
        at = (*(x - x.reshape(-1)[0] if x.size == n else x for x, n in zip(at[:2], sizes, strict=True)), *at[2:])
    b, h, q, k = restrict(bias, *at)
    if isinstance(bias, TableBias) and bias.table.shape[1] in (1, at[1].size):
        return tables.look_up(bias.table, _rank_4(bias.rows(b, q, k)))
    return _rank_4(bias.values(b, h, q, k))


def _is_dense(bias: Bias | None) -> TypeGuard[DenseBias]:
    return isinstance(bias, DenseBias)


def _part(array: Array, first: tuple[Array | int, ...], sizes: tuple[int, int, int, int]) -> Array:
    """An array [B or 1, H or 1, L or 1, S or 1] of the whole call, where this one is."""
    for axis, (begin, size) in enumerate(zip(first, sizes, strict=False)):
        if array.shape[axis] not in (1, size):
            array = jax.lax.dynamic_slice_in_dim(array, begin, size, axis)
    return array


def _rank_4(x: Any) -> Array:
    x = jnp.asarray(x)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _heads_first(x: Array) -> Array:
    """[B, length, heads, D] <-> [B, heads, length, D]."""
    return jnp.swapaxes(x, 1, 2)


def _group(x: Array, kv_heads: int) -> Array:
    """[B, H, L, N] -> [B, K, H // K * L, N]: the rows that read one key/value head, one after the other."""
    batch, heads, length, width = x.shape
    return x.reshape(batch, kv_heads, heads // max(kv_heads, 1) * length, width)


def _ungroup(x: Array, shape: tuple[int, ...]) -> Array:
    """[B, K, H // K * L, N] -> [B, H, L, N]."""
    return x.reshape(shape)
