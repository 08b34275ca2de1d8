from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from maskattn._declared import choice, data, declared, integer
from maskattn._fields import Array
from maskattn._lookup import at_row, gather, rows_of
from maskattn._pairs import fixed
from maskattn._problems import Problems
from maskattn.biases._base import Bias

if TYPE_CHECKING:
    from jaxtyping import Float32, Int


@declared
class ALiBi(Bias):
    """-slopes[h] * abs(q + offset - k): the further apart, the less attention (Press, Smith and Lewis 2022, ALiBi).

    With a causal mask this is the paper's bias; without one it is the symmetric form used in encoders. Published code
    (the paper's own, BLOOM, Falcon) adds slopes[h] * k instead, `form="key"`: under a causal mask the two differ by a
    constant per row, which softmax does not see, but their roundings differ.

    The slopes of n heads are 2^(-8 i / n), i = 1..n, where n is a power of two; otherwise those of the power of two m
    below n, followed by every second slope of 2m heads, the first included, as in the paper's code and BLOOM (MPT
    orders them otherwise: give its slopes). They are rounded to float32 once, and so is each value: the same bits in
    NumPy, JAX and PyTorch. Gradients flow to `slopes`, summed in the order of the framework.

    >>> from maskattn import biases
    >>> biases.ALiBi(4).slopes.tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> import numpy as np
    >>> bias = biases.ALiBi(2)  # slopes 1/16 and 1/256
    >>> bias.values(0, 0, np.arange(2)[:, None], np.arange(3))
    array([[ 0.    , -0.0625, -0.125 ],
           [-0.0625,  0.    , -0.0625]], dtype=float32)
    """

    heads: int = integer(minimum=1, meaning="query heads")
    slopes: Float32[Array, " H"] = data(
        "float32", "[heads]", none="the published ones", default=None, meaning="one per head"
    )
    form: str = choice("distance", "key", default="distance", meaning="which of the two is added")
    offset: Int[Array, "*B"] = data(
        "int", "[] or [B]", or_int=True, default=0, meaning="the position of query 0 (decoding); key 0 is position 0"
    )

    def _check(self, problems: Problems) -> None:
        """slopes are not one per head"""
        if self.slopes is None:
            self._set(slopes=np.array(_slopes(self.heads), np.float32))
        elif tuple(self.slopes.shape) != (self.heads,):
            problems.value(f"slopes must be one per head, [{self.heads}], got {list(self.slopes.shape)}")

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        slope, _ = gather(self.slopes, h)
        if self.form == "key":
            return slope * _float32(k)
        return slope * _float32(-abs(q + at_row(self.offset, b) - k))

    @property
    def depends(self) -> frozenset[str]:
        head = "" if self.heads == 1 else "h"
        if self.form == "key":
            return frozenset(head + "k")
        return frozenset(head + "qk" + ("b" if rows_of(self.offset) else ""))

    def sizes(self) -> dict[str, int]:
        return fixed(heads=self.heads) | rows_of(self.offset)


def _float32(index: Array) -> Array:
    """An int array as float32 (NumPy would multiply in float64); an int as it is."""
    if hasattr(index, "astype"):
        return index.astype(np.float32)
    return index.float() if hasattr(index, "float") else index


def _slopes(heads: int) -> tuple[float, ...]:
    """The published slopes."""
    power = 1 << (heads.bit_length() - 1)
    exponents = [(8 * i, power) for i in range(1, power + 1)]
    exponents += [(8 * i, 2 * power) for i in range(1, 2 * (heads - power), 2)]
    return tuple(_half_to_the(over, under) for over, under in exponents)


def _half_to_the(over: int, under: int) -> float:
    """2^-(over / under), `under` a power of two, from square roots: no machine's `pow` has a say in it."""
    whole, rest = divmod(over, under)
    value, root = 0.5**whole, 0.5
    while rest:
        root, rest = math.sqrt(root), 2 * rest
        if rest >= under:
            value, rest = value * root, rest - under
    return value
