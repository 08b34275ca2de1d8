"""Sound: what comes before the blocks, and models of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from maskattn.models.attention import Given
from maskattn.models.block import Stack
from maskattn.models.heads import Vocabulary
from maskattn.models.leaves import Array, Conv, Linear, Norm
from maskattn.models.model import Inputs, Output, WholeModel, kept, masks_of
from maskattn.models.part import B, Part, Run
from maskattn.typing import Traced


@dataclass(frozen=True)
class Frames(Part):
    """Frames of a spectrum, convolved twice, and a table of positions added: Whisper's.

    Attributes:
        positions: as many as the second convolution gives: the length of sound is fixed.
    """

    first: Conv
    second: Conv
    positions: Array
    dropout_rate: float = 0.0

    def apply(self, at: object, features: B, run: Run[B]) -> B:
        """[B, channels, frames] -> [B, positions, E].

        Raises:
            ValueError: another number of channels, or of frames.
        """
        use, given = run.use, tuple(features.shape)
        frames = self.positions.shape[0] * self.second.stride[0]
        if len(given) != 3 or given[1:] != (self.first.inputs, frames):
            raise ValueError(
                f"features must be [B, channels, frames] = [B, {self.first.inputs}, {frames}], got {given}"
            )
        x: Traced = features
        h = x.swapaxes(1, 2)
        for conv in (self.first, self.second):
            h = use.activate(use.conv(conv, run.find(at, conv), h), "gelu")
        return run.drop(use.add(h, run.array(self.positions, at)), self.dropout_rate)


@dataclass(frozen=True)
class ConvLayer(Part):
    """A convolution, a norm where there is one, and an activation."""

    conv: Conv
    norm: Norm | None
    activation: str

    def apply(self, at: object, x: B, run: Run[B]) -> B:
        """[B, frames, channels] -> the same, of its own."""
        x = run.norm(self.norm, at, run.use.conv(self.conv, run.find(at, self.conv), x))
        return run.use.activate(x, self.activation)


@dataclass(frozen=True)
class ConvPositions(Part):
    """What a wide convolution, its weight normed, makes of neighbours: positions of wav2vec 2.0.

    The weight is direction * magnitude / (the direction's norm over the first two axes) (Salimans & Kingma 2016).

    Attributes:
        magnitude: [1, 1, width]. direction: [E, E / groups, width].
    """

    inexact: ClassVar[str] = "a convolution of windows that overlap has no exact form"

    conv: Conv
    magnitude: Array
    direction: Array
    bias: Array
    activation: str

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        for leaf in (self.bias, self.magnitude, self.direction):
            yield prefix + leaf.name, leaf

    def apply(self, at: object, x: B, run: Run[B]) -> B:
        """[B, frames, E] -> the same."""
        use = run.use
        direction: Traced = run.array(self.direction, at)
        norm = (direction * direction).sum((0, 1)) ** 0.5
        magnitude: Traced = run.array(self.magnitude, at)
        made: Traced = use.convolve(self.conv, direction * (magnitude / norm), run.array(self.bias, at), x)
        return use.activate(made[:, : x.shape[1]], self.activation)


@dataclass(frozen=True)
class Wave(Part):
    """Samples, convolved until few are left, and projected: wav2vec 2.0's (Baevski et al. 2020, section 2).

    Attributes:
        norm, project: before the blocks' width, and to it. after: the norm behind positions.
        unused: what is saved, and read in training by transformers alone: what stands in for masked frames.
    """

    convs: tuple[ConvLayer, ...]
    norm: Norm | None
    project: Linear
    positions: ConvPositions
    after: Norm | None = None
    unused: tuple[Array, ...] = ()
    dropout_rate: float = 0.0
    project_dropout: float = 0.0

    def frames(self, samples: Traced) -> Traced:
        """How many frames so many samples give."""
        for layer in self.convs:
            samples = (samples - layer.conv.size[0]) // layer.conv.stride[0] + 1
        return samples

    def apply(self, at: object, features: B, run: Run[B], samples: Traced) -> tuple[B, Traced]:
        """[B, samples] -> [B, frames, E], and bool [B, frames], True = no padding, or None.

        Args:
            samples: bool [B, samples], of which the number counts, or None.
        """
        use = run.use
        h: Traced = features
        h = h[..., None]
        for layer in self.convs:
            h = layer.apply(at, h, run)
        keep = None
        if samples is not None:
            keep = use.arange(h.shape[1], h)[None] < self.frames(samples.sum(1))[:, None]
        h = run.drop(run.linear(self.project, at, run.norm(self.norm, at, h)), self.project_dropout)
        if keep is not None:
            h = use.where(keep[..., None], h, h * 0)
        h = run.norm(self.after, at, use.add(h, self.positions.apply(at, h, run)))
        return run.drop(h, self.dropout_rate), keep


@dataclass(frozen=True)
class SoundModel(WholeModel):
    """Sound, blocks, and logits of the vocabulary for each frame (CTC)."""

    front: Wave
    stack: Stack
    head: Vocabulary | None = None
    dropout_rate: float = 0.0

    def stacks(self) -> tuple[Stack, ...]:
        return (self.stack,)

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        """One call; `attention_mask` is of samples.

        Raises:
            ValueError: no features, or others than [B, samples].
        """
        features: Traced = inputs.features
        if features is None or features.ndim != 2:
            got = None if features is None else tuple(features.shape)
            raise ValueError(f"{self.model_type}: features must be [B, samples], got {got}")
        h, keep = self.front.apply(at, features, run, kept(inputs.attention_mask, features, run))
        given: Given[B] = Given(masks_of(self.stack, keep), states=[] if inputs.hidden_states else None, keep=keep)
        h, _ = self.stack.apply(at, h, run, given)
        logits = None if self.head is None else self.head.apply(at, run.drop(h, self.dropout_rate), run)
        return Output(h, logits, None, None if given.states is None else tuple(given.states))
