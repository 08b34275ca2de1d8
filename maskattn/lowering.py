"""Masks and biases as arrays of a framework: what is the same in each, given what differs (`Lowering`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from maskattn._arithmetic import negated
from maskattn._fields import Array
from maskattn._pairs import AXES, Pairwise, grid
from maskattn._problems import Problems
from maskattn.biases import Additive, Bias, DenseBias, TableBias
from maskattn.masks import Full, Mask, evaluate, require_mask

ScoreShape = tuple[int, int, int, int]  # batch, heads, q_len, kv_len


class Lowering(NamedTuple):
    """What lowering needs of a framework."""

    readable: Callable[[Array], Array]  # in NumPy where reading waits for no device; else as it is
    bind: Callable[[Any], Any]  # a mask or bias with its data as arrays of the framework
    arange: Callable[[Any], Callable[[int], Array]]  # makes index arrays for a bound mask or bias
    float32: Callable[[Array], Array]
    look_up: Callable[[Array, Array], Array]  # rows of a table, with its gradient


def check(node: Pairwise, sizes: ScoreShape, readable: Callable[[Array], Array]) -> None:
    """Raise a ValueError naming every conflict between these sizes and the data of a mask or bias."""
    reasons = node.map_data(readable).conflicts(dict(zip(AXES, sizes, strict=True)))
    Problems(f"sizes of {type(node).__name__}", reasons).raise_if_any()


def allowed(mask: Mask | None, sizes: ScoreShape, lowering: Lowering) -> Array | None:
    """Where the mask allows: bool, rank 4, broadcastable to `sizes`; None where everything is allowed."""
    if mask is None:
        return None
    check(mask, sizes, lowering.readable)
    if isinstance(mask, Full):
        return None
    mask = lowering.bind(mask)
    return evaluate(mask, sizes, lowering.arange(mask))


def bias(bias: Bias | None, sizes: ScoreShape, lowering: Lowering) -> Array | None:
    """The bias as a float array, rank 4, broadcastable to `sizes`."""
    if bias is None:
        return None
    check(bias, sizes, lowering.readable)
    bias = lowering.bind(bias)
    if isinstance(bias, DenseBias):
        return bias.array.reshape(bias.shape)
    arange = lowering.arange(bias)
    if isinstance(bias, Additive):
        return lowering.float32(negated(evaluate(bias.mask, sizes, arange))) * bias.value
    b, h, q, k = grid(bias.depends, sizes, arange)
    return lowering.look_up(bias.table, bias.rows(b, q, k)) if isinstance(bias, TableBias) else bias.values(b, h, q, k)


def dense(
    mask: Mask, q_len: int, kv_len: int, batch: int | None, heads: int | None, lowering: Lowering
) -> tuple[Array, ScoreShape]:
    """The mask as an array that broadcasts to sizes, and the sizes: those not given come from the data."""
    require_mask("to_dense", mask)
    settled = mask.map_data(lowering.readable).settle(q_len, kv_len, batch, heads)
    sizes = (settled["batch"], settled["heads"], settled["q_len"], settled["kv_len"])
    mask = lowering.bind(mask)
    return evaluate(mask, sizes, lowering.arange(mask)), sizes
