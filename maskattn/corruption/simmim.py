from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maskattn._problems import Problems
from maskattn.corruption._base import Array, Scheme, batch_size, fraction, ready
from maskattn.corruption._ops import NUMPY, Ops, rank


class Units(NamedTuple):
    """What `SimMIM` returns."""

    #: bool [B, height / patch, width / patch]: True = the patch is replaced by a mask token
    removed: Array


@dataclass(frozen=True, repr=False)
class SimMIM(Scheme):
    """SimMIM's random masking: square units of an image are hidden, each several of the model's patches wide.

    Xie et al. 2022 (arXiv:2111.09886, section 3.2, page 4): units of 32 x 32 pixels, 60 % of them, for any patch size;
    as `MaskGenerator` of microsoft/SimMIM: ceil(units * ratio) units are hidden.

    Args:
        image_size: pixels, an int or (height, width): multiples of the unit.
        unit: pixels along the side of a unit: a multiple of the patch.
        patch: pixels along the side of the model's patch (Swin: 4, ViT: 16).
        ratio: the fraction hidden, in (0, 1].

    >>> from maskattn import corruption
    >>> drawn = corruption.SimMIM(image_size=16, unit=8, patch=4, ratio=0.5).apply(1, batch=1)
    >>> drawn.removed[0].astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0],
           [0, 0, 1, 1],
           [0, 0, 1, 1]])

    Raises:
        ValueError: a size is no multiple of the one that it should hold, or the ratio is outside (0, 1] or keeps
        nothing. TypeError: something is not a number. All of it at once.
    """

    image_size: Any = (192, 192)
    unit: int = 32
    patch: int = 4
    ratio: float = 0.6

    def __post_init__(self) -> None:
        problems = Problems("SimMIM")
        sides = problems.integers("image_size", self.image_size, minimum=1, length=2)
        unit, patch = problems.integer("unit", self.unit, minimum=1), problems.integer("patch", self.patch, minimum=1)
        ratio = fraction(problems, "ratio", self.ratio)
        if not problems.reasons:
            if any(side % unit for side in sides):
                problems.value(f"image_size must be a multiple of unit {unit}, got {sides}")
            if unit % patch:
                problems.value(f"unit must be a multiple of patch {patch}, got {unit}")
        if not problems.reasons:
            units = sides[0] * sides[1] // unit**2
            if ratio == 0:
                problems.value("ratio must be above 0, or nothing is hidden, got 0")
            elif math.ceil(units * ratio) == units:
                problems.value(f"ratio must keep at least one of {units} units, got {ratio}")
        ready(problems, self, image_size=sides, unit=unit, patch=patch, ratio=ratio)

    def apply(self, key: Array, batch: int, *, ops: Ops = NUMPY) -> Units:
        """Draw what is hidden from `batch` images.

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
