"""The blockwise kernel: tiles of queries and keys, visited only where the mask leaves something, in linear memory.

    tiling.py     how a call is divided into tiles       arrays.py      reading and writing them
    steps.py      which of them are visited, and how     tile.py        the scores of one
    shards.py     several devices                        forward.py     the walk over all steps,
    tiled_call.py what both passes compute with        backward.py    and that for the gradients

Nothing of L x S entries is made (but the gradient of a bias that has so many).

What is masked out never leaks across tiles that the mask empties, nor, from keys and values that no query of a tile may
attend to, within one; between the pairs of a mixed tile that holds both, only what is finite is kept apart.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import jax
from jax import Array

from maskattn.attention import Call
from maskattn_jax import lower
from maskattn_jax.kernels.blockwise.backward import gradients
from maskattn_jax.kernels.blockwise.forward import output_and_lse
from maskattn_jax.kernels.blockwise.shards import Origin, divided, manual_axes, vary
from maskattn_jax.kernels.blockwise.steps import cheapest, is_known
from maskattn_jax.kernels.blockwise.tiled_call import Conditions, Options, float_leaves, prepared
from maskattn_jax.kernels.blockwise.tiling import CallTiling


def attention(call: Call[Array]) -> tuple[Array, Array]:
    """Attend by tiles: query [B, L, H, D], key [B, S, K, D], value [B, S, K, Dv] -> [B, L, H, Dv], lse [B, L, H].

    `precision` names a `jax.lax.Precision`.
    """
    for node in (call.mask, call.bias):
        if node is not None:
            lower.check(node, *call.sizes)
    options = Options(call.scale, call.softcap, call.empty_rows, call.precision)

    def run(query: Array, key: Array, value: Array, sinks: Any, rest: Any, origin: Origin) -> tuple[Array, Array]:
        floats, mask, bias, dropout = rest
        tiling, kinds = cheapest(mask, query, key, call.sizes, origin, call.blocks)
        given = (query, key, value, floats, sinks, Conditions(mask, bias, dropout, kinds, origin))
        # inside a shard_map: what every device has whole varies like the rest from here on
        return _attention(tiling, options, *vary(given, manual_axes(given)))

    operands = (call.query, call.key, call.value)
    mask = call.mask if is_known(call.mask) else lower.opaque(call.mask, *operands)
    bias = lower.opaque(call.bias, *operands)
    return divided(run, *operands, call.sinks, (float_leaves(bias)[0], mask, bias, call.dropout))


def unsupported(call: Call[Array]) -> list[str]:
    """Why this kernel cannot run a call: an average over all keys is what it exists to avoid."""
    if call.empty_rows == "mean" and call.sinks is None:
        return ['empty_rows "mean" averages all values: reference and exact have it']
    return []


# Both take (tiling, options), then what `prepared` takes: query, key, value, the bias's arrays, sinks, conditions.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(*arguments: Any) -> tuple[Array, Array]:
    output, lse, _ = _forward(*arguments)
    return output.astype(arguments[2].dtype), lse


@partial(jax.jit, static_argnums=(0, 1))
def _forward(tiling: CallTiling, options: Options, *arrays: Any) -> tuple[Array, Array, Array | None]:
    return output_and_lse(prepared(tiling, options, *arrays))


def _attention_forward(tiling: CallTiling, options: Options, *arrays: Any) -> tuple[tuple[Array, Array], Any]:
    output, lse, found = _forward(tiling, options, *arrays)
    return (output.astype(arrays[0].dtype), lse), (arrays, output, lse, found)


def _attention_backward(tiling: CallTiling, options: Options, saved: Any, cotangents: tuple[Array, Array]) -> Any:
    return (*_gradients(tiling, options, *saved, *cotangents), None)


_attention.defvjp(_attention_forward, _attention_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(*arguments: object) -> tuple[Any, ...]:
    return _gradients_jit(*arguments)


@partial(jax.jit, static_argnums=(0, 1))
def _gradients_jit(
    tiling: CallTiling,
    options: Options,
    arrays: Any,
    output: Array,
    lse: Array,
    found: Array | None,
    d_output: Array,
    d_lse: Array,
) -> tuple[Any, ...]:
    if found is not None:  # gradients are linear in the cotangents
        d_output, d_lse = d_output.astype(found.dtype) / found[..., None], d_lse / found
    tiled = prepared(replace(tiling, parts=(1, 1)), options, *arrays)
    computed = gradients(tiled, output, lse, d_output, d_lse)
    *like, floats, sinks, _ = arrays
    d_arrays = (gradient.astype(x.dtype) for gradient, x in zip(computed[:3], like, strict=True))
    d_bias = [_unpadded(gradient, leaf) for gradient, leaf in zip(computed.bias, floats, strict=True)]
    return (*d_arrays, d_bias, None if computed.sinks is None else computed.sinks.astype(sinks.dtype))


def _no_second_derivative(*arguments: object) -> NoReturn:
    raise NotImplementedError('kernel="blockwise" has no second derivatives; kernel="reference" has')


_gradients.defvjp(_no_second_derivative, _no_second_derivative)


def _unpadded(gradient: Array, leaf: Array) -> Array:
    """The gradient of an array as it was given, from that of it padded to whole tiles."""
    if gradient.shape != leaf.shape:
        shape = (1,) * (gradient.ndim - leaf.ndim) + leaf.shape
        gradient = gradient[tuple(slice(size) for size in shape)].reshape(leaf.shape)
    return gradient.astype(leaf.dtype)
