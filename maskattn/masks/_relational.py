"""What masks of positions alone have in common."""

from __future__ import annotations

from typing import ClassVar

from maskattn.masks._core import Mask


class Relational(Mask):
    """Base of the masks that compare the positions of query and key, and read nothing else."""

    relational: ClassVar[bool] = True

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk")
