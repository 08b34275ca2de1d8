"""Products of rows with the matrix of their group, which read no matrix of a group without rows.

How many rows a group has depends on the data, and no graph of PyTorch says that: a compiler sees an operator.
"""

from __future__ import annotations

from typing import Any

import torch

from maskattn_torch._operators import operator
from maskattn_torch.types import Array

__all__ = ["grouped"]


def grouped(x: Array, weights: Array, counts: Array, turned: bool) -> Array:
    """Rows of x, sorted by group, each times the matrix of its group.

    Args:
        x: float [N, in].
        weights: [groups, in, out], or [groups, out, in] where `turned`; of the dtype of x.
        counts: int [groups], how many rows are of each; their sum is N.
        turned: which of the two.

    Returns:
        [N, out], of the dtype of x. A compiler takes first derivatives of it alone.
    """
    if not torch.compiler.is_compiling():
        pieces = zip(x.split(counts.tolist()), weights.unbind(), strict=True)
        return torch.cat([rows @ (each.T if turned else each) for rows, each in pieces if len(rows)])
    made: Array = _products(x, weights, counts, turned)
    return made


@operator("grouped_products")
def _products(x: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor, turned: bool) -> torch.Tensor:
    return grouped(x, weights, counts, turned)


@operator("grouped_gradients")
def _of_weights(left: torch.Tensor, right: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    sizes: list[int] = counts.tolist()
    return torch.stack([x.T @ y for x, y in zip(left.split(sizes), right.split(sizes), strict=True)])


@_products.register_fake
def _(x: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor, turned: bool) -> torch.Tensor:
    return x.new_empty((x.shape[0], weights.shape[1 if turned else 2]))


@_of_weights.register_fake
def _(left: torch.Tensor, right: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return left.new_empty((counts.shape[0], left.shape[1], right.shape[1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
    *held, ctx.turned = inputs
    ctx.save_for_backward(*held)


def _backward(ctx: Any, given: Array) -> tuple[Array, Array, None, None]:
    x, weights, counts = ctx.saved_tensors
    left, right = (given, x) if ctx.turned else (x, given)
    return _products(given, weights, counts, not ctx.turned), _of_weights(left, right, counts), None, None


_products.operator.register_autograd(_backward, setup_context=_keep)
