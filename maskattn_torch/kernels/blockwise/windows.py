"""Where a piece of the score matrix is in the arrays of a call: its views of them, its indices, its part of a mask."""

from __future__ import annotations

from dataclasses import replace

import torch

from maskattn.biases import Bias
from maskattn.masks import Dense, Mask, fold
from maskattn.schedule.pieces import Piece
from maskattn_torch.types import Array, Device

__all__ = ["allowed", "dense_part", "indices", "kv_range", "read_indices", "rectangle", "window"]


def window(x: Array, piece: Piece, side: str, heads: range) -> Array:
    """What a piece of one rectangle, or one batch row, reads or writes of x [B, heads, length, ...]: a view
    [count, heads, rows or cols, ...] (batch rows for count).

    Args:
        side: "q" for queries, "k" for keys.
        heads: those of `piece`, or the key/value heads that they read.
    """
    start, step, length = (piece.q, piece.q_step, piece.rows) if side == "q" else (piece.k, piece.k_step, piece.cols)
    b = piece.batch
    if piece.count == 1:
        if (len(b), len(heads), length) == x.shape[:3]:
            return x
        rows, columns = slice(b.start, b.stop, b.step), slice(heads.start, heads.stop, heads.step)
        return x[rows, columns, start : start + length]
    stride = x.stride()
    offset = x.storage_offset() + b.start * stride[0] + heads.start * stride[1] + start * stride[2]
    sizes = (piece.count, len(heads), length, *x.shape[3:])
    return x.as_strided(sizes, (step * stride[2], heads.step * stride[1], *stride[2:]), offset)


def kv_range(piece: Piece, group: int) -> range:
    """The key/value heads that the heads of a piece read, `group` of them each."""
    return piece.heads if group == 1 else range(piece.heads[0] // group, piece.heads[-1] // group + 1)


def rectangle(piece: Piece, number: int) -> Piece:
    """One of a piece's rectangles as a piece of its own."""
    return replace(piece, q=piece.q + number * piece.q_step, k=piece.k + number * piece.k_step, count=1)


def indices(piece: Piece, device: Device = None) -> tuple[Array, Array, Array, Array]:
    """(b, h, q, k) of a piece's pairs, int64, broadcasting to [count, heads, rows, cols] (batch rows for count)."""
    b = _arange(piece.batch, device).reshape(-1, 1, 1, 1)
    h = _arange(piece.heads, device).reshape(1, -1, 1, 1)
    n = torch.arange(piece.count, device=device).reshape(-1, 1, 1, 1)
    q = piece.q + n * piece.q_step + torch.arange(piece.rows, device=device).reshape(-1, 1)
    k = piece.k + n * piece.k_step + torch.arange(piece.cols, device=device)
    return b, h, q, k


def read_indices(node: Mask | Bias, piece: Piece, device: Device = None) -> list[Array]:
    """The indices of a piece, 0 in place of those that a mask or a bias does not read."""
    zero = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
    depends = node.depends
    return [x if name in depends else zero for name, x in zip("bhqk", indices(piece, device), strict=True)]


def allowed(mask: Mask, piece: Piece) -> Array:
    """Where the mask allows, bool, broadcasting to [count, heads, rows, cols]: each part on the axes that it reads."""

    def one(part: Mask) -> Array:
        if isinstance(part, Dense):
            return dense_part(part.keep.reshape(part.shape), piece)
        # no device: a mask's data may be on the CPU only, as the patches are
        return part.allowed(*read_indices(part, piece))

    return fold(mask, one)


def dense_part(array: Array, piece: Piece) -> Array:
    """array[b, h, q, k] of a piece, [B or 1, H or 1, L or 1, S or 1] -> broadcasting to [count, heads, rows, cols]."""
    if piece.count == 1:
        slices = (
            slice(piece.batch.start, piece.batch.stop, piece.batch.step),
            slice(piece.heads.start, piece.heads.stop, piece.heads.step),
            slice(piece.q, piece.q + piece.rows),
            slice(piece.k, piece.k + piece.cols),
        )
        return array[tuple(s if n > 1 else slice(None) for s, n in zip(slices, array.shape, strict=True))]
    cuts = [
        x if n > 1 else torch.zeros_like(x[:1, :1, :1, :1]) for x, n in zip(indices(piece), array.shape, strict=True)
    ]
    return array[tuple(cuts)]


def _arange(numbers: range, device: Device) -> Array:
    return torch.arange(numbers.start, numbers.stop, numbers.step, device=device)
