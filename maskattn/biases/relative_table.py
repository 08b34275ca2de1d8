from __future__ import annotations

import math
from typing import TYPE_CHECKING

from maskattn._arithmetic import choose, maximum
from maskattn._declared import data, declared, flag, integers
from maskattn._fields import Array
from maskattn._lookup import coordinate
from maskattn._problems import Problems
from maskattn.biases._table import TableBias

if TYPE_CHECKING:
    from jaxtyping import Float


@declared
class RelativeTable(TableBias):
    """table[index(q, k), h]: a learned number for each offset between two places of a window.

    Swin's relative position bias (Liu et al. 2021, section 3.2): positions are places of the window in row-major order,
    L = S = their number, and index = (y_q - y_k + Wh - 1) * (2 Ww - 1) + (x_q - x_k + Ww - 1), of (2 Wh - 1) *
    (2 Ww - 1) offsets. `table` is timm's `relative_position_bias_table`. With `first`, as in BEiT, a token that is no
    place comes before them, and three rows more are those of that token for places, of places for it, and of it for
    itself.

    >>> import numpy as np
    >>> from maskattn import biases
    >>> bias = biases.RelativeTable(np.arange(9.0)[:, None], window=(2, 2))
    >>> bias.rows(0, np.arange(4)[:, None], np.arange(4))
    array([[4, 3, 1, 0],
           [5, 4, 2, 1],
           [7, 6, 4, 3],
           [8, 7, 5, 4]])
    """

    table: Float[Array, "offsets H"] = data(
        "float", "[offsets, H]", meaning="learned, a row per offset; [offsets, 1] serves every head"
    )
    window: tuple[int, ...] = integers(minimum=1, least=1, most=3, meaning="lengths of the axes")
    first: bool = flag(default=False, meaning="whether a token that is no place comes first")

    def _check(self, problems: Problems) -> None:
        """table has not one row per offset"""
        offsets = math.prod([2 * n - 1 for n in self.window]) + 3 * self.first
        if self.table.shape[0] != offsets:
            more = " and three of the first token" if self.first else ""
            problems.value(
                f"table must have {offsets} rows, one per offset in window {self.window}{more}, got "
                f"{self.table.shape[0]}"
            )

    def rows(self, b: Array, q: Array, k: Array) -> Array:
        """The index of the offset of q from k."""
        if not self.first:
            return self._offset(q, k)
        special = self.table.shape[0] - choose(q == 0, choose(k == 0, 1, 3), 2)
        return choose((q == 0) | (k == 0), special, self._offset(maximum(q - 1, 0), maximum(k - 1, 0)))

    def _offset(self, q: Array, k: Array) -> Array:
        row: Array = 0
        for axis, n in enumerate(self.window):
            i, j = coordinate(q, self.window, axis), coordinate(k, self.window, axis)
            row = row * (2 * n - 1) + (i - j + n - 1)
        return row

    def sizes(self) -> dict[str, int]:
        places = math.prod(self.window) + self.first
        return {**super().sizes(), "q_len": places, "kv_len": places}
