from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from maskattn._arithmetic import as_int, maximum, minimum
from maskattn._declared import data, declared, flag, integer
from maskattn._fields import Array
from maskattn._lookup import at_row, rows_of
from maskattn._problems import Problems
from maskattn.arrays import constant
from maskattn.biases._table import TableBias

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@declared
class T5Buckets(TableBias):
    """table[bucket(k - q - offset), h]: distances in buckets, exact when near, logarithmic when far.

    T5's relative position bias (Raffel et al. 2020, section 2.1; the rule is that of its code, and `table` its
    `relative_attention_bias.weight`). With `bidirectional` (encoders) each side has half of the buckets, keys after the
    query the second half; without (decoders) keys after the query share bucket 0. Of the n buckets of a side,
    m = n // 2 hold one distance each, and bucket m + j, up to n - 1, begins where m * (max_distance / m)^(j / (n - m))
    does: found in integers, once, so that no framework's logarithm decides.

    >>> import numpy as np
    >>> from maskattn import biases
    >>> bias = biases.T5Buckets(np.arange(8.0)[:, None], max_distance=16)
    >>> bias.rows(0, 4, np.arange(9))
    array([2, 2, 2, 1, 0, 5, 6, 6, 6])
    >>> biases.T5Buckets(np.zeros((8, 1)), 16, bidirectional=False).rows(0, 9, np.arange(12))
    array([6, 6, 5, 5, 4, 4, 3, 2, 1, 0, 0, 0])
    """

    table: Float[Array, "buckets H"] = data(
        "float", "[buckets, H]", meaning="learned, a row per bucket; [buckets, 1] serves every head"
    )
    max_distance: int = integer(default=128, meaning="from here on all distances share the last bucket of a side")
    bidirectional: bool = flag(default=True, meaning="whether keys after the query have buckets of their own")
    offset: Int[Array, "*B"] = data(
        "int", "[] or [B]", or_int=True, default=0, meaning="the position of query 0 (decoding); key 0 is position 0"
    )

    def _check(self, problems: Problems) -> None:
        """table has fewer than 2 buckets (bidirectional: 4), or max_distance is among those with a bucket each"""
        least = 4 if self.bidirectional else 2
        if self.table.shape[0] < least:
            problems.value(f"table must have at least {least} buckets, got {self.table.shape[0]}")
        exact = self.table.shape[0] // least
        if self.max_distance <= exact:
            problems.value(
                f"max_distance must exceed {exact}, below which each distance has a bucket, got {self.max_distance}"
            )

    def rows(self, b: Array, q: Array, k: Array) -> Array:
        """The bucket: T5's `_relative_position_bucket` of k - q - offset."""
        apart = k - q - at_row(self.offset, b)
        buckets = int(self.table.shape[0])
        if self.bidirectional:
            buckets //= 2
            side, distance = (apart > 0) * buckets, abs(apart)
        else:
            side, distance = 0, maximum(-apart, 0)
        exact = buckets // 2
        bucket = side + minimum(distance, exact)
        for begin in boundaries(buckets, self.max_distance):
            bucket = bucket + as_int(distance >= begin)
        return bucket

    @property
    def depends(self) -> frozenset[str]:
        read = "qk" if self.table.shape[1] == 1 else "hqk"  # `super().depends` is what PyTorch's compiler cannot read
        return frozenset(f"b{read}" if rows_of(self.offset) else read)

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), **rows_of(self.offset)}


@constant
@functools.lru_cache(maxsize=64)
def boundaries(buckets: int, max_distance: int) -> tuple[int, ...]:
    """Where the logarithmic buckets of one side begin, but for the first: the least distances d with

    log(d / m) / log(max_distance / m) * (n - m) >= j for j = 1, 2, ..., n = buckets, m = n // 2; that is, in integers,
    d^(n - m) >= max_distance^j * m^(n - m - j).
    """
    exact = buckets // 2
    steps = buckets - exact
    edges = []
    for j in range(1, steps):
        bound = max_distance**j * exact ** (steps - j)
        low, high = exact, max_distance  # low^steps < bound <= high^steps
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if middle**steps >= bound else (middle, high)
        edges.append(high)
    return tuple(edges)
