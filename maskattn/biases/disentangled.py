from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskattn._arithmetic import as_int, clip, maximum, minimum
from maskattn._declared import data, declared, integer
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._lookup import gather
from maskattn._pairs import fixed
from maskattn._problems import Problems
from maskattn.biases._base import Bias

if TYPE_CHECKING:
    from jaxtyping import Float


@declared
class Disentangled(Bias):
    """of_queries[b, h, q, r] + of_keys[b, h, k, r], r the relative position of q and k: DeBERTa's two terms.

    He et al. 2021, section 3.1: `of_queries` are the products of queries with the keys of relative positions (c2p),
    `of_keys` those of keys with their queries (p2c), both scaled. r is the distance q - k in buckets, clamped to
    [-span, span), plus span. With `buckets` distances up to m = buckets // 2 are their own bucket, and the bucket m + j
    ends where m * ((max_distance - 1) / m)^(j / (m - 1)) does (version 2): found in integers, once.

    >>> import numpy as np
    >>> from maskattn import biases
    >>> bias = biases.Disentangled(np.zeros((1, 1, 9, 8)), np.zeros((1, 1, 9, 8)), span=4)
    >>> bias.rows(4, np.arange(9))
    array([7, 7, 6, 5, 4, 3, 2, 1, 0])
    >>> biases.Disentangled(np.zeros((1, 1, 9, 16)), np.zeros((1, 1, 9, 16)), 8, buckets=4, max_distance=9).rows(
    ...     8, np.arange(9)
    ... )
    array([11, 11, 11, 11, 11, 11, 10,  9,  8])
    """

    of_queries: Float[Array, "#B H L R"] = data("float", "[B, H, L, R]", meaning="what a query adds, R = 2 * span")
    of_keys: Float[Array, "#B H S R"] = data("float", "[B, H, S, R]", meaning="what a key adds")
    span: int = integer(minimum=1, meaning="distances are clamped to [-span, span)")
    buckets: int = integer(minimum=0, default=0, meaning="of logarithmic distances; 0: each its own")
    max_distance: int = integer(minimum=2, default=512, meaning="the distance of the last bucket")

    def _check(self, problems: Problems) -> None:
        """the two arrays do not go together, or have not 2 * span numbers each"""
        for name in ("of_queries", "of_keys"):
            shape = tuple(getattr(self, name).shape)
            if shape[3] != 2 * self.span:
                problems.value(f"{name} must have 2 * span = {2 * self.span} numbers in its last axis, got {shape}")
        if self.of_queries.shape[1] != self.of_keys.shape[1]:
            heads = [x.shape[1] for x in (self.of_queries, self.of_keys)]
            problems.value(f"of_queries and of_keys must agree in heads, got {heads[0]} and {heads[1]}")
        if self.buckets and self.max_distance - 1 <= self.buckets // 2:
            problems.value(
                f"max_distance must exceed buckets // 2 + 1 = {self.buckets // 2 + 1}, got {self.max_distance}"
            )

    def rows(self, q: Array, k: Array) -> Array:
        """The relative position r: int in [0, 2 * span), of the broadcast shape of q and k, integer arrays or ints."""
        apart = q - k
        if self.buckets:
            middle = self.buckets // 2
            distance = abs(apart)
            bucket = minimum(distance, middle)
            for end in _ends(middle, self.max_distance, self.span):
                bucket = bucket + as_int(distance > end)
            apart = bucket * (as_int(apart > 0) - as_int(apart < 0))
        return clip(apart, -self.span, self.span - 1) + self.span

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        row = self.rows(q, k)
        one, _ = gather(self.of_queries, b, h, q, row)
        other, _ = gather(self.of_keys, b, h, k, row)
        return one + other

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("bhqk" if "batch" in self.sizes() else "hqk")

    def sizes(self) -> dict[str, int]:
        batch, heads, q_len, _ = self.of_queries.shape
        return fixed(max(batch, self.of_keys.shape[0]), heads, q_len=q_len, kv_len=self.of_keys.shape[2])

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Bias]:
        one, other = (
            np.asarray(draws.normal((shape.batch, shape.heads, length, 6)), np.float32)
            for length in (shape.q_len, shape.kv_len)
        )
        return [cls(one, other, span=3), cls(one, other, span=3, buckets=4, max_distance=5)]


_FOUND: dict[tuple[int, int, int], tuple[int, ...]] = {}


def _ends(middle: int, max_distance: int, span: int) -> tuple[int, ...]:
    """The last distance of each bucket from `middle` on, but for those that are clamped to `span` in any case.

    The bucket middle + j has the distances d with (d / middle)^(middle - 1) <= ((max_distance - 1) / middle)^j.
    """
    key = (middle, max_distance, span)
    if key not in _FOUND:
        _FOUND[key] = tuple(_end(middle, max_distance - 1, j) for j in range(max(span - middle, 0) + 1))
    return _FOUND[key]


def _end(middle: int, most: int, j: int) -> int:
    low, high = middle, maximum(middle, most)
    bound = most**j * middle ** max(middle - 1 - j, 0)
    power, lift = max(middle - 1, 1), middle ** max(j - (middle - 1), 0)
    while high**power * lift <= bound:
        high *= 2
    while high - low > 1:
        between = (low + high) // 2
        low, high = (between, high) if between**power * lift <= bound else (low, between)
    return low
