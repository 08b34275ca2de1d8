"""A mask as a small array of densities: what a drawing or a picture of it shows."""

from __future__ import annotations

import numpy as np

from maskattn._fields import to_numpy
from maskattn._pairs import restrict
from maskattn.masks import Mask

Array = np.ndarray
_EXACT = 1 << 24  # pairs that are all looked at
_CALL = 1 << 20  # pairs in one call of a mask


def shrink(
    mask: Mask, q_len: int, kv_len: int, cell: tuple[int, int], batch: int = 0, head: int = 0, exact: int = _EXACT
) -> Array:
    """float64 [ceil(q_len / cell[0]), ceil(kv_len / cell[1])]: the share of pairs allowed in each cell of the mask.

    Every pair is looked at while q_len * kv_len is at most `exact`. Beyond that `Mask.tile` decides what it can, and
    the other cells are estimated from some of their rows and some of their columns, each read in full, so that a single
    line across them is seen.

    Args:
        mask: True = may attend; its sizes must fit.
        cell: queries and keys of one cell.
        batch, head: which matrix is shown.
    """
    mask = mask.map_data(to_numpy)
    rows, columns = np.arange(0, q_len, cell[0]), np.arange(0, kv_len, cell[1])
    if not len(rows) or not len(columns):
        return np.zeros((len(rows), len(columns)))
    if q_len * kv_len <= exact:
        return _bands(mask, batch, head, q_len, kv_len, cell, cell[0])
    sampled = [
        max(1, min(side, exact // (len(edges) * length)))
        for side, edges, length in ((cell[0], rows, kv_len), (cell[1], columns, q_len))
    ]
    by_rows = _bands(mask, batch, head, q_len, kv_len, cell, sampled[0])
    by_columns = _bands(mask, batch, head, kv_len, q_len, cell[::-1], sampled[1], turned=True).T
    q_last, k_last = np.minimum(rows + cell[0], q_len) - 1, np.minimum(columns + cell[1], kv_len) - 1
    some, every = mask.tile(batch, head, rows[:, None], q_last[:, None], columns, k_last)
    return np.where(every, 1.0, np.where(some, (by_rows + by_columns) / 2, 0.0))


def _bands(
    mask: Mask, batch: int, head: int, length: int, across: int, cell: tuple[int, int], lines: int, turned: bool = False
) -> Array:
    """Densities from `lines` evenly spaced lines of each band of `cell[0]`, read in full; `turned`: lines are keys."""
    edges, shares = np.arange(0, across, cell[1]), []
    widths = np.diff(np.append(edges, across))
    other = np.arange(across)
    for start in range(0, length, cell[0]):
        size = min(cell[0], length - start)
        chosen = start + (np.arange(min(lines, size)) * size + size // 2) // min(lines, size)
        total = np.zeros(len(edges))
        step = max(1, _CALL // across)
        for first in range(0, len(chosen), step):
            line = chosen[first : first + step, None]
            q, k = (other, line) if turned else (line, other)
            allowed = mask.allowed(*restrict(mask, batch, head, q, k))
            counted = np.broadcast_to(allowed, (len(line), across)).sum(axis=0)
            total += np.add.reduceat(counted, edges)
        shares.append(total / (widths * len(chosen)))
    return np.array(shares)
