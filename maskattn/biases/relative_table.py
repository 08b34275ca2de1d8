from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from maskattn._fields import Array, data
from maskattn._lookup import coordinate
from maskattn._problems import Problems
from maskattn.biases._table import TableBias


@dataclass(frozen=True)
class RelativeTable(TableBias):
    """table[index(q, k), h]: a learned number for each offset between two places of a window.

    Swin's relative position bias (Liu et al. 2021, section 3.2): positions are places of the window in row-major order,
    L = S = their number, and index = (y_q - y_k + Wh - 1) * (2 Ww - 1) + (x_q - x_k + Ww - 1). `window` is a tuple of 1
    to 3 axes; `table` is [(2 Wh - 1) * (2 Ww - 1), H] (timm's `relative_position_bias_table`), or [.., 1] for every
    head alike.

    >>> import numpy as np
    >>> from maskattn import biases
    >>> bias = biases.RelativeTable(np.arange(9.0)[:, None], window=(2, 2))
    >>> bias.rows(0, np.arange(4)[:, None], np.arange(4))
    array([[4, 3, 1, 0],
           [5, 4, 2, 1],
           [7, 6, 4, 3],
           [8, 7, 5, 4]])

    Raises:
        ValueError: the table has not one row per offset. TypeError: it is not of a float dtype, or window not of ints.
    """

    table: Array = data()
    window: Any = ()

    def _check(self, problems: Problems) -> None:
        table = problems.array("table", self.table, "float", "[offsets, H]", (2,))
        window = problems.integers("window", self.window, minimum=1)
        if not problems and not 1 <= len(window) <= 3:
            problems.value(f"window must have 1 to 3 axes, got {window}")
        if not problems:
            offsets = math.prod([2 * n - 1 for n in window])
            if table.shape[0] != offsets:
                problems.value(
                    f"table must have {offsets} rows, one per offset in window {window}, got {table.shape[0]}"
                )
        self._set(table=table, window=window)

    def rows(self, b: Array, q: Array, k: Array) -> Array:
        """The index of the offset of q from k."""
        row: Array = 0
        for axis, n in enumerate(self.window):
            i, j = coordinate(q, self.window, axis), coordinate(k, self.window, axis)
            row = row * (2 * n - 1) + (i - j + n - 1)
        return row

    def sizes(self) -> dict[str, int]:
        places = math.prod(self.window)
        return {**super().sizes(), "q_len": places, "kv_len": places}
