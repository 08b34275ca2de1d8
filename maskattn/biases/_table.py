"""`TableBias`: a bias that is a row of a learned table, chosen by where query and key are."""

from __future__ import annotations

from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.biases._base import Bias
from maskattn.masks._lookup import gather


class TableBias(Bias):
    """values(b, h, q, k) = table[rows(b, q, k), h], with `table` [rows, H], or [rows, 1] for every head alike.

    A subclass declares `table: Array = data()` and defines `rows`. Lowered, the gradient of the table is summed in one
    stated order, so that it has the same bits in NumPy, JAX and PyTorch (`maskattn.numerics.exact.table`).
    """

    table: Array

    def rows(self, b: Array, q: Array, k: Array) -> Array:
        """The table's row for query q and key k of batch row b: an int of the broadcast shape, by integers alone."""
        raise NotImplementedError(f"{type(self).__name__} does not define rows(b, q, k)")

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        found, _ = gather(self.table, self.rows(b, q, k), h, stretch=(1,))
        return found

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk") if self.table.shape[1] == 1 else frozenset("hqk")

    def sizes(self) -> dict[str, int]:
        heads = int(self.table.shape[1])
        return {} if heads == 1 else {"heads": heads}


def query_offset(problems: Problems, value: Array) -> Array:
    """The argument `offset`, checked: an int, or an int array [] or [B]."""
    if hasattr(value, "__len__") or hasattr(value, "dtype"):
        return problems.array("offset", value, "int", "[] or [B]", (0, 1))
    return problems.integer("offset", value)


def offset_at(offset: Array, b: Array) -> Array:
    """The offset of batch row b."""
    if isinstance(offset, int) or len(offset.shape) == 0:
        return offset
    found, inside = gather(offset, b)
    return found * inside


def offset_rows(offset: Array) -> dict[str, int]:
    """The batch that an offset per row fixes: {} or {"batch": B}."""
    if isinstance(offset, int) or len(offset.shape) == 0 or offset.shape[0] == 1:
        return {}
    return {"batch": int(offset.shape[0])}
