from __future__ import annotations

from typing import TYPE_CHECKING

from maskattn._declared import data, declared
from maskattn._fields import Array
from maskattn._lookup import gather
from maskattn._pairs import AXES
from maskattn.biases._base import Bias

if TYPE_CHECKING:
    from jaxtyping import Float


@declared
class DenseBias(Bias):
    """array[b, h, q, k], an explicit array, for a bias given to `attention` or learned elsewhere.

    An axis of size 1 serves every index. The array keeps its dtype, and gradients flow to it. -inf forbids, as a mask
    does. Indices given to `values` lie inside the array.

    >>> import numpy as np
    >>> from maskattn import biases
    >>> bias = biases.DenseBias(np.array([[0.0, -1.0], [0.5, 0.0]]))
    >>> bias.values(0, 0, np.array([[0], [1]]), np.array([[0, 1]]))
    array([[ 0. , -1. ],
           [ 0.5,  0. ]])
    """

    array: Float[Array, "*shape"] = data("float", "broadcastable to [B, H, L, S]", meaning="what is added")

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape with leading axes of size 1 up to [B, H, L, S]."""
        return (1,) * (4 - len(self.array.shape)) + tuple(self.array.shape)

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        values, _ = gather(self.array.reshape(self.shape), b, h, q, k, stretch=(0, 1, 2, 3))
        return values

    @property
    def depends(self) -> frozenset[str]:
        return frozenset(name for name, size in zip("bhqk", self.shape, strict=True) if size != 1)

    def sizes(self) -> dict[str, int]:
        return {axis: size for axis, size in zip(AXES, self.shape, strict=True) if size != 1}
