from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maskattn._declared import declared, integer, integers, number
from maskattn._problems import Problems
from maskattn.corruption._base import Scheme, batch_size
from maskattn.corruption._ops import BITS, NUMPY, Ops
from maskattn.corruption._rectangle import rectangle
from maskattn.typing import Traced as Array

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt32

_ATTEMPTS = 10
_ASPECTS = 12  # bits of a draw of the aspect ratio
_AREA = 16  # bits of a draw of the area


class Blocks(NamedTuple):
    """What `BEiT` returns.

    Attributes:
        removed: bool [B, height, width]: True = the patch is replaced by a mask token.
    """

    removed: Bool[Array, "B height width"]


@declared
class BEiT(Scheme[Blocks]):
    """BEiT's block-wise masking: rectangles of patches are hidden until there are enough.

    Bao et al. 2022 (arXiv:2106.08254, section 2.3, algorithm 1, page 4), as `MaskingGenerator` of microsoft/unilm.
    While fewer than `patches` are hidden, a block is drawn, its area uniform between `min_block` and the number still
    to hide (at most `max_block`), its aspect ratio (height / width) log-uniform between min_aspect and max_aspect, its
    corner uniform. It is taken if it is smaller than the grid along both axes and hides at least one patch and not too
    many. After 10 blocks refused in a row the row is left as it is: at most `patches` are hidden, often a few less.

    The area is drawn in 2^16 steps and the aspect in 2^12, so that all arithmetic is exact.

    >>> from maskattn import corruption
    >>> drawn = corruption.BEiT(grid=(6, 8), patches=20, min_block=6).apply(0, batch=1)
    >>> print("\\n".join("".join("-#"[int(x)] for x in row) for row in drawn.removed[0]))
    --------
    -----##-
    --######
    --######
    --######
    --------
    """

    grid: Any = integers(minimum=1, per=2, default=(14, 14), meaning="(height, width) in patches, fewer than 2**15")
    patches: int = integer(minimum=1, default=75, meaning="how many are to be hidden, fewer than there are")
    min_block: int = integer(minimum=1, default=16, meaning="the fewest patches of a block")
    max_block: int | None = integer(minimum=1, none="patches", default=None, meaning="the most patches of a block")
    min_aspect: float = number(above=0, default=0.3, meaning="the least aspect ratio")
    max_aspect: float | None = number(above=0, none="1 / min_aspect", default=None, meaning="the largest aspect ratio")

    def _check(self, problems: Problems) -> None:
        """grid has too many patches, no patch would be left, or bounds are not in order"""
        low, high = self._aspects
        if not low <= high < math.inf:
            problems.value(f"min_aspect, max_aspect must be in order, got {low} and {high}")
        total = self.grid[0] * self.grid[1]
        if total >= 2**15:
            problems.value(f"grid must have fewer than {2**15} patches, got {total}")
        if self.patches >= total:
            problems.value(f"patches must be fewer than the {total} of the grid, or none is left, got {self.patches}")
        if self.min_block > self._largest:
            problems.value(f"min_block must be at most {self._largest}, the largest block, got {self.min_block}")

    @property
    def _largest(self) -> int:
        return self.patches if self.max_block is None else self.max_block

    @property
    def _aspects(self) -> tuple[float, float]:
        return self.min_aspect, 1 / self.min_aspect if self.max_aspect is None else self.max_aspect

    def apply(self, key: int | UInt32[Array, " 2"], batch: int, *, ops: Ops = NUMPY) -> Blocks:
        """Draw what is hidden from `batch` images, by `key` (see `Scheme`).

        Under jit, and in PyTorch, the loop runs until the last row is done; a row's result does not depend on others.

        Raises:
            ValueError: batch is negative. TypeError: it is not an int.
        """
        batch = batch_size("BEiT", batch)
        key = ops.key(key)
        largest, (low, high) = self._largest, self._aspects
        steps = (np.arange(2**_ASPECTS) + 0.5) / 2**_ASPECTS
        ratios = np.exp(math.log(low) + steps * math.log(high / low))
        taller, wider = ops.to_float(ratios), ops.to_float(1 / ratios)
        # a side is round(sqrt(area * ratio)): as many as there are n >= 1 with (n - 1/2)^2 <= area * ratio
        edges = [(np.arange(1, side + 1) - 0.5) ** 2 * 2**_AREA for side in self.grid]
        rows, columns = (ops.to_float(edge) for edge in edges)

        def going(state: Any) -> Array:
            _, _, hidden, refused = state
            return (hidden < self.patches) & (refused < _ATTEMPTS)

        def step(state: Any) -> Any:
            turn, removed, hidden, refused = state
            draws = ops.words(ops.fold_in(key, turn), (batch, 4))
            still = self.patches - hidden
            still = ops.where(still > largest, largest, still)
            area = self.min_block * 2**_AREA + (draws[:, 0] >> (BITS - _AREA)) * (still - self.min_block)
            aspect = draws[:, 1] >> (BITS - _ASPECTS)
            height = ops.sum((ops.to_float(area) * taller[aspect])[:, None] >= rows)
            width = ops.sum((ops.to_float(area) * wider[aspect])[:, None] >= columns)
            inside = (height < self.grid[0]) & (width < self.grid[1])
            top, left = draws[:, 2] % (self.grid[0] - height + 1), draws[:, 3] % (self.grid[1] - width + 1)
            block = rectangle(ops, self.grid, top, left, height, width)
            new = ops.sum(block & ~removed, 2)
            taken = going(state) & inside & (new > 0) & (new <= still)
            removed = removed | (block & taken[:, None, None])
            return turn + 1, removed, hidden + ops.where(taken, new, 0), ops.where(taken, 0, refused + 1)

        none = ops.zeros((batch,))
        start = (ops.zeros(()), ops.zeros((batch, *self.grid)) > 0, none, none)
        return Blocks(ops.while_any(going, step, start)[1])
