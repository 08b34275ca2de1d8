"""`TableBias`: a bias that is a row of a learned table, chosen by where query and key are."""

from __future__ import annotations

from maskattn._fields import Array
from maskattn._lookup import gather
from maskattn._pairs import fixed
from maskattn.biases._base import Bias


class TableBias(Bias):
    """values(b, h, q, k) = table[rows(b, q, k), h], with `table` [rows, H], or [rows, 1] for every head alike.

    A subclass defines `rows`, and declares `table` as `data("float", "[rows, H]")`. Lowered, the gradient of the table
    is summed in one stated order, so that it has the same bits in NumPy, JAX and PyTorch
    (`maskattn/numerics/exact/table.py`).
    """

    table: Array

    def rows(self, b: Array, q: Array, k: Array) -> Array:
        """The table's row for query q and key k of batch row b: an int of the broadcast shape, by integers alone."""
        raise NotImplementedError(f"{type(self).__name__} does not define rows(b, q, k)")

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        values, _ = gather(self.table, self.rows(b, q, k), h, stretch=(1,))
        return values

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk") if self.table.shape[1] == 1 else frozenset("hqk")

    def sizes(self) -> dict[str, int]:
        return fixed(heads=self.table.shape[1])
