"""What a file says of a tensor."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class TensorInfo(NamedTuple):
    """The shape and the dtype of a tensor that is not in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size in bytes, in exact integers: a hostile shape must not wrap around."""
        return math.prod(self.shape) * self.dtype.itemsize
