"""Rows of a table by their numbers, for any framework; the table's gradient is a sum in the order of the numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.rule import Arrays, Rule


class Options(NamedTuple):
    """Nothing is static."""


def _forward(ops: Ops, arrays: Arrays, options: Options) -> Array:
    return ops.rows(*arrays)


def _backward(ops: Ops, arrays: Arrays, d_out: Array, options: Options) -> tuple[Array | None, ...]:
    """The rows of one number are added one after the other, each sum is rounded once; others have a gradient of 0."""
    table, ids = arrays
    flat = ops.reshape(ids, (math.prod(ids.shape),))
    places = ops.first(flat, table.shape[0])
    rows = bits.widen(ops, ops.reshape(d_out, (flat.shape[0], table.shape[1])))

    def step(carry: tuple[Array, Array], given: tuple[Array, ...]) -> tuple[Array, Array]:
        (hi, lo), (row, place) = carry, given
        total = pair.two_sum(hi[place], row)
        return ops.put(hi, place, total.hi), ops.put(lo, place, lo[place] + total.lo)

    hi, lo = ops.scan(step, (ops.zeros(rows.shape, like=rows), ops.zeros(rows.shape, like=rows)), (rows, places))
    sums = bits.narrow(ops, *pair.two_sum(hi, lo), ops.dtype(d_out))
    return (ops.put(ops.zeros_like(table), flat, ops.rows(sums, places)),)


def _shape(arrays: Arrays, options: Options) -> tuple[int, ...]:
    return (*arrays[1].shape, arrays[0].shape[1])


EMBED = Rule("embed", _forward, _backward, Options, 2, 1, _shape)
