"""What a file says of a tensor."""

from __future__ import annotations

import math
from typing import NamedTuple

from maskattn.typing import NumPyDType


class TensorInfo(NamedTuple):
    """The shape and the dtype of a tensor that is not in memory.

    Attributes:
        shape: of any rank. dtype: of NumPy.
    """

    shape: tuple[int, ...]
    dtype: NumPyDType

    @property
    def nbytes(self) -> int:
        """Size in bytes, in exact integers: a hostile shape must not wrap around."""
        return math.prod(self.shape) * self.dtype.itemsize
