"""Rows of a learned table, and its gradient: the same bits as NumPy and JAX, whatever the order they come in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskattn.numerics.exact import table as exact_table
from maskattn_torch._operators import operator
from maskattn_torch.exact_ops import OPS

__all__ = ["look_up", "row_sums"]

Array = Any


def look_up(table: Array, rows: Array) -> Array:
    """table[rows]: table [R, H], rows int [B, 1, L, S] -> [B, H, L, S]. Its gradient is `row_sums`."""
    return _LookUp.apply(table, rows)


def row_sums(d_values: Array, rows: Array, count: int) -> Array:
    """The sums of d_values [B, H, L, S] over each of `count` rows: [count, H], summed exactly and rounded once."""
    return _RowSums.apply(d_values, rows, count)


class _LookUp(torch.autograd.Function):
    """Together with `_RowSums` it has derivatives of every order: each is the other's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(table: Tensor, rows: Tensor) -> Tensor:
        return table[rows[:, 0]].movedim(-1, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        table, rows = inputs
        ctx.save_for_backward(rows)
        ctx.count = table.shape[0]

    @staticmethod
    def backward(ctx: Any, d_values: Tensor) -> tuple[Any, ...]:
        return row_sums(d_values, ctx.saved_tensors[0], ctx.count), None


class _RowSums(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(d_values: Tensor, rows: Tensor, count: int) -> Tensor:
        return _row_sums(d_values, rows, count)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, d_table: Tensor) -> tuple[Any, ...]:
        return look_up(d_table, ctx.saved_tensors[0]), None, None


@operator("table_row_sums")
def _row_sums(d_values: Tensor, rows: Tensor, count: int) -> Tensor:
    numbers = torch.arange(count, device=rows.device)
    return exact_table.row_sums(OPS, d_values, rows.long(), numbers).contiguous()


@_row_sums.register_fake
def _(d_values: Tensor, rows: Tensor, count: int) -> Tensor:
    return d_values.new_empty((count, d_values.shape[1]))
