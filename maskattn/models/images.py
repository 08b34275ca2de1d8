"""Models of images: patches and the tokens beside them, blocks, and heads."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from maskattn.arrays import constant
from maskattn.models.attention import Attention, Given
from maskattn.models.block import Inner, Stack
from maskattn.models.heads import Classes, First, Mean
from maskattn.models.leaves import Array, Conv, Embedding, Linear, Norm
from maskattn.models.model import Inputs, Output, WholeModel
from maskattn.models.part import B, Part, Run
from maskattn.models.windows import Stages, padded
from maskattn.typing import NumPyArray, Traced

#: Rows and columns of patches.
Grid = tuple[int, int]


@dataclass(frozen=True)
class Places(Part):
    """Learned positions of a grid of patches, and of the tokens before them.

    Attributes:
        table: [before + height * width, E], or with an axis of 1 in front.
        grid: of the images that the model was trained with.
        before: how many tokens.
        smooth: whether a smaller grid reads means (antialiasing), as in DINOv2 with registers.
    """

    table: Array | Embedding
    grid: Grid
    before: int = 0
    smooth: bool = False

    def apply(self, at: object, grid: Grid, like: B, run: Run[B]) -> B:
        """[1, before + patches, E] for a grid: bicubically interpolated where it is another one."""
        use = run.use
        if isinstance(self.table, Embedding):
            rows: Traced = run.embed(self.table, at, use.arange(self.table.rows, like))
        else:
            rows = run.array(self.table, at)
        rows = rows.reshape((1, -1, rows.shape[-1]))
        if grid == self.grid:
            made: B = rows
            return made
        places: Traced = rows[0, self.before :].reshape((*self.grid, -1))
        for axis, (old, new) in enumerate(zip(self.grid, grid, strict=True)):
            weights = use.as_array(cubic(old, new, self.smooth), places)
            turned: Traced = use.products(places.swapaxes(axis, 2), weights)
            places = turned.swapaxes(axis, 2)
        return use.concatenate([rows[:, : self.before], places.reshape((1, -1, rows.shape[-1]))], 1)


@constant
@functools.lru_cache(maxsize=64)
def cubic(old: int, new: int, smooth: bool) -> NumPyArray:
    """Bicubic interpolation of one axis as a matrix float32 [new, old], as `torch.nn.functional.interpolate` does it.

    Keys 1981, with the constant -0.75, and indices past the ends read the last; with antialiasing -0.5, a kernel as
    wide as the step, and weights of sum 1.
    """
    step = old / new
    wide, a = (max(step, 1.0), -0.5) if smooth else (1.0, -0.75)
    made = np.zeros((new, old))
    for row in range(new):
        center = step * (row + 0.5) - 0.5
        first, last = math.floor(center - 2 * wide), math.ceil(center + 2 * wide)
        for place in range(first, last + 1):
            if not smooth or 0 <= place < old:
                made[row, min(max(place, 0), old - 1)] += _keys((place - center) / wide, a)
    if smooth:
        made /= made.sum(1, keepdims=True)
    return made.astype(np.float32)


def _keys(x: float, a: float) -> float:
    x = abs(x)
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


@dataclass(frozen=True)
class Patches(Part):
    """What an image becomes before the first block.

    Attributes:
        project: of patches.
        image: height and width of the images of training. fixed: whether there must be no others.
        before: learned tokens before the patches, in order. registers: such without positions, behind the first.
        positions: added to both.
        mask: the token that stands for what a model of masked images does not see; not read here.
        norm: of patches, before positions. final: of all, behind them.
        padded: whether images are padded with zeros to whole patches, not cut.
    """

    project: Conv
    image: tuple[int, int]
    before: tuple[Array, ...] = ()
    registers: Array | None = None
    positions: Places | None = None
    mask: Array | None = None
    norm: Norm | None = None
    final: Norm | None = None
    padded: bool = False
    fixed: bool = False
    dropout_rate: float = 0.0

    @property
    def skip(self) -> int:
        """How many tokens come before the patches."""
        return len(self.before) + (0 if self.registers is None else self.registers.shape[1])

    def embed(self, at: object, images: B | None, run: Run[B]) -> tuple[B, Grid]:
        """images [B, channels, height, width] -> patches [B, rows * columns, E], and their grid.

        Raises:
            ValueError: the images are of another shape.
        """
        shape = () if images is None else tuple(images.shape)
        self._check(shape)
        pixels: Traced = images
        if self.padded:
            whole = (-(-size // patch) * patch for size, patch in zip(shape[2:], self.project.size, strict=True))
            pixels = padded(pixels, tuple(whole), 2, run)
        made: Traced = run.use.conv(self.project, run.find(at, self.project), pixels.swapaxes(1, 2).swapaxes(2, 3))
        grid = made.shape[1], made.shape[2]
        return run.norm(self.norm, at, made.reshape((shape[0], grid[0] * grid[1], -1))), grid

    def lead(self, at: object, h: B, run: Run[B]) -> B:
        """h [B, L, E] with the tokens before it."""
        patches: Traced = h
        size = (patches.shape[0], 1, patches.shape[-1])
        tokens: list[Traced] = [run.array(token, at) for token in self.before]
        return run.use.concatenate([*(run.use.broadcast(x.reshape((1, 1, -1)), size) for x in tokens), h], 1)

    def apply(self, at: object, images: B | None, run: Run[B]) -> tuple[B, Grid]:
        """images [B, channels, height, width] -> [B, L, E], and the grid of its patches."""
        patches, grid = self.embed(at, images, run)
        h: Traced = self.lead(at, patches, run) if self.before else patches
        if self.positions is not None:
            h = run.use.add(h, self.positions.apply(at, grid, h, run))
        if self.registers is not None:
            more = run.use.broadcast(run.array(self.registers, at), (h.shape[0], *self.registers.shape[1:]))
            first, patches = run.use.split(h, (1, h.shape[1] - 1), 1)
            h = run.use.concatenate([first, more, patches], 1)
        return run.drop(run.norm(self.final, at, h), self.dropout_rate), grid

    def _check(self, shape: tuple[int, ...]) -> None:
        channels, (high, wide) = self.project.inputs, self.project.size
        sizes = "height, width"
        right = len(shape) == 4 and shape[1] == channels
        if self.fixed:
            sizes, right = f"{self.image[0]}, {self.image[1]}", right and shape[2:] == self.image
        elif right and not self.padded:
            right = shape[2] >= high and shape[3] >= wide
            sizes = f"height, width], of at least one patch [{high}, {wide}" if not right else sizes
        if not right:
            raise ValueError(f"Model: images must be [B, {channels}, {sizes}], got {list(shape) or None}")


@dataclass(frozen=True)
class Probe(Part):
    """One learned query that attends to all patches, and an MLP (SigLIP)."""

    probe: Array
    attention: Attention
    norm: Norm
    mlp: Inner

    def apply(self, at: object, h: B, run: Run[B]) -> B:
        """h [B, L, E] -> [B, E]."""
        patches: Traced = h
        query = run.use.broadcast(run.array(self.probe, at), (patches.shape[0], 1, patches.shape[-1]))
        found, _ = self.attention.across(at, query, run, Given(memory=h))
        made: Traced = run.use.add(found, self.mlp.apply(at, run.norm(self.norm, at, found), run))
        pooled: B = made[:, 0]
        return pooled


@dataclass(frozen=True)
class ImageModel(WholeModel):
    """Patches, blocks, and heads.

    Attributes:
        axial: whether queries and keys are turned by the places of patches, from -1 to 1 on each axis (DINOv3).
        embeds: of CLIP's, from the pooled vector to the one that is compared with texts.
    """

    patches: Patches
    body: Stack | Stages
    pooler: First | Mean | Probe | None = None
    head: Classes | None = None
    embeds: Linear | None = None
    axial: bool = False

    def stacks(self) -> tuple[Stack, ...]:
        return (self.body,) if isinstance(self.body, Stack) else self.body.stages

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        """One call."""
        h, grid = self.patches.apply(at, inputs.images, run)
        states: list[B] | None = [] if inputs.hidden_states else None
        turns = centers(grid, self.patches.skip) if self.axial else None
        given: Given[B] = Given(positions=turns, grid=grid, states=states)
        h, _ = self.body.apply(at, h, run, given)
        pooled = None if self.pooler is None else self.pooler.apply(at, h, run)
        logits = None if self.head is None else self.head.apply(at, h, pooled, run)
        embeds = None if self.embeds is None or pooled is None else run.linear(self.embeds, at, pooled)
        return Output(h, logits, pooled, None if states is None else tuple(states), image_embeds=embeds)


@constant
@functools.lru_cache(maxsize=64)
def centers(grid: Grid, skip: int) -> NumPyArray:
    """Where patches are, float32 [skip + patches, 2]: 2 pi times -1 to 1 on each axis; tokens before them are at 0."""
    axes = [(np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) for size in grid]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2) * np.float32(2) - np.float32(1)
    return np.concatenate([np.zeros((skip, 2), np.float32), np.float32(2 * math.pi) * places])
