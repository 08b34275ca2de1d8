from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maskattn._declared import declared, flag, integer, integers, interval
from maskattn._problems import Problems
from maskattn.corruption._base import Scheme, batch_size
from maskattn.corruption._ops import BITS, NUMPY, Ops, indices
from maskattn.corruption._rectangle import rectangle
from maskattn.typing import Traced as Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, UInt32

_TRIES = 20
_STEPS = 2**16


class ContextTargets(NamedTuple):
    """What `IJEPA` returns; integers in the framework's index dtype. Behind their count, indices are 0.

    Attributes:
        context: bool [B, height, width]: True = seen by the context encoder.
        targets: bool [B, targets, height, width]: True = to be predicted.
        context_ids: int [B, C]: the patches of the context in order; C is the largest context block.
        context_count: int [B]: how many they are.
        target_ids: int [B, targets, P]: the patches of the targets; P is the largest target block.
        target_count: int [B, targets]: how many they are.
    """

    context: Bool[Array, "B height width"]
    targets: Bool[Array, "B targets height width"]
    context_ids: Int[Array, "B C"]
    context_count: Array
    target_ids: Int[Array, "B targets P"]
    target_count: Array


@declared
class IJEPA(Scheme[ContextTargets]):
    """I-JEPA's multi-block masking: from one block of an image, without the others, several blocks are predicted.

    Assran et al. 2023 (arXiv:2301.08243, section 3, page 4, and appendix A.1), as `MaskCollator` of
    facebookresearch/ijepa. Each call draws one size for all target blocks and one for all context blocks: u is uniform
    in [0, 1), the area is that fraction of the grid, the aspect ratio (height / width) that part of its interval, and a
    side reaching the grid's is one less. Corners are uniform per image, without the last row and column, which no block
    touches (the source draws them so). The targets are taken out of the context block; where no more than `min_keep`
    patches are left, another is drawn, and after every 20 in vain one target less is taken out.

    The source cuts all contexts of a batch to the shortest; here each keeps its own, and indices are filled up.

    >>> from maskattn import corruption
    >>> scheme = corruption.IJEPA(grid=(8, 8), targets=2, min_keep=4)
    >>> drawn = scheme.apply(0, batch=1)
    >>> marks = drawn.context[0] + 2 * drawn.targets[0, 0] + 4 * drawn.targets[0, 1]  # b: in both targets
    >>> print("\\n".join("".join("-c1-2-b"[x] for x in row) for row in marks))
    cc222cc-
    cc222cc-
    c1bb2cc-
    c1bb2cc-
    c111ccc-
    c111ccc-
    ccccccc-
    --------
    """

    grid: Any = integers(minimum=2, per=2, default=(14, 14), meaning="(height, width) in patches")
    targets: int = integer(minimum=1, default=4, meaning="target blocks")
    target_scale: tuple[float, float] = interval(
        above=0, maximum=1, default=(0.15, 0.2), meaning="the fraction of the grid that a target block takes"
    )
    context_scale: tuple[float, float] = interval(
        above=0, maximum=1, default=(0.85, 1.0), meaning="the same of the context block"
    )
    target_aspect: tuple[float, float] = interval(
        above=0, default=(0.75, 1.5), meaning="that of target blocks; context blocks are square"
    )
    min_keep: int = integer(minimum=0, default=10, meaning="a block has more patches than this")
    allow_overlap: bool = flag(default=False, meaning="whether the context keeps the targets' patches")

    def _check(self, problems: Problems) -> None:
        """a block may have no more patches than min_keep"""
        blocks = (("target", self.target_scale, self.target_aspect), ("context", self.context_scale, (1.0, 1.0)))
        for name, scale, aspect in blocks:
            least = int(_sizes(self.grid, scale, aspect)[1].prod(axis=1).min())
            if least <= self.min_keep:
                problems.value(f"min_keep must be below {least}, the smallest {name} block, got {self.min_keep}")

    def apply(self, key: int | UInt32[Array, " 2"], batch: int, *, ops: Ops = NUMPY) -> ContextTargets:
        """Draw context and targets of `batch` images: in a loop, as `BEiT.apply` does.

        Arguments and errors as in `corruption.BEiT.apply`.
        """
        batch = batch_size("IJEPA", batch)
        key = ops.key(key)
        draws = ops.words(ops.fold_in(key, 0), (2,)) >> (BITS - 16)
        sizes = []
        for i, (scale, aspect) in enumerate(
            ((self.target_scale, self.target_aspect), (self.context_scale, (1.0, 1.0)))
        ):
            starts, sides = _sizes(self.grid, scale, aspect)
            chosen = ops.array(sides)[ops.sum(draws[i] >= ops.array(starts)) - 1]
            sizes.append((chosen[0], chosen[1], int(sides.prod(axis=1).max())))
        (height, width, most_target), (tall, wide, most_context) = sizes
        where = ops.words(ops.fold_in(key, 1), (batch, self.targets, 2))
        none = ops.zeros((batch, self.targets))
        top, left = where[..., 0] % (self.grid[0] - height), where[..., 1] % (self.grid[1] - width)
        targets = rectangle(ops, self.grid, top, left, none + height, none + width)

        def going(state: Any) -> Array:
            return ~state[2]

        def step(state: Any) -> Any:
            turn, context, done = state
            draws = ops.words(ops.fold_in(key, turn + 2), (batch, 2))
            top, left = draws[:, 0] % (self.grid[0] - tall), draws[:, 1] % (self.grid[1] - wide)
            block = rectangle(ops, self.grid, top, left, none[:, 0] + tall, none[:, 0] + wide)
            for number in range(0 if self.allow_overlap else self.targets):
                block = block & ~(targets[:, number] & (number < self.targets - turn // _TRIES))
            enough = ops.sum(block, 2) > self.min_keep
            context = ops.where((done | ~enough)[:, None, None], context, block)
            return turn + 1, context, done | enough

        empty = ops.zeros((batch, *self.grid)) > 0
        context = ops.while_any(going, step, (ops.zeros(()), empty, ops.zeros((batch,)) > 0))[1]
        patches = self.grid[0] * self.grid[1]
        context_ids = indices(ops, context.reshape((batch, patches)), most_context)
        target_ids = indices(ops, targets.reshape((batch, self.targets, patches)), most_target)
        return ContextTargets(context, targets, *context_ids, *target_ids)


def _sizes(grid: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[Array, Array]:
    """The block sizes as a function of a 16-bit draw: from which draw on, int [n], what (height, width), int [n, 2]."""
    u = np.arange(_STEPS) / _STEPS
    area = np.floor(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height = np.minimum(np.round(np.sqrt(area * ratio)), grid[0] - 1)
    width = np.minimum(np.round(np.sqrt(area / ratio)), grid[1] - 1)
    sides = np.stack([height, width], axis=1).astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], (sides[1:] != sides[:-1]).any(axis=1)]))
    return starts, sides[starts]
