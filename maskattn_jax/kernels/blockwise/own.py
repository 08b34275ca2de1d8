"""What a device has of a mask and a bias: their data may be its own part, as its queries are.

Indices are those of the whole call, and begin where the device's part begins. Data of which it has its own batch rows,
heads or queries only are read from there; their size tells.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.masks import And, Dense, Mask, Not, Or, rebuild
from maskattn.typing import Array
from maskattn_jax._partition import Origin
from maskattn_jax.kernels.blockwise.tiling import CallTiling

Axes = tuple[bool, bool, bool]


def own(sizes: tuple[int, ...], tiling: CallTiling, length: int) -> Axes:
    """Of which of batch, heads and queries an array [B or 1, H or 1, L or 1, ...] has the device's own part, where such
    a part has `length` queries.
    """
    parts = tiling.batch, tiling.heads, length
    return tuple(divided and size == part for divided, size, part in zip(tiling.divided, sizes, parts, strict=False))  # type: ignore[return-value]


def of_mask(mask: Mask, tiling: CallTiling) -> Axes:
    """The same of the data of a mask that is no expression of others."""
    if isinstance(mask, Dense):
        return own(mask.shape, tiling, tiling.q_len)
    return tiling.divided[0] and mask.sizes().get("batch") == tiling.batch, False, False


def in_place(mask: Mask, tiling: CallTiling, origin: Origin) -> Mask:
    """The mask as a function of the indices of the whole call."""
    if not any(tiling.divided):
        return mask

    def moved(part: Mask) -> Mask | None:
        if isinstance(part, (And, Or, Not)):
            return None
        mine = of_mask(part, tiling)
        first = [start if is_own else 0 for start, is_own in zip(origin, mine, strict=True)]
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
