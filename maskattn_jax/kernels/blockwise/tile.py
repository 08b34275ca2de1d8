"""One tile of scores, as the forward and the backward pass of the blockwise kernel both compute it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from maskattn._pairs import restrict
from maskattn.biases import Bias, DenseBias
from maskattn.masks import And, Dense, Mask, Not, Or
from maskattn_jax.dropout import Dropout, keep
from maskattn_jax.kernels.blockwise.plan import Layout
from maskattn_jax.kernels.blockwise.shards import Origin

Array = Any


@dataclass(frozen=True)
class Options:
    """The static options of a call, as `attention` has them."""

    scale: float
    softcap: float | None
    empty_rows: str
    precision: str


class Conditions(NamedTuple):
    """What besides the query, key and value decides about a pair. A pytree.

    Attributes:
        mask: True = may attend; its Dense parts padded to whole tiles, or None.
        bias: with a DenseBias padded to whole tiles, or None.
        dropout: or None.
        dirty: bool []: some key or value is not finite; None where looking for one would cost more than it saves.
        origin: where this device's part of the batch, the heads and the queries begins.
    """

    mask: Mask | None
    bias: Bias | None
    dropout: Dropout | None
    dirty: Array | None
    origin: Origin


class Place(NamedTuple):
    """Where a tile begins: the first batch row, key/value head (query head where the mask reads heads), query, key; of
    the keys of a masked tile those from `first` to before `stop` count.
    """

    row: Array
    column: Array
    query: Array
    key: Array
    first: Array
    stop: Array


class Scores(NamedTuple):
    """A tile's logits after softcap, bias and mask, [rows, columns, group, q_block, width], and what made them."""

    logits: Array
    allowed: Array | None  # broadcastable to the logits; None: every pair
    slope: Array | None  # tanh(x / softcap) of the logits x before softcap
    key: Array  # [rows, columns, width, D]: the keys, 0 where no query of the tile may attend
    value: Array


def padded(node: Any, layout: Layout) -> Any:
    """The mask or bias with Dense arrays as [B or 1, H or 1, L or 1, S or 1], padded to whole tiles, nothing allowed
    there: a slice of them never moves.
    """
    if isinstance(node, (Dense, DenseBias)):
        array = jnp.reshape(node.keep if isinstance(node, Dense) else node.array, node.shape)
        lengths = (layout.q_len, layout.kv_len)
        more = [
            n - part if size > 1 else 0 for n, part, size in zip(layout.padded, lengths, array.shape[2:], strict=True)
        ]
        leaves, structure = node.flatten()
        return type(node).unflatten(structure, [jnp.pad(array, [(0, 0), (0, 0), *((0, n) for n in more)])])
    if isinstance(node, (And, Or, Not)):
        leaves, structure = node.flatten()
        return type(node).unflatten(structure, [padded(part, layout) for part in leaves])
    return node


def indices(layout: Layout, origin: Origin, place: Place, width: int) -> tuple[Array, Array, Array, Array]:
    """(b, h, q, k) of a tile's pairs in the whole arrays, broadcasting to [rows, columns, group, q_block, width]."""
    b, h, q, k = _starts_in_whole(layout, origin, place)
    b = b + jnp.arange(layout.rows, dtype=jnp.int32)[:, None, None, None, None]
    h = h + jnp.arange(layout.columns, dtype=jnp.int32)[:, None, None, None] * layout.group
    h = h + jnp.arange(layout.group, dtype=jnp.int32)[:, None, None]
    q = q + jnp.arange(layout.q_block, dtype=jnp.int32)[:, None]
    return b, h, q, k + jnp.arange(width, dtype=jnp.int32)


def scores(
    layout: Layout,
    options: Options,
    conditions: Conditions,
    place: Place,
    query: Array,
    key: Array,
    value: Array,
    masked: bool,
) -> Scores:
    """The logits of a tile: query (already scaled) [rows, columns, group * q_block, D], key [rows, columns, width, D].

    Without `masked` every pair of the tile is allowed by the mask (a bias of -inf still forbids).
    """
    width = key.shape[-2]
    added = None
    if conditions.bias is not None:
        added = bias_values(layout, conditions.bias, conditions.origin, place, width).astype(query.dtype)
    allowed = _allowed(layout, conditions, place, width, masked)
    if allowed is not None:

        def clean(key: Array, value: Array) -> tuple[Array, Array]:
            # the mask once more, so that it is no array where this is not needed
            some = jnp.any(_allowed(layout, conditions, place, width, masked), axis=(-3, -2))[..., None]
            return jnp.where(some, key, 0), jnp.where(some, value, 0)

        # 0 times what is not finite would be NaN; where all is finite there is nothing to be done
        if conditions.dirty is None:
            key, value = clean(key, value)
        else:
            key, value = lax.cond(conditions.dirty, clean, lambda key, value: (key, value), key, value)
    logits = jnp.einsum("...qd,...kd->...qk", query, key, precision=options.precision)
    logits = logits.reshape(layout.rows, layout.columns, layout.group, layout.q_block, width)
    slope = None
    if options.softcap is not None:
        slope = jnp.tanh(logits / options.softcap)
        logits = options.softcap * slope
    if added is not None:
        logits = logits + added
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    return Scores(logits, allowed, slope, key, value)


