from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maskattn._problems import Problems
from maskattn.corruption._base import Array, Scheme, batch_size, between, flag, ready
from maskattn.corruption._ops import BITS, NUMPY, Ops, indices
from maskattn.corruption._rectangle import rectangle

_TRIES = 20
_STEPS = 2**16


class ContextTargets(NamedTuple):
    """What `IJEPA` returns; integers in the framework's index dtype. Behind their count, indices are 0."""

    #: bool [B, height, width]: True = seen by the context encoder
    context: Array
    #: bool [B, targets, height, width]: True = to be predicted
    targets: Array
    #: int [B, C] and int [B]: the patches of the context in order, and how many; C is the largest context block
    context_ids: Array
    context_count: Array
    #: int [B, targets, P] and int [B, targets]: the same of the targets; P is the largest target block
    target_ids: Array
    target_count: Array


@dataclass(frozen=True, repr=False)
class IJEPA(Scheme):
    """I-JEPA's multi-block masking: from one block of an image, without the others, several blocks are predicted.

    Assran et al. 2023 (arXiv:2301.08243, section 3, page 4, and appendix A.1), as `MaskCollator` of
    facebookresearch/ijepa. Each call draws one size for all target blocks and one for all context blocks: u is uniform
    in [0, 1), the area is that fraction of the grid, the aspect ratio (height / width) that part of its interval, and a
    side reaching the grid's is one less. Corners are uniform per image, without the last row and column, which no block
    touches (the source draws them so). The targets are taken out of the context block; where no more than `min_keep`
    patches are left, another is drawn, and after every 20 in vain one target less is taken out.

    The source cuts all contexts of a batch to the shortest; here each keeps its own, and indices are filled up.

    Args:
        grid: (height, width) in patches, an int for a square.
        targets: target blocks.
        target_scale, context_scale: (low, high), fractions of the grid, in (0, 1].
        target_aspect: (low, high), positive; context blocks are square.
        min_keep: a block has more patches than this.
        allow_overlap: whether the context keeps the targets' patches.

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

    Raises:
        ValueError: a number is outside its range, or a block may have too few patches. TypeError: something is not a
        number. All of it at once.
    """

    grid: Any = (14, 14)
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    context_scale: tuple[float, float] = (0.85, 1.0)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    min_keep: int = 10
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        problems = Problems("IJEPA")
        values = {
            "grid": problems.integers("grid", self.grid, minimum=2, length=2),
            "targets": problems.integer("targets", self.targets, minimum=1),
            "min_keep": problems.integer("min_keep", self.min_keep, minimum=0),
        }
        for name in ("target_scale", "context_scale"):
            values[name] = between(problems, name, getattr(self, name), lambda x: 0 < x <= 1, "in (0, 1]")
        values["target_aspect"] = between(
            problems, "target_aspect", self.target_aspect, lambda x: 0 < x < float("inf"), "positive and finite"
        )
        flag(problems, "allow_overlap", self.allow_overlap)
        if not problems.reasons:
            for name, aspect in (("target", values["target_aspect"]), ("context", (1.0, 1.0))):
                least = int(_sizes(values["grid"], values[f"{name}_scale"], aspect)[1].prod(axis=1).min())
                if least <= values["min_keep"]:
                    problems.value(
                        f"min_keep must be below {least}, the smallest {name} block, got {values['min_keep']}"
                    )
        ready(problems, self, **values)

    def apply(self, key: Array, batch: int, *, ops: Ops = NUMPY) -> ContextTargets:
        """Draw context and targets of `batch` images: in a loop, and with the errors, of `BEiT.apply`."""
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
