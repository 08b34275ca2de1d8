"""Masks of whole sequences at the step of a cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from maskattn.masks import And, Causal, Full, Mask, Not, Or, SlidingWindow, rebuild
from maskattn.typing import Traced

#: No key is moved: an array, so that data may be shorter than the cache, whose other slots are then not allowed.
_STILL = np.zeros((), np.int32)


def last(mask: Mask) -> Mask:
    """The mask without what is always so for the last token of a row: no key comes after it."""
    if isinstance(mask, And):
        rest = [part for part in [last(part) for part in mask.parts] if not isinstance(part, Full)]
        if len(rest) == 1:
            return rest[0]
        return And(tuple(rest)) if rest else Full()
    return Full() if isinstance(mask, Causal) and mask.offset >= 0 else mask


def at_step(mask: Mask, start: Traced, size: int) -> Mask:
    """The mask where the first query of row b is at start[b], and slot k of `size` holds position k."""

    def place(part: Mask) -> Mask | None:
        if isinstance(part, (And, Or, Not)) or not part.depends:
            return part if not part.depends else None
        if part.sizes().get("kv_len", size) != size:
            return part.at(q_offset=start, k_offset=_STILL)
        return part.at(q_offset=start) if "q" in part.depends else part

    return rebuild(mask, place)


def lookback(mask: Mask) -> int | None:
    """How many positions before its own a query may attend to at most, where windows alone say it; else None."""
    if isinstance(mask, And):
        found = [back for back in [lookback(part) for part in mask.parts] if back is not None]
        return min(found) if found else None
    return mask.left if isinstance(mask, SlidingWindow) else None


def window(mask: Mask) -> int | None:
    """`lookback` of a mask that says nothing else of the keys up to the query's own; else None."""
    if isinstance(mask, And):
        found = [window(part) for part in mask.parts]
        return None if None in found else lookback(mask)
    return mask.left if isinstance(mask, SlidingWindow) else None


def reaches_lost(mask: Mask, tokens: Traced, lost: Traced, count: Callable[[int], Traced]) -> Traced:
    """Which of the queries at `tokens` [B, L] may attend to keys below lost[b], in any head: bool [B, L]; None where
    the mask has no bounds that could say so. Bounds may be loose.

    Args:
        count: makes the numbers 0, 1, ..., n - 1.
    """
    back = lookback(mask)
    lost = lost[:, None]
    if back is not None:
        return (tokens >= 0) & (lost > 0) & (tokens - back < lost)
    if not _bounded(mask):
        return None
    batch, numpy = tokens.shape[0], isinstance(tokens, np.ndarray)
    heads = mask.sizes().get("heads", 1)
    b, h = (np.arange(n) if numpy else count(n) for n in (batch, heads))
    some, _ = mask.tile(b[:, None, None], h[None, :, None], tokens[:, None], tokens[:, None], 0, lost[:, None] - 1)
    return some.any(1) & (tokens >= 0) & (lost > 0)


def _bounded(mask: Mask) -> bool:
    """Whether the classes in a mask have bounds of their own."""
    parts = mask.children()
    if parts:
        return all(_bounded(part) for part in parts)
    return type(mask).tile is not Mask.tile
