"""What a stack has beside its blocks: DeBERTa's table of relative positions, and its convolution behind the first."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.models.leaves import Conv, Embedding, Norm
from maskattn.models.part import B, Part, Run
from maskattn.typing import Traced


@dataclass(frozen=True)
class Relative(Part):
    """The table of relative positions that all blocks read.

    Attributes:
        norm: of its rows.
    """

    table: Embedding
    norm: Norm | None = None

    def apply(self, at: object, like: B, run: Run[B]) -> B:
        """The table, [rows, E]."""
        return run.norm(self.norm, at, run.embed(self.table, at, run.use.arange(self.table.rows, like)))


@dataclass(frozen=True)
class Local(Part):
    """A convolution of what the first block reads, added to what it gives (He et al. 2021, DeBERTa v2).

    Attributes:
        norm: of the sum.
    """

    conv: Conv
    norm: Norm
    activation: str = "tanh"
    dropout_rate: float = 0.0

    def apply(self, at: object, read: B, given: B, run: Run[B], keep: Traced) -> B:
        """read [B, L, E] -> [B, L, E]; keep: bool [B, L], True = no padding, or None."""
        use = run.use
        made = hidden(use.conv(self.conv, run.find(at, self.conv), read), keep, run)
        made = use.activate(run.drop(made, self.dropout_rate), self.activation)
        return hidden(run.norm(self.norm, at, use.add(given, made)), keep, run)


def hidden(x: B, keep: Traced, run: Run[B]) -> B:
    """x [B, L, E] with zeros where a token is padding."""
    if keep is None:
        return x
    kept: Traced = run.use.cast(keep, x)
    return run.use.product(x, kept[..., None])
