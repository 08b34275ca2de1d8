"""The blockwise kernel: tiles of queries and keys, visited only where the mask leaves something, in linear memory.

    tiling.py     how a call is divided into tiles       arrays.py      reading and writing them
    steps.py      which of them are visited, and how     tile.py        the scores of one
    shards.py     several devices                        forward.py     the walk over all steps,
    tiled_call.py what both passes compute with        backward.py    and that for the gradients
    gpu.py        whether kernels of `pallas/` do that instead, on a GPU

Nothing of L x S entries is made (but the gradient of a bias that has so many).

What is masked out never leaks across tiles that the mask empties, nor, from keys and values that no query of a tile may
attend to, within one; between the pairs of a mixed tile that holds both, only what is finite is kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType

from maskattn.attention import Call
from maskattn_jax import lower
from maskattn_jax._linear import linear as differentiated
from maskattn_jax._mesh import automatic_inside, axis_types, mapped_axes
from maskattn_jax._partition import Axes, Origin, is_automatic
from maskattn_jax._scope import own_modes
from maskattn_jax._varying import manual_axes, vary
from maskattn_jax.kernels import reference
from maskattn_jax.kernels.blockwise import automatic, gpu
from maskattn_jax.kernels.blockwise.automatic import Known, Undivided
from maskattn_jax.kernels.blockwise.backward import gradients
from maskattn_jax.kernels.blockwise.forward import output_and_lse
from maskattn_jax.kernels.blockwise.own import axes_of, axes_of_bias, axes_of_floats, in_place
from maskattn_jax.kernels.blockwise.shards import divided
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
    if 0 in call.sizes:
        return _without_tiles(call)
    options, kernels = Options(call.scale, call.softcap, call.empty_rows, call.precision), gpu.kernels_of(call)

    def run(query: Array, key: Array, value: Array, sinks: Any, rest: Any, origin: Origin) -> tuple[Array, Array]:
        floats, mask, bias, dropout = rest
        tiling, steps = (
            cheapest(mask, query, key, call.sizes, origin, call.blocks)
            if kernels is None
            else kernels.tiled(mask, query, key, call.sizes)
        )
        given = (query, key, value, floats, sinks, Conditions(mask, bias, dropout, steps, origin))
        # inside a shard_map: what every device has whole varies like the rest from here on
        return _attention(tiling, options, *vary(given, manual_axes(given)))[:2]

    operands = (call.query, call.key, call.value)
    given = operands, call.sinks, call.mask, call.bias
    if is_automatic(given):
        return _over_automatic_axes(call, options, kernels)
    types = axis_types(given)
    # outside of `jax.jit` a shard_map would compute, and compile, each of its operations by itself
    outside = AxisType.Explicit in types and not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(given))
    if types == {AxisType.Auto, AxisType.Explicit} or outside or mapped_axes(given):
        return automatic_inside(attention)(call)
    mask = call.mask if is_known(call.mask) else lower.opaque(call.mask, *operands)
    bias = lower.opaque(call.bias, *operands)

    def axes() -> list[Axes]:
        of_key = [("-",)] * len(jax.tree.leaves(call.dropout))
        return [*axes_of_floats(bias), *axes_of(mask, call.sizes[0]), *axes_of_bias(bias), *of_key]

    return divided(run, *operands, call.sinks, (float_leaves(bias)[0], mask, bias, call.dropout), axes)


def _over_automatic_axes(call: Call[Array], options: Options, kernels: gpu.Kernels | None) -> tuple[Array, Array]:
    operands = (call.query, call.key, call.value)
    # a mask of data is not the program's own where every call is one of its own
    traced = any(isinstance(x, jax.core.Tracer) for x in operands)
    known = is_known(call.mask) and (traced or not jax.tree.leaves(call.mask))
    constant = Known(call.mask) if known and call.mask is not None else None
    undivided = Undivided(call.sizes, call.blocks, constant, kernels)
    mask, bias = (lower.opaque(node, *operands) for node in (call.mask, call.bias))
    start: Any = np.int32(0)
    origin, steps = Origin(start, start, start), None
    given = (*operands, float_leaves(bias)[0], call.sinks, Conditions(mask, bias, call.dropout, steps, origin))
    return _attention(undivided, options, *given)[:2]


def unsupported(call: Call[Array]) -> list[str]:
    """Why this kernel cannot run a call: an average over all keys is what it exists to avoid."""
    if not call.is_sized:
        return [f"tiles are planned for sizes that are numbers, got {call.sizes}: fused, reference and exact take any"]
    if call.empty_rows == "mean" and call.sinks is None:
        return ['empty_rows "mean" averages all values: reference and exact have it']
    return []


def _without_tiles(call: Call[Array]) -> tuple[Array, Array]:
    """A call without rows, or without keys: its rows are then empty, or see their sink alone."""
    batch, heads, q_len, _ = call.sizes
    instead = jnp.nan if call.empty_rows == "nan" and call.sinks is None else 0
    output = jnp.full((batch, q_len, heads, call.value.shape[-1]), instead, call.query.dtype)
    dtype = jnp.promote_types(call.query.dtype, jnp.float32)
    lse = jnp.full(heads, -jnp.inf, dtype) if call.sinks is None else call.sinks.astype(dtype)
    return output, jnp.broadcast_to(lse, (batch, q_len, heads))


# Both take (tiling, options), then what `prepared` takes: query, key, value, the bias's arrays, sinks, conditions.


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attention(*arguments: Any) -> tuple[Array, Array, Any]:
    """The output, the log-sum-exp, and what else the derivative needs: the output before it was rounded (None where it
    was not), and `_found`; nothing is differentiated of these.
    """
    undivided = isinstance(arguments[0], Undivided)
    output, lse, found = automatic.forward(_forward, *arguments) if undivided else _forward(*arguments)
    rounded = output.astype(arguments[2].dtype)
    return rounded, lse, (None if output.dtype == rounded.dtype else output, found)


@partial(jax.jit, static_argnums=(0, 1))
def _forward(tiling: CallTiling, options: Options, *arrays: Any) -> tuple[Array, Array, Array | None]:
    return gpu.forward(_forward_by_loops, tiling, options, *arrays)


def _forward_by_loops(tiling: CallTiling, options: Options, *arrays: Any) -> tuple[Array, Array, Array | None]:
    return output_and_lse(prepared(tiling, options, *arrays))


@_attention.defjvp
@own_modes
def _(tiling: CallTiling, options: Options, arrays: Any, tangents: Any) -> tuple[Any, Any]:
    # in training every layer is compiled: the rounds of dropout's generator, the most of it, once in each
    alone = tiling if arrays[-1].dropout is None else replace(tiling, parts=(1, 1))
    # not `_forward`: where a derivative is differentiated, the loops must not be
    rounded, lse, (output, found) = results = _attention(alone, options, *arrays)
    # of the conditions nothing is differentiated: the bias's arrays are given once more, beside them
    saved = arrays, rounded if output is None else output, lse, found
    derivative = differentiated(_Derivative(tiling, options), saved, tangents[:-1], (rounded, lse))
    rest = vary(jax.tree.map(jnp.zeros_like, results[2]), manual_axes(results[2]))
    return results, (*derivative, rest)


@dataclass(frozen=True)
class _Derivative:
    """Of `_attention`: by tiles in reverse mode, by the formula, some queries at a time, in forward mode."""

    tiling: CallTiling
    options: Options

    def forward(self, saved: Any, tangents: Any) -> Any:
        arrays, *_ = saved

        def formula(*inputs: Any) -> Any:
            return _formula(self.tiling, self.options, inputs, arrays[-1])

        return jax.jvp(formula, arrays[:-1], tangents)[1]

    def transpose(self, saved: Any, cotangents: tuple[Array, Array]) -> Any:
        return _gradients(self.tiling, self.options, *saved, *cotangents)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradients(*arguments: Any) -> tuple[Any, ...]:
    if isinstance(arguments[0], Undivided):
        return automatic.gradients(_gradients_jit, *arguments)
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
    return gpu.gradients(_gradients_by_loops, tiling, options, arrays, output, lse, d_output, d_lse)


def _gradients_by_loops(tiling: CallTiling, options: Options, arrays: Any, *results: Array) -> tuple[Any, ...]:
    computed = gradients(prepared(replace(tiling, parts=(1, 1)), options, *arrays), *results)
    *like, floats, sinks, _ = arrays
    d_arrays = (gradient.astype(x.dtype) for gradient, x in zip(computed[:3], like, strict=True))
    d_bias = [_unpadded(gradient, leaf) for gradient, leaf in zip(computed.bias, floats, strict=True)]
    return (*d_arrays, d_bias, None if computed.sinks is None else computed.sinks.astype(sinks.dtype))


@_gradients.defjvp
@own_modes
def _(tiling: CallTiling, options: Options, given: Any, tangents: Any) -> tuple[Any, Any]:
    arrays, _, _, _, *cotangents = given
    d_arrays, _, _, _, *d_cotangents = tangents

    def formula(inputs: Any, cotangents: Any) -> Any:
        return jax.vjp(lambda *inputs: _formula(tiling, options, inputs, arrays[-1]), *inputs)[1](tuple(cotangents))

    # second derivatives are those of the formula: what is differentiated of output and lse is in the arrays
    found = jax.jvp(formula, (arrays[:-1], cotangents), (d_arrays[:-1], d_cotangents))[1]
    return _gradients(tiling, options, *given), found


def _formula(
    tiling: CallTiling,
    options: Options,
    inputs: tuple[Any, ...],
    conditions: Conditions,
) -> tuple[Array, Array]:
    """`_attention` by the formula of the reference kernel, some queries at a time."""
    query, key, value, floats, sinks = inputs
    dropout, origin, mask = conditions.dropout, conditions.origin, conditions.mask
    if mask is not None and not isinstance(tiling, Undivided):
        mask = in_place(mask, tiling, origin)
    bias = float_leaves(conditions.bias)[1](floats)
    call: Call[Array] = Call(
        query,
        key,
        value,
        mask,
        bias,
        options.scale,
        options.softcap,
        sinks,
        empty_rows=options.empty_rows,
        precision=options.precision,
    )
    if dropout is not None:
        call = replace(call, dropout_rate=dropout.rate, dropout_key=dropout.words, dropout_broadcast=dropout.shared)
    return reference.by_rows(call, (origin.row, origin.head, origin.query), tiling.whole)


def _unpadded(gradient: Array, leaf: Array) -> Array:
    """The gradient of an array as it was given, from that of it padded to whole tiles."""
    if gradient.shape != leaf.shape:
        shape = (1,) * (gradient.ndim - leaf.ndim) + leaf.shape
        gradient = gradient[tuple(slice(size) for size in shape)].reshape(leaf.shape)
    return gradient.astype(leaf.dtype)
