from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maskattn._declared import declared, integer, integers, number
from maskattn._problems import Problems
from maskattn.corruption._base import Scheme, batch_size
from maskattn.corruption._ops import NUMPY, Ops, rank
from maskattn.typing import Traced as Array

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt32


class Units(NamedTuple):
    """What `SimMIM` returns.

    Attributes:
        removed: bool [B, height / patch, width / patch]: True = the patch is replaced by a mask token.
    """

    removed: Bool[Array, "B height / patch width / patch"]


@declared
class SimMIM(Scheme[Units]):
    """SimMIM's random masking: square units of an image are hidden, each several of the model's patches wide.

    Xie et al. 2022 (arXiv:2111.09886, section 3.2, page 4): units of 32 x 32 pixels, 60 % of them, for any patch size;
    as `MaskGenerator` of microsoft/SimMIM: ceil(units * ratio) units are hidden.

    >>> from maskattn import corruption
    >>> drawn = corruption.SimMIM(image_size=16, unit=8, patch=4, ratio=0.5).apply(1, batch=1)
    >>> drawn.removed[0].astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [0, 0, 1, 1],
           [0, 0, 1, 1]])
    """

    image_size: Any = integers(
        minimum=1, per=2, default=(192, 192), meaning="pixels, (height, width): multiples of unit"
    )
    unit: int = integer(minimum=1, default=32, meaning="pixels along the side of a unit: a multiple of patch")
    patch: int = integer(minimum=1, default=4, meaning="pixels along the side of the model's patch (Swin: 4, ViT: 16)")
    ratio: float = number(above=0, maximum=1, default=0.6, meaning="the fraction of the units that is hidden")

    def _check(self, problems: Problems) -> None:
        """a size is no multiple of what it must be, or no unit would be left"""
        if any(side % self.unit for side in self.image_size):
            problems.value(f"image_size must be a multiple of unit {self.unit}, got {self.image_size}")
        if self.unit % self.patch:
            problems.value(f"unit must be a multiple of patch {self.patch}, got {self.unit}")
        if not problems:
            units = self.image_size[0] * self.image_size[1] // self.unit**2
            if math.ceil(units * self.ratio) == units:
                problems.value(f"ratio must keep at least one of {units} units, got {self.ratio}")

    def apply(self, key: int | UInt32[Array, " 2"], batch: int, *, ops: Ops = NUMPY) -> Units:
        """Draw what is hidden from `batch` images, by `key` (see `Scheme`).

        Raises:
            ValueError: batch is negative. TypeError: it is not an int.
        """
        batch = batch_size("SimMIM", batch)
        rows, columns = (side // self.unit for side in self.image_size)
        count = math.ceil(rows * columns * self.ratio)
        hidden = rank(ops, ops.words(ops.key(key), (batch, rows * columns))) < count
        scale = self.unit // self.patch
        row, column = np.arange(rows * scale) // scale, np.arange(columns * scale) // scale
        return Units(hidden[:, row[:, None] * columns + column])
