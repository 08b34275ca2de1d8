"""Biases on one rectangle of the score matrix, and the gradients of their arrays, gathered rectangle by rectangle."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor as Array

from maskattn.biases import Additive, ALiBi, Bias, DenseBias, TableBias
from maskattn.schedule.pieces import Piece
from maskattn_torch.kernels.blockwise.windows import allowed, dense_part, indices, read_indices, rectangle
from maskattn_torch.types import Device

__all__ = ["BiasGradients", "leaves_of", "undifferentiated", "values"]


def values(bias: Bias, piece: Piece, dtype: torch.dtype, device: Device) -> Array:
    """The bias in `dtype`, broadcasting to [count, heads, rows, cols]."""
    if isinstance(bias, DenseBias):
        return dense_part(bias.array.reshape(bias.shape), piece).to(dtype)
    if isinstance(bias, Additive):
        return (~allowed(bias.mask, piece)).to(dtype) * bias.value
    return bias.values(*read_indices(bias, piece, device)).to(dtype)


def undifferentiated(bias: Bias | None) -> list[str]:
    """The arrays that require a gradient, of a bias that `BiasGradients` knows nothing about."""
    if bias is None or isinstance(bias, (DenseBias, TableBias, ALiBi)):
        return []
    own = {name: getattr(bias, name) for name in bias.data_fields()}
    found = [name for name, x in own.items() if getattr(x, "requires_grad", False)]
    within = [x for x in leaves_of(bias) if not any(x is one for one in own.values())]
    return [*found, *(["part"] if any(getattr(x, "requires_grad", False) for x in within) else [])]


class BiasGradients:
    """The gradient of each array of a bias, in the order of its leaves; None for those that are not wanted."""

    def __init__(self, bias: Bias | None, wanted: list[bool], dtype: torch.dtype) -> None:
        self.bias = bias
        leaves = leaves_of(bias)
        # a table's rows are sums over all pairs: float64 keeps them as accurate as their terms
        dtypes = [torch.float64 if isinstance(bias, (TableBias, ALiBi)) else dtype for _ in leaves]
        self.sums = [
            torch.zeros(x.shape, dtype=d, device=x.device) if want else None
            for x, want, d in zip(leaves, wanted, dtypes, strict=True)
        ]

    def add(self, piece: Piece, d_logits: Array) -> None:
        """Take in one rectangle: d_logits [count, heads, rows, cols], which is not changed."""
        total = self.sums[0] if self.sums else None
        if total is None:
            return
        if isinstance(self.bias, DenseBias):
            _add_dense(total.view(self.bias.shape), piece, d_logits)
        elif isinstance(self.bias, TableBias):
            _add_rows(total, self.bias, piece, d_logits)
        elif isinstance(self.bias, ALiBi):
            ones = replace(self.bias, slopes=torch.ones_like(self.bias.slopes))
            apart = ones.values(*read_indices(ones, piece, d_logits.device)).to(d_logits.dtype)
            by_head = (d_logits * apart).sum((0, 2, 3)).double()
            heads = total.shape[0]
            numbers = torch.arange(piece.heads.start, piece.heads.stop, piece.heads.step, device=d_logits.device)
            total.index_add_(0, numbers if heads > 1 else torch.zeros_like(numbers), by_head)

    def results(self) -> list[Array]:
        """The gradients that were wanted, in the dtypes of their arrays."""
        arrays = zip(self.sums, leaves_of(self.bias), strict=True)
        return [total.to(x.dtype) for total, x in arrays if total is not None]


def leaves_of(bias: Bias | None) -> list[Array]:
    """The arrays of a bias and of the masks in it."""
    leaves: list[Array] = []
    if bias is not None:
        bias.map_data(leaves.append)
    return leaves


def _add_dense(total: Array, piece: Piece, d_logits: Array) -> None:
    reduced = [axis for axis in range(4) if total.shape[axis] == 1 and d_logits.shape[axis] > 1]
    q_step, k_step = piece.q_step * (total.shape[2] > 1), piece.k_step * (total.shape[3] > 1)
    if piece.count > 1 and not q_step and not k_step:
        # every rectangle adds to the same entries
        reduced = sorted({0, *reduced})
    elif piece.count > 1:
        reduced = [axis for axis in reduced if axis != 0]
    summed = d_logits.sum(reduced, keepdim=True) if reduced else d_logits
    for n in range(summed.shape[0] if piece.count > 1 else 1):
        dense_part(total, rectangle(piece, n)).add_(summed[n : n + 1] if piece.count > 1 else summed)


def _add_rows(total: Array, bias: TableBias, piece: Piece, d_logits: Array) -> None:
    b, _, q, k = indices(piece, d_logits.device)
    rows = bias.rows(b, q, k)
    rows = rows.reshape((1,) * (4 - rows.ndim) + tuple(rows.shape))
    if rows.shape[0] == 1:
        d_logits = d_logits.sum(0, keepdim=True)
    columns = total.shape[1]
    if columns == 1:
        d_logits = d_logits.sum(1, keepdim=True)
    rows = rows.expand(d_logits.shape[0], 1, *d_logits.shape[2:]).reshape(-1)
    by_row = d_logits.new_zeros((total.shape[0], d_logits.shape[1]))
    by_row.index_add_(0, rows, d_logits.movedim(1, -1).reshape(-1, d_logits.shape[1]))
    heads = slice(piece.heads.start, piece.heads.stop, piece.heads.step) if columns > 1 else slice(None)
    total[:, heads] += by_row