def kept(layout: Layout, conditions: Conditions, place: Place, width: int) -> Array | None:
    """What the tile's softmax weights are multiplied by, 0 or 1 / (1 - rate); None without dropout."""
    dropout = conditions.dropout
    if dropout is None:
        return None
    index = indices(layout, conditions.origin, place, width)
    return keep(dropout, *index, layout.whole) * (1.0 / (1.0 - dropout.rate))


def bias_values(layout: Layout, bias: Bias, origin: Origin, place: Place, width: int) -> Array:
    """A bias, a DenseBias padded, on a tile: rank 5, broadcastable to [rows, columns, group, q_block, width]."""
    if isinstance(bias, DenseBias):
        return _slice(layout, bias.array, origin, place, width)
    found = jnp.asarray(bias.values(*restrict(bias, *indices(layout, origin, place, width))))
    return found.reshape((1,) * (5 - found.ndim) + found.shape)


def window(
    layout: Layout, shape: tuple[int, ...], origin: Origin, place: Place, width: int
) -> tuple[list[Array], list[int]]:
    """Where the slice of an array [B or 1, H or 1, L or 1, S or 1], padded, that a tile reads starts, and its sizes."""
    starts = _starts_in_whole(layout, origin, place)
    sizes = [layout.rows, layout.columns * layout.group, layout.q_block, width]
    read = [(start, size) if n != 1 else (0, 1) for start, size, n in zip(starts, sizes, shape, strict=True)]
    return [start for start, _ in read], [size for _, size in read]


def slice_at(x: Array, starts: Sequence[Array | int], sizes: Sequence[int]) -> Array:
    """`lax.dynamic_slice` at starts of one dtype, whether x64 is on or off; none of them is negative."""
    return lax.dynamic_slice(x, _starts(starts), sizes, allow_negative_indices=False)


def put_at(x: Array, part: Array, starts: Sequence[Array | int]) -> Array:
    """`lax.dynamic_update_slice`, as `slice_at`."""
    return lax.dynamic_update_slice(x, part, _starts(starts), allow_negative_indices=False)


def add_at(x: Array, part: Array, starts: Sequence[Array | int]) -> Array:
    """`x` with `part` added where it starts."""
    return put_at(x, slice_at(x, starts, part.shape) + part, starts)


def _starts_in_whole(layout: Layout, origin: Origin, place: Place) -> tuple[Array, Array, Array, Array]:
    """The first (b, h, q, k) of a tile in the whole arrays, of a place in a device's part."""
    head = place.column * layout.group + origin.head
    return place.row + origin.row, head, place.query + origin.query, place.key


def _starts(starts: Sequence[Array | int]) -> list[Array]:
    return [jnp.asarray(start, jnp.int32) for start in starts]


def _allowed(layout: Layout, conditions: Conditions, place: Place, width: int, masked: bool) -> Array | None:
    """Where mask and bias allow and a key counts, rank 5; a query beyond the lengths may attend to nothing.

    None where neither `masked` nor a bias leaves anything to ask.
    """
    found = None
    if masked:
        # the indices are arrays of their own: fused into what reads them, each entry would look its place up again
        index = lax.optimization_barrier(indices(layout, conditions.origin, place, width))
        parts = [(index[3] >= place.first) & (index[3] < place.stop)]
        if layout.padded[0] != layout.q_len:
            parts.append(index[2] - conditions.origin.query < layout.q_len)
        if conditions.mask is not None:
            parts.append(_evaluate(layout, conditions.mask, conditions.origin, place, index))
        found = functools.reduce(operator.and_, parts)
        found = found.reshape((1,) * (5 - found.ndim) + found.shape)
    if conditions.bias is not None:
        finite = bias_values(layout, conditions.bias, conditions.origin, place, width) != -jnp.inf
        if layout.shards > 1 and layout.padded[0] != layout.q_len:  # where the next device's queries follow
            finite = finite & (place.query + jnp.arange(layout.q_block)[:, None] < layout.q_len)
        found = finite if found is None else found & finite
    return found


def _evaluate(layout: Layout, mask: Mask, origin: Origin, place: Place, index: tuple[Array, ...]) -> Array:
    if isinstance(mask, Dense):
        return _slice(layout, mask.keep, origin, place, index[3].shape[-1])
    if isinstance(mask, Not):
        return ~_evaluate(layout, mask.part, origin, place, index)
    if isinstance(mask, (And, Or)):
        parts = [_evaluate(layout, part, origin, place, index) for part in mask.parts]
        return functools.reduce(operator.and_ if isinstance(mask, And) else operator.or_, parts)
    return jnp.asarray(mask.allowed(*restrict(mask, *index)))


def _slice(layout: Layout, array: Array, origin: Origin, place: Place, width: int) -> Array:
    """A padded array [B or 1, H or 1, L or 1, S or 1] on a tile: [rows, columns, group, q_block, width], or 1."""
    starts, sizes = window(layout, array.shape, origin, place, width)
    part = slice_at(array, starts, sizes)
    heads = (1, 1) if sizes[1] == 1 else (layout.columns, layout.group)
    return part.reshape(sizes[0], *heads, *sizes[2:])
