from __future__ import annotations

import decimal
import functools
from dataclasses import dataclass

import numpy as np

from maskattn._fields import Array, data
from maskattn._lookup import at_row, gather, rows_of
from maskattn._pairs import fixed
from maskattn._problems import Problems
from maskattn.biases._base import Bias

_FORMS = ("distance", "key")


@dataclass(frozen=True)
class ALiBi(Bias):
    """-slopes[h] * abs(q + offset - k): the further apart, the less attention (Press, Smith and Lewis 2022, ALiBi).

    With a causal mask this is the paper's bias; without one it is the symmetric form used in encoders. Published code
    (the paper's own, BLOOM, Falcon) adds slopes[h] * k instead, `form="key"`: under a causal mask the two differ by a
    constant per row, which softmax does not see, but their roundings differ.

    The slopes of n heads are 2^(-8 i / n), i = 1..n, where n is a power of two; otherwise those of the power of two m
    below n, followed by every second slope of 2m heads, the first included, as in the paper's code and BLOOM (MPT
    orders them otherwise: give its slopes). They are rounded to float32 once, and so is each value: the same bits in
    NumPy, JAX and PyTorch. `slopes` [heads], float32, replaces them; gradients flow to it, summed in the order of the
    framework.

    `offset` is the position of query 0 (decoding): an int, or an int array [] or [B]; key 0 is position 0.

    >>> from maskattn import biases
    >>> biases.ALiBi(4).slopes.tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> import numpy as np
    >>> bias = biases.ALiBi(2)  # slopes 1/16 and 1/256
    >>> bias.values(0, 0, np.arange(2)[:, None], np.arange(3))
    array([[ 0.    , -0.0625, -0.125 ],
           [-0.0625,  0.    , -0.0625]], dtype=float32)

    Raises:
        TypeError: heads or offset is not an int, slopes not float32. ValueError: heads < 1, slopes not [heads], or an
        unknown form.
    """

    heads: int
    slopes: Array = data(default=None)
    form: str = "distance"
    offset: Array = data(default=0)

    def _check(self, problems: Problems) -> None:
        heads = problems.integer("heads", self.heads, minimum=1)
        problems.choice("form", self.form, _FORMS)
        offset = problems.integer_or_array("offset", self.offset, "[] or [B]")
        slopes = self.slopes
        if slopes is not None:
            slopes = problems.array("slopes", slopes, "float", "[heads]")
            if not str(slopes.dtype).endswith("float32"):
                problems.type(f"slopes must be float32, got dtype {slopes.dtype}")
            if tuple(slopes.shape) != (heads,):
                problems.value(f"slopes must be one per head, [{heads}], got {list(slopes.shape)}")
        if not problems and slopes is None:
            slopes = np.array(_slopes(heads), np.float32)
        self._set(heads=heads, offset=offset, slopes=slopes)

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


@functools.lru_cache
def _slopes(heads: int) -> tuple[float, ...]:
    """The published slopes, by decimal arithmetic: no machine's `pow` has a say in them."""
    power = 1 << (heads.bit_length() - 1)
    exponents = [(8 * i, power) for i in range(1, power + 1)]
    exponents += [(8 * i, 2 * power) for i in range(1, 2 * (heads - power), 2)]
    with decimal.localcontext(prec=40):
        return tuple(float(1 / decimal.Decimal(2) ** (decimal.Decimal(over) / under)) for over, under in exponents)
