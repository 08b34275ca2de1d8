"""What tokens become before the first block."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.models.disentangled import hidden
from maskattn.models.leaves import Array, Embedding, Linear, Norm
from maskattn.models.part import B, Part, Run
from maskattn.models.sinusoids import Sinusoids
from maskattn.typing import Traced


@dataclass(frozen=True)
class Positions(Part):
    """A table of positions.

    Attributes:
        table: learned; or an array that is saved, but not learned; or computed.
        rule: what counts: "all" tokens, those that are not `pad` ("ids"), or those of the mask ("mask"), where what
            does not count reads the row before the first.
        offset: the row of the first token.
    """

    table: Embedding | Array | Sinusoids
    rule: str = "all"
    offset: int = 0
    pad: int | None = None

    @property
    def width(self) -> int:
        """Of a row."""
        return self.table.shape[1] if isinstance(self.table, Array) else self.table.width

    @property
    def most(self) -> int:
        """How many tokens there may be."""
        if isinstance(self.table, Sinusoids):
            return self.table.positions
        return (self.table.shape[0] if isinstance(self.table, Array) else self.table.rows) - self.offset

    def rows(self, tokens: B, keep: B | None, positions: B | None, run: Run[B]) -> B:
        """int [B or 1, L]: the row of each token [B, L]."""
        use = run.use
        ids: Traced = tokens
        if positions is not None:
            given: Traced = positions
            given = (given if given.ndim == 2 else given[None]) + self.offset
            return given if self.rule != "ids" else use.where(ids != self.pad, given, ids * 0 + self.offset - 1)
        if self.rule == "all" or (self.rule == "mask" and keep is None):
            if ids.shape[1] > self.most:
                raise ValueError(f"Model: the table of positions is for {self.most} tokens, got {ids.shape[1]}")
            made: Traced = use.arange(ids.shape[1], tokens)
            return made[None] + self.offset
        counts: Traced = ids != self.pad if self.rule == "ids" else keep
        counts = use.as_array(counts, tokens) * 1
        before = self.offset - 1
        return counts.cumsum(1) * counts + before

    def apply(self, at: object, rows: B, run: Run[B], like: B) -> B:
        """Rows of the table, [B or 1, L, width], of the dtype of what they are added to."""
        table, use = self.table, run.use
        if isinstance(table, Embedding):
            return run.embed(table, at, rows)
        if isinstance(table, Array):
            held = run.array(table, at)
        else:
            held = use.as_array(table.numbers(rows.shape[-1]), rows)
        found = use.rows(held, rows)
        return use.arithmetic.broadcast(found, found.shape, like)


@dataclass(frozen=True)
class Tokens(Part):
    """Embedding of tokens: the sum of the tables, normed, projected.

    Attributes:
        scale: what multiplies rows of the table of tokens.
        types: of token types. project: from the tables' width to the blocks'.
        late: whether the norm is behind the projection.
        dropped: the id of a token whose row counts as zeros, for which the others make up as in training, where 12 in
            100 tokens are such (Lin et al. 2022, ESM-2, token dropout).
        blank: whether padding becomes zeros.
    """

    table: Embedding
    scale: float = 1.0
    types: Embedding | None = None
    positions: Positions | None = None
    norm: Norm | None = None
    project: Linear | None = None
    dropout_rate: float = 0.0
    late: bool = False
    dropped: int | None = None
    blank: bool = False

    def apply(self, at: object, tokens: B, run: Run[B], keep: B | None, positions: B | None, types: B | None) -> B:
        """int [B, L] -> [B, L, E].

        Args:
            keep: bool [B, L], True = no padding, or None.
            positions: int [L] or [B, L], or None. types: int [B, L], or None: 0.
        """
        use = run.use
        h = run.embed(self.table, at, tokens)
        if self.dropped is not None:
            h = self._without_dropped(h, tokens, run, keep)
        if self.scale != 1.0:
            h = use.scaled(h, self.scale)
        if self.types is not None:
            rows: Traced = use.as_array(tokens if types is None else types, tokens)
            h = use.add(h, run.embed(self.types, at, rows * 0 if types is None else rows))
        early = self.positions is not None and self.positions.width == self.table.width
        if early:
            h = self._placed(at, h, tokens, run, keep, positions)
        h = h if self.late else run.drop(run.norm(self.norm, at, h), self.dropout_rate)
        if self.project is not None:
            h = run.linear(self.project, at, h)
        if self.late:
            h = run.drop(run.norm(self.norm, at, h), self.dropout_rate)
        h = hidden(h, keep if self.blank else None, run)
        return h if early else self._placed(at, h, tokens, run, keep, positions)

    def _without_dropped(self, h: B, tokens: B, run: Run[B], keep: Traced) -> B:
        use = run.use
        ids: Traced = tokens
        there: Traced = ids != self.dropped
        length = there.shape[1] if keep is None else keep.sum(1)
        left = length - there.shape[1] + there.sum(1)
        factor: Traced = use.divide(use.as_array(length * 0.88, h), left)
        made = use.product(hidden(h, there, run), factor[:, None, None])
        return use.cast(made, h)

    def _placed(self, at: object, h: B, tokens: B, run: Run[B], keep: B | None, positions: B | None) -> B:
        """h with positions added, which have the width of the table of tokens, or that of the blocks."""
        if self.positions is None:
            return h
        rows = self.positions.rows(tokens, keep, positions, run)
        return run.use.add(h, self.positions.apply(at, rows, run, h))
