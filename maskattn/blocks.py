"""Tile sizes that a test can force on the blockwise kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["forced", "forcing"]

_FORCED: ContextVar[tuple[int, int] | None] = ContextVar("maskattn_blocks", default=None)


@contextmanager
def forcing(q_block: int, kv_block: int) -> Iterator[None]:
    """Inside, the blockwise kernels use tiles of q_block queries by kv_block keys, whatever the shape. (In PyTorch,
    rectangles that SDPA's operator does are put together of such tiles; those done by matrix products are no larger.)

    For tests: it makes short sequences have several tiles. A kernel that caches what depends on tile sizes (plans,
    compiled functions) keys it by `forced()`.
    """
    token = _FORCED.set((q_block, kv_block))
    try:
        yield
    finally:
        _FORCED.reset(token)


def forced() -> tuple[int, int] | None:
    """(q_block, kv_block) of the innermost `forcing`, or None where each kernel chooses."""
    return _FORCED.get()
