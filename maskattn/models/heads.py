"""What models make of the last hidden states: logits, and one vector for a whole sequence."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.models.leaves import Array, Embedding, Linear, Norm
from maskattn.models.part import B, Part, Run, tokens_at, tokens_of
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
    """The first token, through a norm, and a layer with an activation, where there are such."""

    dense: Linear | None = None
    activation: str = "tanh"
    norm: Norm | None = None

    def apply(self, at: object, h: B, run: Run[B], tokens: B | None = None) -> B:
        """h [B, L, E] -> [B, E]."""
        first = run.norm(self.norm, at, tokens_of(h, 0, run))
        return first if self.dense is None else run.use.activate(run.linear(self.dense, at, first), self.activation)


@dataclass(frozen=True)
class Chosen(Part):
    """One token of a text, through a layer where there is one: the last, or the first that is called its end.

    Attributes:
        end: the id of the end; None takes the last token. CLIP's first files say 2, and mean the largest id.
    """

    dense: Linear | None = None
    end: int | None = None

    def apply(self, at: object, h: B, run: Run[B], tokens: B | None = None) -> B:
        """h [B, L, E], tokens int [B, L] -> [B, E]."""
        if self.end is None:
            chosen = tokens_of(h, -1, run)
        else:
            ids: Traced = tokens
            places = (ids if self.end == 2 else (ids == self.end) * 1).argmax(1)
            chosen = tokens_at(h, places, run)
        return chosen if self.dense is None else run.linear(self.dense, at, chosen)


@dataclass(frozen=True)
class Mean(Part):
    """The mean of all tokens but the first ones, normed where there is a norm."""

    skip: int = 0
    norm: Norm | None = None

    def apply(self, at: object, h: B, run: Run[B]) -> B:
        """h [B, L, E] -> [B, E]."""
        return run.norm(self.norm, at, run.use.mean(tokens_of(h, slice(self.skip, None), run)))


@dataclass(frozen=True)
class Classes(Part):
    """Logits of classes of images.

    Attributes:
        layers: each reads a vector; where there are several their logits are averaged.
        read: "first": each layer its own token, from the first; "pooled"; "mean": of the patches; "both": the first
            token and that mean, one after the other; "patches": each of them, normed.
        skip: tokens before the patches.
    """

    layers: tuple[Linear, ...]
    read: str
    skip: int = 0
    norm: Norm | None = None

    def apply(self, at: object, h: B, pooled: B | None, run: Run[B]) -> B:
        """h [B, L, E], pooled [B, E] -> [B, classes], or [B, patches, classes]."""
        use, patches = run.use, slice(self.skip, None)
        if self.read == "first":
            vectors = [tokens_of(h, place, run) for place in range(len(self.layers))]
        elif self.read == "pooled":
            assert pooled is not None
            vectors = [pooled]
        elif self.read == "patches":
            vectors = [run.norm(self.norm, at, tokens_of(h, patches, run))]
        else:
            mean = use.mean(tokens_of(h, patches, run))
            vectors = [use.concatenate([tokens_of(h, 0, run), mean], 1) if self.read == "both" else mean]
        each = [run.linear(layer, at, vector) for layer, vector in zip(self.layers, vectors, strict=True)]
        return each[0] if len(each) == 1 else use.scaled(use.add(each[0], each[1]), 0.5)
