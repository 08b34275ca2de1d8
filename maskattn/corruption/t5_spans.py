from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskattn._declared import declared, integer, number
from maskattn._fields import peek
from maskattn._problems import Problems
from maskattn.corruption._base import Scheme
from maskattn.corruption._ops import NUMPY, Ops, previous, rank
from maskattn.typing import Traced as Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, UInt32


class Spans(NamedTuple):
    """What `T5Spans` returns; integers in the framework's index dtype.

    Each row ends with padding where it is shorter than the longest that its input could give.

    Attributes:
        inputs: int [B, I]: the tokens, each corrupted span being one sentinel.
        targets: int [B, T]: each span after its sentinel.
        input_lengths, target_lengths: int [B]: tokens of inputs and of targets that are no padding.
        corrupted: bool [B, L]: True = the token is in a corrupted span.
    """

    inputs: Int[Array, "B I"]
    targets: Int[Array, "B T"]
    input_lengths: Int[Array, " B"]
    target_lengths: Array
    corrupted: Bool[Array, "B L"]


@declared
class T5Spans(Scheme[Spans]):
    """T5's span corruption: spans of tokens are replaced by sentinels, and are what is to be written.

    Raffel et al. 2020 (JMLR 21:140, section 3.1.4, pages 12 and 13, and section 3.3.4); as `random_spans_noise_mask`
    and its users in T5's preprocessors. Of n tokens round(rate * n), at least 1 and at most n - 1, are corrupted, in
    max(1, round(that / mean_span)) spans (and no more than there are tokens left between them). Uncorrupted and
    corrupted spans alternate, beginning with an uncorrupted one; every such division is equally likely. Fewer than two
    tokens stay as they are. Rounding is to even, in float64.

    >>> from maskattn import corruption
    >>> scheme = corruption.T5Spans(first_sentinel=99, rate=0.3, mean_span=2)
    >>> drawn = scheme.apply(0, [[11, 12, 13, 14, 15, 16, 17, 18, 19, 20]])
    >>> drawn.inputs
    array([[11, 12, 13, 99, 15, 16, 17, 18, 98]])
    >>> drawn.targets
    array([[99, 14, 98, 19, 20]])
    """

    first_sentinel: int = integer(
        minimum=0, default=32099, meaning="the first span's sentinel; those of the next count down from it"
    )
    sentinels: int = integer(minimum=1, default=100, meaning="how many there are")
    rate: float = number(above=0, below=1, default=0.15, meaning="the fraction of the tokens that is corrupted")
    mean_span: float = number(minimum=1, default=3.0, meaning="the mean length of a span")
    eos_id: int | None = integer(minimum=0, none="no end is marked", default=None, meaning="ends inputs and targets")
    pad_id: int = integer(minimum=0, default=0, meaning="fills up both")

    def _check(self, problems: Problems) -> None:
        """there are more sentinels than tokens up to first_sentinel"""
        most = self.first_sentinel + 1
        if self.sentinels > most:
            problems.value(f"sentinels must be at most first_sentinel + 1 = {most}, got {self.sentinels}")

    def counts(self, length: int) -> tuple[int, int]:
        """How many tokens of `length` are corrupted, and in how many spans."""
        if length < 2:
            return 0, 0
        corrupted = min(max(round(length * self.rate), 1), length - 1)
        return corrupted, min(max(round(corrupted / self.mean_span), 1), length - corrupted)

    def apply(
        self,
        key: int | UInt32[Array, " 2"],
        tokens: Int[Array, "B L"],
        lengths: Int[Array, " B"] | None = None,
        *,
        ops: Ops = NUMPY,
    ) -> Spans:
        """Corrupt a batch of tokens.

        Args:
            key: see `Scheme`.
            tokens: int [B, L].
            lengths: int [B], the tokens of each row that are no padding. None: all are tokens.

        Raises:
            ValueError, TypeError: shapes or dtypes are wrong, a length is outside [0, L] (told where it can be read),
                or there are more spans than sentinels.
        """
        tokens, lengths = self._checked(tokens, lengths)
        tokens, key = ops.array(tokens), ops.key(key)
        length = tokens.shape[1]
        sizes = np.array([self.counts(n) for n in range(length + 1)], np.int64).T
        written = np.array([np.arange(length + 1) - sizes[0] + sizes[1], sizes[0] + sizes[1]])  # inputs, targets
        widths = written[:, length] if lengths is None else written.max(axis=1)
        total = ops.zeros(tokens.shape[:1]) + length if lengths is None else ops.array(lengths)
        corrupted, spans, n_inputs, n_targets = (ops.array(row)[total] for row in (*sizes, *written))
        valid = ops.arange(length) < total[:, None]
        hidden = self._hidden(ops, key, tokens.shape, total - corrupted, corrupted, spans) & valid
        begins = hidden & ~previous(ops, hidden, False)
        left_begins = ~hidden & previous(ops, hidden, True) & valid
        shown = ops.where(begins, self.first_sentinel + 1 - ops.cumsum(begins), tokens)
        asked = ops.where(left_begins, self.first_sentinel + 1 - ops.cumsum(left_begins), tokens)
        inputs, n_inputs = self._packed(ops, shown, (begins | ~hidden) & valid, n_inputs, int(widths[0]))
        targets, n_targets = self._packed(ops, asked, left_begins | hidden, n_targets, int(widths[1]))
        return Spans(inputs, targets, n_inputs, n_targets, hidden)

    def _checked(self, tokens: Array, lengths: Array) -> tuple[Array, Array]:
        problems = Problems("T5Spans")
        tokens = problems.array("tokens", tokens, "int", "[B, L]")
        if lengths is not None:
            lengths = problems.array("lengths", lengths, "int", "[B]")
        if not problems.reasons:
            batch, length = tokens.shape
            if lengths is not None and lengths.shape[0] != batch:
                problems.value(
                    f"lengths must have shape [{batch}], one for each row of tokens, got {list(lengths.shape)}"
                )
            read = None if lengths is None else peek(lengths)
            if read is not None and read.size and not 0 <= int(read.min()) <= int(read.max()) <= length:
                problems.value(f"lengths must be in [0, {length}], got {int(read.min())} to {int(read.max())}")
            spans = self.counts(length)[1]
            if spans > self.sentinels:
                problems.value(f"tokens of length {length} need {spans} sentinels, got {self.sentinels}")
        problems.raise_if_any()
        return tokens, lengths

    def _hidden(
        self, ops: Ops, key: Array, shape: tuple[int, ...], left: Array, corrupted: Array, spans: Array
    ) -> Array:
        """bool [B, L]: the tokens in corrupted spans, `corrupted` of them beside `left` others, in `spans` spans."""
        at = ops.arange(shape[1])
        marks = []
        for part, count in enumerate((left, corrupted)):
            # spans - 1 of the places 1 .. count - 1 begin a new span; 2 * span + part puts the spans in their order
            draws = ops.words(ops.fold_in(key, part), shape) >> 1
            possible = (at > 0) & (at < count[:, None])
            begins = rank(ops, ops.where(possible, draws, 2**30)) < spans[:, None] - 1
            marks.append(ops.where(at < count[:, None], 2 * ops.cumsum(begins) + part, 4 * shape[1]))
        return ops.sort(ops.concatenate(marks))[:, : shape[1]] % 2 == 1

    def _packed(self, ops: Ops, tokens: Array, keep: Array, count: Array, width: int) -> tuple[Array, Array]:
        """The tokens that are kept, without gaps, ended and filled up: int [B, width (+ 1)], and their number."""
        order = ops.argsort(ops.where(keep, 0, 1))[:, :width]
        packed = ops.where(ops.arange(width) < count[:, None], ops.take_along(tokens, order), self.pad_id)
        if self.eos_id is None:
            return packed, count
        packed = ops.concatenate([packed, ops.zeros((count.shape[0], 1)) + self.pad_id])
        return ops.where(ops.arange(width + 1) == count[:, None], self.eos_id, packed), count + 1
