"""The blockwise kernel: tiles of queries and keys, visited only where the mask leaves something, in linear memory.

`plan` says which tiles, `arrays` reads and writes them, `tile` computes the scores of
one, `forward` and `backward` walk them. Nothing of L x S entries is made (but the gradient of a
bias that has so many).

What is masked out never leaks across tiles that the mask empties, nor, from keys and values that no query of a tile may
attend to, within one; between the pairs of a mixed tile that holds both, only what is finite is kept apart.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from maskattn import blocks
from maskattn.attention import Call
from maskattn_jax import lower
from maskattn_jax.dropout import Dropout
from maskattn_jax.kernels.blockwise.arrays import Operands, operands
from maskattn_jax.kernels.blockwise.backward import backward, float_leaves
from maskattn_jax.kernels.blockwise.forward import forward
from maskattn_jax.kernels.blockwise.plan import FEW, Layout, planned
from maskattn_jax.kernels.blockwise.shards import Origin, divided, manual_axes, vary
from maskattn_jax.kernels.blockwise.tile import Conditions, Options, padded

Array = Any


def attention(call: Call) -> tuple[Array, Array]:
    """Attend by tiles. (Bridge: this file's own form comes next.)"""
    with blocks.forcing(*call.blocks) if call.blocks else contextlib.nullcontext():
        arrays = (call.query, call.key, call.value, call.mask, call.bias, call.sinks)
        options = {name: getattr(call, name) for name in ("scale", "softcap", "dropout", "empty_rows", "precision")}
        return _attend(*arrays, **options)


def unsupported(call: Call) -> list[str]:
    """Why this kernel cannot run a call. (Bridge.)"""
    arrays = (call.query, call.key, call.value, call.mask, call.bias, call.sinks)
    return _unsupported(*arrays, empty_rows=call.empty_rows, dropout=call.dropout)


def _attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    bias: Any,
    sinks: Array | None,
    *,
    scale: float,
    softcap: float | None,
    dropout: Dropout | None,
    empty_rows: str,
    precision: str,
) -> tuple[Array, Array]:
    """Attend by tiles: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H].

    `mask` (True = may attend) and `bias` are objects bound to JAX, or None. `precision` names a `jax.lax.Precision`.
    """
    whole = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    for node in (mask, bias):
        if node is not None:
            lower.check(node, *whole)
    options = Options(scale, softcap, empty_rows, precision)
    floats, _ = float_leaves(bias)

    def run(query: Array, key: Array, value: Array, sinks: Any, rest: Any, origin: Origin) -> tuple[Array, Array]:
        floats, mask, bias, dropout = rest
        tiles, plan = planned(mask, query, key, whole, origin)
        given = (query, key, value, floats, sinks, (mask, bias, dropout, plan, origin))
        # inside a shard_map: what every device has whole varies like the rest from here on
        return _attention(tiles, options, *vary(given, manual_axes(given)))

    return divided(run, query, key, value, sinks, (floats, mask, bias, dropout))


def _unsupported(
    query: Array, key: Array, value: Array, mask: Any, bias: Any, sinks: Array | None, **options: Any
) -> list[str]:
    """Why this kernel cannot run a call: an average over all keys is what it exists to avoid."""
    if options["empty_rows"] == "mean" and sinks is None:
        return ['empty_rows "mean" averages all values: reference and exact have it']
    return []


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(*arguments: Any) -> tuple[Array, Array]:
    output, lse = _forward(*arguments)
    return output.astype(arguments[2].dtype), lse


@partial(jax.jit, static_argnums=(0, 1))
def _forward(
    tiles: Layout, options: Options, query: Array, key: Array, value: Array, floats: Any, sinks: Any, rest: Any
) -> tuple[Array, Array]:
    given, conditions = _prepared(tiles, query, key, value, floats, rest)
    return forward(tiles, options, given, conditions, sinks, rest[3])


def _attention_forward(tiles: Layout, options: Options, *arguments: Any) -> tuple[tuple[Array, Array], Any]:
    output, lse = _forward(tiles, options, *arguments)
    return (output.astype(arguments[0].dtype), lse), (arguments, output, lse)


def _attention_backward(tiles: Layout, options: Options, saved: Any, cotangents: tuple[Array, Array]) -> Any:
    return (*_gradients(tiles, options, *saved, *cotangents), None)


_attention.defvjp(_attention_forward, _attention_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(*arguments: Any) -> tuple[Any, ...]:
    return _gradients_jit(*arguments)


@partial(jax.jit, static_argnums=(0, 1))
def _gradients_jit(
    tiles: Layout, options: Options, arguments: Any, output: Array, lse: Array, d_output: Array, d_lse: Array
) -> tuple[Any, ...]:
    query, key, value, floats, sinks, rest = arguments
    tiles = replace(tiles, parts=(1, 1))
    given, conditions = _prepared(tiles, query, key, value, floats, rest)
    found = backward(tiles, options, given, conditions, sinks, rest[3], output, lse, d_output, d_lse)
    d_bias = [_unpadded(gradient, leaf) for gradient, leaf in zip(found.bias, floats, strict=True)]
    like = zip((found.query, found.key, found.value), (query, key, value), strict=True)
    d_sinks = None if found.sinks is None else found.sinks.astype(sinks.dtype)
    return (*(gradient.astype(x.dtype) for gradient, x in like), d_bias, d_sinks)


def _no_second_derivative(*arguments: Any) -> Any:
    raise NotImplementedError('kernel="blockwise" has no second derivatives; kernel="reference" has')


_gradients.defvjp(_no_second_derivative, _no_second_derivative)


def _prepared(
    tiles: Layout, query: Array, key: Array, value: Array, floats: Any, rest: Any
) -> tuple[Operands, Conditions]:
    mask, bias, dropout, _, origin = rest
    dirty = None
    if tiles.q_len > FEW:
        # 0 times a number is 0 but for what is not finite
        dirty = ~jnp.isfinite(sum(jnp.sum(x * 0, dtype=jnp.float32) for x in (key, value)))
    bias = float_leaves(bias)[1](floats)
    conditions = Conditions(padded(mask, tiles), padded(bias, tiles), dropout, dirty, origin)
    return operands(tiles, query, key, value), conditions


def _unpadded(gradient: Array, leaf: Array) -> Array:
    """The gradient of an array as it was given, from that of it padded to whole tiles."""
    if gradient.shape != leaf.shape:
        shape = (1,) * (gradient.ndim - leaf.ndim) + leaf.shape
        gradient = gradient[tuple(slice(size) for size in shape)].reshape(leaf.shape)
    return gradient.astype(leaf.dtype)
