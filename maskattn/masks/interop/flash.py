from __future__ import annotations

from typing import Any

from maskattn._problems import Problems
from maskattn.masks._core import Full, Mask
from maskattn.masks.causal import Causal
from maskattn.masks.interop.bands import band
from maskattn.masks.sliding_window import SlidingWindow


def from_flash_window(window: tuple[int | None, int | None], q_len: int, kv_len: int) -> Mask:
    """FlashAttention's `window_size` (left, right), -1 or None = unbounded; its `causal=True` is (left, 0).

    `window` are the two numbers. The result says, as everywhere, True = may attend.

    The diagonal ends in the bottom right corner (FlashAttention 2.1 and later): query q sits at position
    q + kv_len - q_len, and sees `left` keys before it, itself, and `right` after.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.from_flash_window((1, 0), 3, 5), 3, 5))
    -##--
    --##-
    ---##

    Raises:
        ValueError: a bound is below -1, or a length negative. TypeError: one is not an int.
    """
    problems = Problems("from_flash_window")
    bounds: list[int | None] = []
    sides: Any = window
    if not isinstance(sides, (tuple, list)) or len(sides) != 2:
        problems.type(f"window must be (left, right), got {window!r}")
        sides = ()
    for name, side in zip(("left", "right"), sides, strict=False):
        bound = None if side is None else problems.integer(f"window: {name} (-1 = unbounded)", side, minimum=-1)
        bounds.append(None if bound == -1 else bound)
    lengths = [problems.integer(name, n, minimum=0) for name, n in (("q_len", q_len), ("kv_len", kv_len))]
    problems.raise_if_any()
    left, right = bounds
    offset = lengths[1] - lengths[0]
    if left is None and right is None:
        return Full()
    if left is None and right == 0:
        return Causal(offset)
    mask = SlidingWindow(left, right)
    return mask.at(offset) if offset else mask


def to_flash_window(mask: Mask, q_len: int, kv_len: int) -> tuple[int, int]:
    """The mask at q_len x kv_len as FlashAttention's `window_size` (left, right), -1 = unbounded.

    Raises:
        ValueError: the mask is not a band around the diagonal by its construction (Full, Causal, SlidingWindow, moved
            by ints, or an & of these), or the band misses the bottom-right diagonal, which no window_size can.
    """
    problems = Problems("to_flash_window")
    limits = band(mask)
    if limits is None:
        problems.value(f"window_size can only say a band around the diagonal, not {mask!r}")
        problems.raise_if_any()
        raise AssertionError
    diagonal = kv_len - q_len
    left = -1 if limits[0] is None else diagonal - limits[0]
    right = -1 if limits[1] is None else limits[1] - diagonal
    for name, side, limit in (("left", left, limits[0]), ("right", right, limits[1])):
        if limit is not None and side < 0:
            problems.value(f"{name} would be {side}: {mask!r} does not hold the diagonal k - q = {diagonal}")
    problems.raise_if_any()
    return left, right
