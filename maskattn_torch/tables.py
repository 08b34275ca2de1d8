"""Rows of a learned table, and its gradient: the same bits as NumPy and JAX, whatever the order they come in."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor as Array

from maskattn.numerics.exact import table as exact_table
from maskattn_torch._derivatives import primals
from maskattn_torch._operators import applied, operator
from maskattn_torch.exact_ops import OPS

__all__ = ["look_up", "row_sums"]


def look_up(table: Float[Array, "R H"], rows: Int[Array, "B 1 L S"]) -> Float[Array, "B H L S"]:
    """table[rows]: table [R, H], rows int [B, 1, L, S] -> [B, H, L, S]. Its gradient is `row_sums`."""
    values: Array = applied(_LookUpForward, _LookUp, table, rows)
    return values


def row_sums(d_values: Float[Array, "B H L S"], rows: Int[Array, "B 1 L S"], count: int) -> Float[Array, "R H"]:
    """The sums of d_values [B, H, L, S] over each of `count` rows: [count, H], summed exactly and rounded once."""
    sums: Array = applied(_RowSumsForward, _RowSums, d_values, rows, count)
    return sums


class _LookUp(torch.autograd.Function):
    """Together with `_RowSums` it has derivatives of every order: each is the other's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(table: Array, rows: Array) -> Array:
        return table[rows[:, 0]].movedim(-1, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        table, rows = inputs
        ctx.save_for_backward(rows)
        ctx.count = table.shape[0]

    @staticmethod
    def backward(ctx: Any, d_values: Array) -> tuple[Any, ...]:
        return row_sums(d_values, ctx.saved_tensors[0], ctx.count), None


class _LookUpForward(_LookUp):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _LookUp.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, d_table: Array, _: None) -> Array:
        with primals(ctx) as (rows,):
            return look_up(d_table, rows)


class _RowSums(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(d_values: Array, rows: Array, count: int) -> Array:
        return _row_sums(d_values, rows, count)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, d_table: Array) -> tuple[Any, ...]:
        return look_up(d_table, ctx.saved_tensors[0]), None, None


class _RowSumsForward(_RowSums):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _RowSums.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])
        ctx.count = inputs[2]

    @staticmethod
    def jvp(ctx: Any, d_values: Array, *_: None) -> Array:
        with primals(ctx) as (rows,):
            return row_sums(d_values, rows, ctx.count)


@operator("table_row_sums")
def _row_sums(d_values: Array, rows: Array, count: int) -> Array:
    numbers = torch.arange(count, device=rows.device)
    return exact_table.row_sums(OPS, d_values, rows.long(), numbers).contiguous()


@_row_sums.register_fake
def _(d_values: Array, rows: Array, count: int) -> Array:
    return d_values.new_empty((count, d_values.shape[1]))
