"""What a device has of a mask and a bias: their data may be its own part, as its queries are.

Indices are those of the whole call, and begin where the device's part begins. Data of which it has its own batch rows,
heads or queries only are read from there; their size tells. Which they are is what `axes_of` says: data are divided
where each device can tell by its part what its own rows may attend to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from maskattn.biases import Bias, DenseBias, Disentangled
from maskattn.masks import And, Dense, Mask, Not, Or, rebuild
from maskattn_jax._partition import Axes, Origin
from maskattn_jax.kernels.blockwise.tiling import CallTiling

Parts: TypeAlias = tuple[bool, bool, bool]


def axes_of(mask: Mask | None, batch: int) -> list[Axes]:
    """For each array of a mask, in its order as a pytree, the names of the axes that are divided as the call is.

    A batch axis is one where the class says so of its field, and the mask reads no row but from such arrays.
    """
    if mask is None:
        return []
    if isinstance(mask, (And, Or, Not)):
        return [axes for part in mask.children() for axes in axes_of(part, batch)]
    if isinstance(mask, Dense):
        return [_dense_axes(mask.keep)]
    leaves, structure = jax.tree.flatten(mask)
    whole = [("-",) * x.ndim for x in leaves]
    if batch == 1 or mask.sizes().get("batch") != batch:
        return whole
    named = [
        ("b", *axes[1:]) if rows and x.shape[0] == batch else axes
        for rows, x, axes in zip(_rows(mask), leaves, whole, strict=True)
    ]
    one_row = [
        np.zeros((1, *x.shape[1:]) if axes[:1] == ("b",) else x.shape, bool)
        for x, axes in zip(leaves, named, strict=True)
    ]
    return whole if "b" in jax.tree.unflatten(structure, one_row).depends else named


def _rows(node: Mask) -> Iterator[bool]:
    """For each array of a mask, whether its class says that the first axis is the batch."""
    for name in node.data_fields():
        forms = [form.split(",") for form in re.findall(r"\[(.*?)\]", node._kinds[name].says)]
        rank = getattr(node, name).ndim
        yield any(len(form) == rank and form[0] == "B" for form in forms)
    for child in node.children():
        yield from _rows(child)


def _dense_axes(array: Array) -> Axes:
    """The names of the axes of an array that broadcasts to [B, H, L, S]."""
    names = ("b", "h", "l", "-")[4 - array.ndim :]
    return tuple(name if size > 1 else "-" for name, size in zip(names, array.shape, strict=True))


def axes_of_bias(bias: Bias | None) -> list[Axes]:
    """The same for the arrays of a bias."""
    if isinstance(bias, DenseBias):
        return [_dense_axes(bias.array)]
    if isinstance(bias, Disentangled):  # what is a function of the query and of its place is whole along the queries
        both = bias.of_queries, bias.of_keys
        return [tuple(name if n > 1 else "-" for name, n in zip("bh--", x.shape, strict=True)) for x in both]
    return [("-",) * x.ndim for x in jax.tree.leaves(bias)]


def axes_of_floats(bias: Bias | None) -> list[Axes]:
    """The same for those of them that are differentiable."""
    leaves = zip(axes_of_bias(bias), jax.tree.leaves(bias), strict=True)
    return [axes for axes, x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]


def own(sizes: tuple[int, ...], tiling: CallTiling, length: int) -> Parts:
    """Of which of batch, heads and queries an array [B or 1, H or 1, L or 1, ...] has the device's own part, where such
    a part has `length` queries.
    """
    parts = tiling.batch, tiling.heads, length
    return tuple(divided and size == part for divided, size, part in zip(tiling.divided, sizes, parts, strict=False))  # type: ignore[return-value]


def of_mask(mask: Mask, tiling: CallTiling) -> Parts:
    """The same of the data of a mask that is no expression of others."""
    if isinstance(mask, Dense):
        return own(mask.shape, tiling, tiling.q_len)
    return tiling.divided[0] and mask.sizes().get("batch") == tiling.batch, False, False


def places_in(bias: Bias, tiling: CallTiling, origin: Origin, places: tuple[Array, ...]) -> tuple[Array, ...]:
    """Indices (b, h, q, k) of the whole call as those of a bias's arrays, which may be those of the device's part."""
    if not isinstance(bias, Disentangled):
        return places
    sizes = max(bias.of_queries.shape[0], bias.of_keys.shape[0]), bias.of_queries.shape[1]
    rows, heads, _ = own((*sizes, 0), tiling, -1)
    b, h, q, k = places
    return b - origin.row if rows else b, h - origin.head if heads else h, q, k


def in_place(mask: Mask, tiling: CallTiling, origin: Origin) -> Mask:
    """The mask as a function of the indices of the whole call."""
    if not any(tiling.divided):
        return mask

    def moved(part: Mask) -> Mask | None:
        if isinstance(part, (And, Or, Not)):
            return None
        mine = of_mask(part, tiling)
        first: list[Any] = [start if is_own else 0 for start, is_own in zip(origin, mine, strict=True)]
        return _Moved(part, *first) if any(mine) else part

    return rebuild(mask, moved)


@dataclass(frozen=True, eq=False)
class _Moved(Mask):
    """A mask whose data begin at a batch row, a head and a query of the whole call."""

    part: Mask
    row: Array
    head: Array
    query: Array

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return self.part.allowed(b - self.row, h - self.head, q - self.query, k)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        return self.part.tile(b - self.row, h - self.head, q_lo - self.query, q_hi - self.query, k_lo, k_hi)

    @property
    def depends(self) -> frozenset[str]:
        return self.part.depends
