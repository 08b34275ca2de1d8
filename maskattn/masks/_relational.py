"""What masks of positions alone have in common, and those among them that compare blocks of positions."""

from __future__ import annotations

from typing import ClassVar

from maskattn._problems import Problems
from maskattn.masks._core import Mask


class Relational(Mask):
    """Base of the masks that compare the positions of query and key, and read nothing else."""

    relational: ClassVar[bool] = True

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk")


class Blocked(Relational):
    """A mask of the blocks of `size` positions that query and key lie in; a subclass declares `size`."""

    size: int

    def _check(self, problems: Problems) -> None:
        self._set(size=problems.integer("size", self.size, minimum=1))
