"""What models make of the last hidden states: logits, and one vector for a whole sequence."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.models.leaves import Array, Embedding, Linear, Norm
from maskattn.models.part import B, Part, Run
from maskattn.typing import Traced


@dataclass(frozen=True)
class Vocabulary(Part):
    """Logits of the vocabulary.

    Attributes:
        project: of its own weights; None where the table of tokens is the layer (tied).
        tied: the table.
        bias: of tied logits.
        dense, activation, norm: before it, as of masked language models.
        scale: what multiplies the logits. softcap: c makes c * tanh(x / c) of a logit x.
        narrow: from the blocks' width to the table's.
    """

    project: Linear | None = None
    tied: Embedding | None = None
    bias: Array | None = None
    dense: Linear | None = None
    activation: str = "linear"
    norm: Norm | None = None
    scale: float = 1.0
    softcap: float | None = None

    def apply(self, at: object, h: B, run: Run[B]) -> B:
        """h [B, L, E] -> [B, L, V]."""
        use = run.use
        if self.dense is not None:
            h = use.activate(run.linear(self.dense, at, h), self.activation)
        h = run.norm(self.norm, at, h)
        held: Traced = None if self.bias is None else run.array(self.bias, at)
        bias: B | None = None if held is None else held.reshape(-1)
        if self.project is not None:
            logits = run.linear(self.project, at, h)
            logits = logits if bias is None else use.add(logits, bias)
        else:
            assert self.tied is not None
            logits = use.logits(self.tied, run.find(at, self.tied), h, bias)
        if self.scale != 1.0:
            logits = use.scaled(logits, self.scale)
        if self.softcap is not None:
            logits = use.scaled(use.activate(use.scaled(logits, 1 / self.softcap), "tanh"), self.softcap)
        return logits


@dataclass(frozen=True)
class First(Part):
    """The first token, through a layer and an activation where there is one."""

    dense: Linear | None = None
    activation: str = "tanh"

    def apply(self, at: object, h: B, run: Run[B]) -> B:
        """h [B, L, E] -> [B, E]."""
        whole: Traced = h
        first: B = whole[:, 0]
        return first if self.dense is None else run.use.activate(run.linear(self.dense, at, first), self.activation)
