"""A call as the forward and the backward pass take it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array

from maskattn.biases import Bias, DenseBias
from maskattn.masks import Dense, Mask, fold
from maskattn.typing import EmptyRows, Precision
from maskattn_jax._partition import Origin
from maskattn_jax.dropout import Dropout
from maskattn_jax.kernels.blockwise.tiling import FEW, CallTiling


@dataclass(frozen=True)
class Options:
    """The static options of a call, as `attention` has them."""

    scale: float
    softcap: float | None
    empty_rows: EmptyRows
    precision: Precision


class Conditions(NamedTuple):
    """What besides queries, keys and values decides about a pair. A pytree; whole on every device.

    Attributes:
        mask: True = may attend; or None.
        bias, dropout: or None.
        steps: the `Steps`, of keys, that each row of tiles visits; for a GPU's kernels, which plan that themselves, the
            `Sizes` of their tiles.
        origin: where this device's part of the batch, the heads and the queries begins.
    """

    mask: Mask | None
    bias: Bias | None
    dropout: Dropout[Array] | None
    steps: Any  # Steps, or Sizes
    origin: Origin


class TiledCall(NamedTuple):
    """What both passes compute with: arrays in their own order and dtype (a tile is transposed when it is read), padded
    to whole tiles.

    Attributes:
        query: [B, L, K, H // K, D], or [B, L, H, 1, D] where the mask reads heads.
        key, value: [B, S, K, D], [B, S, K, Dv].
        sinks: [H], or None.
        conditions: the mask and a DenseBias padded to whole tiles, too.
        dirty: bool []: some key or value is not finite; None where looking for one would cost more than it saves.
    """

    tiling: CallTiling
    options: Options
    query: Array
    key: Array
    value: Array
    sinks: Array | None
    conditions: Conditions
    dirty: Array | None

    @property
    def dtype(self) -> jnp.dtype:
        """That of the computation: float64 stays, everything else is computed in float32 and rounded at the end."""
        return jnp.float64 if self.query.dtype == jnp.float64 else jnp.float32

    @property
    def step_width(self) -> int:
        """How many keys a step reads."""
        return self.conditions.steps.width * self.tiling.kv_block


def prepared(
    tiling: CallTiling,
    options: Options,
    query: Array,
    key: Array,
    value: Array,
    floats: list[Array],
    sinks: Array | None,
    conditions: Conditions,
) -> TiledCall:
    """The arrays of `attention`, `floats` being those of the bias, as the passes take them."""
    dirty = None
    if tiling.q_len > FEW:
        # 0 times a number is 0 but for what is not finite
        dirty = ~jnp.isfinite(sum(jnp.sum(x * 0, dtype=jnp.float32) for x in (key, value)))
    bias = float_leaves(conditions.bias)[1](floats)
    dropout = conditions.dropout
    if dropout is not None:  # scalars, which loops need not slice
        dropout = replace(dropout, words=cast(Array, tuple(dropout.words)))
    mask = None if conditions.mask is None else fold(conditions.mask, lambda part: _padded(part, tiling))
    conditions = conditions._replace(mask=mask, bias=_padded(bias, tiling), dropout=dropout)
    more = tiling.padded[1] - tiling.kv_len
    key, value = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x for x in (key, value))
    return TiledCall(tiling, options, group_heads(tiling, query), key, value, sinks, conditions, dirty)


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


def group_heads(tiling: CallTiling, x: Array) -> Array:
    """[B, L, H, D] -> [B, L, K, H // K, D] (or [B, L, H, 1, D]), padded to whole tiles with 0."""
    more = tiling.padded[0] - tiling.q_len
    x = jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x
    return x.reshape(*x.shape[:2], x.shape[2] // tiling.group, tiling.group, x.shape[-1])


def ungroup_heads(tiling: CallTiling, x: Array) -> Array:
    """The inverse of `group_heads`."""
    return x[:, : tiling.q_len].reshape(tiling.batch, tiling.q_len, tiling.heads, x.shape[-1])


def _padded(node: object, tiling: CallTiling) -> Any:
    """A Dense mask or a DenseBias as [B or 1, H or 1, L or 1, S or 1], padded to whole tiles, nothing allowed there: a
    slice of it never moves. Others as they are.
    """
    if not isinstance(node, (Dense, DenseBias)):
        return node
    array = jnp.reshape(node.keep if isinstance(node, Dense) else node.array, node.shape)
    lengths = zip(tiling.padded, (tiling.q_len, tiling.kv_len), array.shape[2:], strict=True)
    more = [(0, n - length if size > 1 else 0) for n, length, size in lengths]
    return node.map_data(lambda _: jnp.pad(array, [(0, 0), (0, 0), *more]))
