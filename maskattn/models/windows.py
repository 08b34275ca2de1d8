"""Stages of windows: Swin's. Windows are the batch of attention, and every second block's are shifted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from maskattn.layer import ContinuousTable, WindowTable
from maskattn.masks import Full, Mask, ShiftedWindow
from maskattn.models.attention import Attention, Given
from maskattn.models.block import Stack
from maskattn.models.leaves import Linear, Norm
from maskattn.models.part import B, Part, Run
from maskattn.typing import Traced


class Cut(NamedTuple):
    """How a grid is cut: its height and width, padded ones, the side of a window and how far windows are shifted."""

    grid: tuple[int, int]
    padded: tuple[int, int]
    side: int
    shift: int

    @property
    def mask(self) -> Mask:
        """What may be attended to within windows. True = may attend."""
        return ShiftedWindow(self.padded, self.side, self.shift) if self.shift else Full()


@dataclass(frozen=True)
class Windowed(Attention):
    """Attention within windows of a grid.

    Attributes:
        shift: how far the grid is rolled back.
        grows: whether a grid that is one window high or wide is not shifted, whatever the model was trained with (the
            first Swin).
    """

    shift: int = 0
    grows: bool = False

    def apply(
        self, at: object, x: B, run: Run[B], given: Given[B], cache: Traced = None, memory: B | None = None
    ) -> tuple[B, Traced]:
        """x [B, height * width, E] -> the same."""
        cut = self._cut(given.grid)
        inner = dataclasses.replace(given, masks={self.mask: cut.mask})
        made, _ = super().apply(at, windows(x, cut, run), run, inner)
        return joined(made, cut, run), None

    def _cut(self, grid: tuple[int, int]) -> Cut:
        part = self.config.position_bias
        assert isinstance(part, (WindowTable, ContinuousTable))
        side = part.window[0]
        if self.grows and min(grid) < side:
            raise ValueError(
                f"Model: images are too small: each stage must be at least a window of {side} patches high and wide, "
                f"got {grid[0]} and {grid[1]}"
            )
        padded = -(-grid[0] // side) * side, -(-grid[1] // side) * side
        return Cut(grid, padded, side, 0 if self.grows and min(grid) <= side else self.shift)


def windows(x: B, cut: Cut, run: Run[B]) -> B:
    """x [B, height * width, E], padded with zeros and rolled back, in windows [B * windows, side * side, E]."""
    flat: Traced = x
    made: Traced = padded(flat.reshape((flat.shape[0], *cut.grid, flat.shape[-1])), cut.padded, 1, run)
    made = _rolled(made, cut.shift, run)
    side, (rows, columns) = cut.side, (n // cut.side for n in cut.padded)
    made = made.reshape((-1, rows, side, columns, side, flat.shape[-1])).swapaxes(2, 3)
    found: B = made.reshape((-1, side * side, flat.shape[-1]))
    return found


def joined(x: B, cut: Cut, run: Run[B]) -> B:
    """Windows [B * windows, side * side, E] as they were, [B, height * width, E]."""
    made: Traced = x
    side, (rows, columns) = cut.side, (n // cut.side for n in cut.padded)
    made = made.reshape((-1, rows, columns, side, side, made.shape[-1])).swapaxes(2, 3)
    made = _rolled(made.reshape((-1, *cut.padded, made.shape[-1])), -cut.shift, run)
    found: B = made[:, : cut.grid[0], : cut.grid[1]].reshape((made.shape[0], -1, made.shape[-1]))
    return found


def padded(x: B, sizes: tuple[int, ...], first: int, run: Run[B]) -> B:
    """x with zeros at the ends of its axes from `first`, up to these sizes."""
    made: Traced = x
    for axis, size in enumerate(sizes, first):
        if made.shape[axis] < size:
            shape = (*made.shape[:axis], size - made.shape[axis], *made.shape[axis + 1 :])
            made = run.use.concatenate([made, run.use.arithmetic.zeros(shape, made)], axis)
    found: B = made
    return found


def _rolled(x: B, by: int, run: Run[B]) -> B:
    """x [B, height, width, E] rolled back by so many places, on both axes."""
    made: Traced = x
    if by:
        made = run.use.concatenate([made[:, by:], made[:, :by]], 1)
        made = run.use.concatenate([made[:, :, by:], made[:, :, :by]], 2)
    found: B = made
    return found


@dataclass(frozen=True)
class Merge(Part):
    """Four patches become one, of twice the width, behind a stage.

    Attributes:
        early: whether the norm comes before the reduction.
    """

    reduction: Linear
    norm: Norm
    early: bool = True

    def apply(self, at: object, h: B, run: Run[B], grid: tuple[int, int]) -> tuple[B, tuple[int, int]]:
        """h [B, height * width, E] -> [B, half of them, 2 E], and the new grid."""
        flat: Traced = h
        half = -(-grid[0] // 2), -(-grid[1] // 2)
        made: Traced = flat.reshape((flat.shape[0], *grid, flat.shape[-1]))
        made = padded(made, (2 * half[0], 2 * half[1]), 1, run)
        four = [made[:, row::2, column::2] for column in range(2) for row in range(2)]
        joined: Traced = run.use.concatenate(four, 3)
        joined = joined.reshape((flat.shape[0], -1, self.reduction.inputs))
        if self.early:
            return run.linear(self.reduction, at, run.norm(self.norm, at, joined)), half
        return run.norm(self.norm, at, run.linear(self.reduction, at, joined)), half


@dataclass(frozen=True)
class Stages(Part):
    """Stacks one after the other, between which patches are merged; and the norm behind the last."""

    stages: tuple[Stack, ...]
    merges: tuple[Merge, ...]
    final: Norm

    def apply(self, at: object, h: B, run: Run[B], given: Given[B]) -> tuple[B, None]:
        """h [B, height * width, E] -> [B, fewer, more]. Hidden states are noted before each stage, and the last one's
        before the norm."""
        states, grid = given.states, given.grid
        for number, stage in enumerate(self.stages):
            given.note(h)
            inner: Given[B] = Given(grid=grid)
            h, _ = stage.apply(at, h, run.within(number), inner)
            if number < len(self.merges):
                h, grid = self.merges[number].apply(at, h, run, grid)
        if states is not None:
            states.append(h)
        return run.norm(self.final, at, h), None
