from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from maskattn._fields import Array, to_numpy
from maskattn._problems import Problems
from maskattn.masks._core import Full, Mask
from maskattn.masks.interop._values import as_array, is_zero
from maskattn.masks.interop.additive import filled
from maskattn.masks.shifted_window import ShiftedWindow


def from_swin(attn_mask: Array | None) -> Mask:
    """Swin's `attn_mask`, float [windows, N, N] of 0 and -100 (timm, official code, Hugging Face), as a ShiftedWindow.

    Grid, window and shift are read off the pattern and proven by comparing all of it; where several fit they are the
    same mask, and the one nearest to a square is named. -inf and the dtype's minimum count as -100 does. None (a block
    that is not shifted): everything.

    >>> import numpy as np
    >>> from maskattn import masks
    >>> masks.from_swin(np.array([[[0.0, -100.0], [-100.0, 0.0]]]))
    ShiftedWindow((1, 2), (1, 2), (0, 1))

    Raises:
        ValueError: any other value, named with its place; a pattern that no shifted window gives; or the array is
            traced. TypeError: it is not of floats.
    """
    if attn_mask is None:
        return Full()
    problems = Problems("from_swin")
    array = as_array(problems, "attn_mask", attn_mask, ("float",), {3: "[windows, N, N]"})
    if array is not None and (array.shape[1] != array.shape[2] or 0 in array.shape):
        problems.value(f"attn_mask must be [windows, N, N], got shape {list(array.shape)}")
    keep = None if array is None or problems else to_numpy(is_zero(problems, "attn_mask", array, -100.0))
    problems.raise_if_any()
    assert keep is not None
    windows, size = keep.shape[:2]
    for candidate in _candidates(keep):
        if (candidate.dense(size, size, windows)[:, 0] == keep).all():
            return candidate
    raise ValueError(f"from_swin: no grid, window and shift give this attn_mask {list(keep.shape)}: use from_additive")


def to_swin(mask: Mask, *, drop_at: float = -100.0) -> np.ndarray:
    """`attn_mask` float32 [windows, N, N]: 0 where the mask allows, else `drop_at`.

    Raises:
        ValueError: the mask does not have windows as its batch (an expression with a ShiftedWindow has), or differs
            between heads.
    """
    problems = Problems("to_swin")
    sizes = mask.sizes()
    if not {"batch_multiple", "q_len", "kv_len"} <= sizes.keys() or "batch" in sizes:
        problems.value(f"Swin's windows are the batch, as in ShiftedWindow; {mask!r} has no windows of its own")
    if "h" in mask.depends:
        problems.value(f"Swin's mask serves all heads alike; {mask!r} differs between them")
    problems.raise_if_any()
    keep = mask.dense(sizes["q_len"], sizes["kv_len"], sizes["batch_multiple"], 1)[:, 0]
    return filled(keep, np.dtype(np.float32), drop_at)


def _candidates(keep: np.ndarray) -> Iterator[ShiftedWindow]:
    """Every grid and window of these sizes, nearest to square first, with the shift that the last window shows."""
    windows, size = keep.shape[:2]
    for window in _factors(size):
        # the last window wraps on both axes: its first token sees the places before the cut on each
        first = keep[-1, 0].reshape(window)
        seen = (int(first[:, 0].sum()), int(first[0].sum()))
        shift = tuple(n - count for n, count in zip(window, seen, strict=True))
        if 0 not in seen:
            for along in _factors(windows):
                yield ShiftedWindow((along[0] * window[0], along[1] * window[1]), window, shift)


def _factors(size: int) -> list[tuple[int, int]]:
    pairs = [(d, size // d) for d in range(1, size + 1) if size % d == 0]
    return sorted(pairs, key=lambda pair: abs(pair[0] - pair[1]))
