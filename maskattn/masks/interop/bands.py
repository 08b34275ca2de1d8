"""Masks that are a band around a diagonal, which is what most libraries have a word for."""

from __future__ import annotations

from maskattn.masks._core import And, Full, Mask
from maskattn.masks.causal import Causal
from maskattn.masks.positions import At
from maskattn.masks.sliding_window import SlidingWindow

#: low <= k - q <= high, None = unbounded
Band = tuple[int | None, int | None]


def band(mask: Mask) -> Band | None:
    """(low, high) where the mask (True = may attend) is exactly low <= k - q <= high by its construction, else None."""
    if isinstance(mask, Full):
        return None, None
    if isinstance(mask, Causal):
        return None, mask.offset
    if isinstance(mask, SlidingWindow):
        return None if mask.left is None else -mask.left, mask.right
    if isinstance(mask, At) and not mask.data_fields():
        inner = band(mask.part)
        return None if inner is None else shifted(inner, mask.q_offset - mask.k_offset)
    if isinstance(mask, And):
        bands = [band(part) for part in mask.parts]
        given = [each for each in bands if each is not None]
        return intersection(given) if len(given) == len(bands) else None
    return None


def shifted(limits: Band, by: int) -> Band:
    """The band moved right by `by` keys."""
    low, high = limits
    return None if low is None else low + by, None if high is None else high + by


def intersection(bands: list[Band]) -> Band:
    """What lies in all bands: a band (an empty one has low > high)."""
    lows = [low for low, _ in bands if low is not None]
    highs = [high for _, high in bands if high is not None]
    return max(lows, default=None), min(highs, default=None)
