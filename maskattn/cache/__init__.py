"""What the key/value caches of both twins have in common: checks, positions, slots, and the mask of a step.

A row of a cache is one sequence without gaps. Its tokens have the positions 0, 1, 2, ..., whatever slot holds them, and
masks and biases are those of that sequence: position p is index p of their data. `maskattn_*/cache.py` keep the arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from maskattn._arithmetic import choose, maximum, minimum, negated
from maskattn._problems import Problems, describe
from maskattn.arrays import dtype_name
from maskattn.biases import Bias, DenseBias
from maskattn.cache._steps import at_step, last, lookback, reaches_lost, window
from maskattn.cache._stored_bias import StoredBias, replaced
from maskattn.cache.checks import Placed, Step, check_real, shown
from maskattn.masks import And, Full, KeyPadding, Mask, Not, Stored
from maskattn.masks.rows import FAR
from maskattn.typing import Array, NumPyArray, Traced

A = TypeVar("A", bound=Array)

#: From this length on a row is wrong: it was told wrong positions, or names no row, where nothing could be checked.
BROKEN = FAR


class CacheBase(Generic[A]):
    """A key/value cache as a value: see `Cache` of the twins.

    Attributes:
        lengths: int32 [B], the tokens so far of each row; more than there are slots (of a rolling cache: 2**30 or more)
            where a row ran over, or was told wrong positions, in compiled code: such a row attends to nothing.
        lost: int32 [B], how many tokens at the beginning of each row are no longer held; None: none ever is.
    """

    lengths: A
    lost: A | None

    # What a twin says of its arrays ----------------------------------------------------------------------------------

    if TYPE_CHECKING:

        @property
        def key(self) -> A:
            """[B, size, K, D]: the keys in all slots."""

        @property
        def value(self) -> A:
            """[B, size, K, Dv]: the values in all slots."""

    def _count(self, size: int) -> A:
        """0, 1, ..., size - 1, int32, where the lengths are."""
        raise NotImplementedError

    def _whole(self, x: Traced) -> A:
        """Numbers as int32, where the lengths are."""
        raise NotImplementedError

    def _array(self, x: Traced) -> A:
        """NumPy's data, or a number, as an array of the framework, where the lengths are."""
        raise NotImplementedError

    def _read(self, x: Traced) -> NumPyArray | None:
        """An array in NumPy, where that waits for nothing; else None."""
        raise NotImplementedError

    def _all_up_to(self, limit: int) -> bool:
        """Whether it can be seen at once that no row is longer."""
        return False

    def _takes(self, key: A, value: A) -> bool:
        """Whether it can be seen at once that keys and values are of the cache's sizes and dtypes."""
        return False

    def _next_of_one(self) -> A | None:
        """`next_positions` of one token each, where they can be seen at once."""
        return None

    def _picked_of(self, x: A, rows: A) -> A:
        """x[rows], of x [B]."""
        raise NotImplementedError

    def _least(self, x: A) -> A:
        """The smallest of each row of x [B, L]."""
        raise NotImplementedError

    # Sizes -----------------------------------------------------------------------------------------------------------

    @property
    def rolling(self) -> bool:
        """Whether the oldest token of a row makes room for its newest: slot = position % size."""
        return self.lost is not None

    @property
    def size(self) -> int:
        """How many slots each row has."""
        return int(self.key.shape[1])

    @property
    def batch(self) -> int:
        """How many rows there are."""
        return int(self.lengths.shape[0])

    @property
    def positions(self) -> A:
        """int32 [B, size]: the position of the token in each slot, or -1 where there is none to attend to."""
        slots, ends = self._count(self.size)[None], self._visible()[:, None]
        if self.lost is None:
            return self._whole(choose(slots < ends, slots, -1))
        latest = ends - 1 - (ends - 1 - slots) % self.size
        return self._whole(choose((latest >= self.lost[:, None]) & (ends > 0), latest, -1))

    def __repr__(self) -> str:
        batch, size, heads, width = self.key.shape
        shown = f"batch={batch}, size={size}, num_kv_heads={heads}, head_dim={width}, v_head_dim={self.value.shape[3]}"
        return f"Cache({shown}, rolling={self.rolling}, dtype={dtype_name(self.key)})"

    # Positions -------------------------------------------------------------------------------------------------------

    def next_positions(self, q_len: int, *, lengths: Traced = None, valid: Traced = None) -> A:
        """int32 [B, q_len]: the positions that the next tokens will have (rotary embeddings need them); 0 of padding.

        Args:
            q_len: how many tokens the step has.
            lengths, valid: as in `update`.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        if type(q_len) is int and q_len == 1 and lengths is valid is None:
            one = self._next_of_one()
            if one is not None:
                return one
        step = self._step("Cache.next_positions", q_len, lengths, valid)
        tokens = step.tokens(self.lengths)
        return self._whole(maximum(tokens, tokens * 0))

    @property
    def first_position(self) -> int | None:
        """The position that the next token of every row will have, where it is one, and can be read at no cost."""
        return None

    def mask(self, mask: Mask | None, q_len: int, *, lengths: Traced = None, valid: Traced = None) -> Mask:
        """The mask of the step whose tokens were just added, queries by slots. True = may attend.

        `attention(query, cache.key, cache.value, cache.mask(mask, q_len))` is then what attention over whole sequences
        gives for these queries. Slots that are not in use are forbidden; queries of padding may attend to nothing.

        Args:
            mask: that of whole sequences, each row's tokens counted from 0: relational masks compare these positions,
                and data (lengths, keep, ids) are read at them. None allows everything.
            q_len: how many tokens the step had.
            lengths, valid: as `update` was given them.

        Raises:
            TypeError, ValueError: names the argument at fault; in a rolling cache, a mask by which a query attends to
                what is no longer held (where lengths cannot be read, such a query attends to nothing).
        """
        whole = Full() if mask is None else mask
        one = self._of_one_token(whole) if q_len == 1 and lengths is valid is None else None
        if one is not None:
            return one
        if not isinstance(whole, Mask):
            raise TypeError(f"Cache.mask: mask must be a Mask of whole sequences, got {describe(mask)}")
        self._check_data("Cache.mask", whole)
        step = self._step("Cache.mask", q_len, lengths, valid)
        rest = last(whole) if q_len == 1 else whole
        if self.lost is None and step.real is None:
            return at_step(rest, self.lengths - q_len, self.size) & KeyPadding(self._visible())
        tokens = step.tokens(self.lengths - step.count)
        if self.lost is not None:
            tokens = self._within_reach(whole, tokens)
        return Stored(rest, tokens, self.positions)

    def bias(self, bias: Bias | None, q_len: int, *, lengths: Traced = None, valid: Traced = None) -> Bias | None:
        """The bias of the step whose tokens were just added, as `mask`.

        Args:
            bias: that of whole sequences, each row's tokens counted from 0. None adds nothing.
            q_len: how many tokens the step had.
            lengths, valid: as `update` was given them.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        if bias is None:
            return None
        if not isinstance(bias, Bias):
            raise TypeError(f"Cache.bias: bias must be a Bias of whole sequences, got {describe(bias)}")
        self._check_data("Cache.bias", bias)
        step = self._step("Cache.bias", q_len, lengths, valid)
        offset: Traced = getattr(bias, "offset", None)
        if offset is not None and self.lost is None and step.real is None:
            return replaced(bias, offset=self.lengths - q_len + self._array(offset))
        moved = StoredBias(bias, step.tokens(self.lengths - step.count), self.positions)
        if not isinstance(bias, DenseBias):
            return moved
        # an array may forbid by -inf, which kernels look for in arrays only
        b, h = self._count(self.batch), self._count(bias.shape[1])
        q, k = self._count(q_len), self._count(self.size)
        indices = (b[:, None, None, None], h[None, :, None, None], q[None, None, :, None], k[None, None, None])
        return DenseBias(moved.values(*indices))

    # What is wrong, and what is done where that cannot be known ------------------------------------------------------

    def _step(self, where: str, q_len: int, lengths: Traced, valid: Traced) -> Step:
        """The tokens of a step, checked."""
        if lengths is None and valid is None and type(q_len) is int and q_len >= 0:
            return Step(self._count(q_len)[None], None, q_len)
        problems = Problems(where)
        problems.integer("q_len", q_len, minimum=0)
        check_real(self, problems, q_len, lengths, valid)
        problems.raise_if_any()
        return self._checked_step(q_len, lengths, valid)

    def _checked_step(self, q_len: int, lengths: Traced, valid: Traced) -> Step:
        numbers = self._count(q_len)[None]
        if valid is not None:
            real: Traced = self._array(valid)
            rank = real.cumsum(1)
            return Step(self._whole(rank) - 1, real, self._whole(real.sum(1)))
        if lengths is None:
            return Step(numbers, None, q_len)
        count = self._whole(self._array(lengths))
        return Step(numbers, numbers < count[:, None], count)

    def _placed(self, q_len: int, positions: Traced, lengths: Traced, valid: Traced) -> Placed:
        """Where the tokens of a checked update go.

        Raises:
            ValueError: rows run over, or positions are not the next ones, where the values can be read.
        """
        step = self._checked_step(q_len, lengths, valid)
        start, wrong = self.lengths, None
        if positions is not None:
            start, wrong = self._starts(step, self._whole(self._array(positions)))
        ends = start + step.count
        self._check_values(step, start, ends, wrong, positions)
        tokens = step.tokens(start)
        taken, lost = (tokens >= 0) & (tokens < self.size), self.lost
        if lost is not None:
            taken = (tokens >= 0) & (tokens >= (ends - self.size)[:, None])
            lost = self._whole(maximum(minimum(lost, start), ends - self.size))
        if wrong is not None:
            ends, taken = choose(wrong, BROKEN, ends), taken & negated(wrong)[:, None]
        slots = choose(taken, tokens if lost is None else tokens % self.size, self.size)
        return Placed(slots, self._whole(ends), lost)

    def _starts(self, step: Step, positions: Traced) -> tuple[Traced, Traced]:
        """The position of each row's first token; and the rows whose positions do not follow one another, begin below
        0, or leave a gap."""
        begins = positions - step.rank
        sides = (begins, -begins) if step.real is None else [choose(step.real, x, BROKEN) for x in (begins, -begins)]
        low: Traced = self._least(sides[0])
        high: Traced = -self._least(sides[1])
        given = low != BROKEN
        start = choose(given, low, self.lengths)
        return start, given & ((low != high) | (low < 0) | (low > self.lengths))

    def _check_values(self, step: Step, start: Traced, ends: Traced, wrong: Traced, positions: Traced) -> None:
        known = self._read(ends)
        if known is None:
            return
        problems = Problems("Cache.update")
        held, begins = self._read(self.lengths), self._read(start)
        if held is None or begins is None:
            return
        bad = None if wrong is None else self._read(wrong)
        if bad is not None and bad.any():
            row = int(np.argmax(bad))
            given = self._read(self._array(positions))
            real = None if step.real is None else self._read(step.real)
            those = [] if given is None else (given[row] if real is None else given[row][real[row]]).tolist()
            problems.value(
                f"positions of a row must follow one another and begin at 0 to its length so far, not negative and "
                f"without a gap, got {shown(those)} in row {row}, which has {int(held[row])} tokens"
            )
        elif self.lost is None and (over := known > self.size).any():
            row = int(np.argmax(over))
            problems.value(
                f"the cache has {self.size} slots, but row {row} would have {int(known[row])} tokens "
                f"({int(begins[row])} and {int(known[row] - begins[row])} more)"
            )
        elif self.lost is not None and (known >= BROKEN).any():
            problems.value(f"row {int(np.argmax(known >= BROKEN))} was told wrong positions before: rewind it to 0")
        problems.raise_if_any()

    def _rewound(self, lengths: Traced) -> tuple[A, A | None]:
        """Lengths and `lost` after a rewind, checked."""
        problems = Problems("Cache.rewind")
        found = problems.integer_or_array("lengths", lengths, "[B]", minimum=0, ranks=(0, 1))
        batch = self.batch
        if hasattr(found, "shape") and tuple(found.shape) not in ((), (batch,)):
            problems.value(f"lengths must be an int or have shape [{batch}], got {list(found.shape)}")
        problems.raise_if_any()
        given, known = self._whole(self._array(found)), self._read(self.lengths)
        asked = None if known is None else self._read(given)
        if known is not None and asked is not None:
            if (asked < 0).any():
                problems.value(f"lengths must not be negative, got {int(asked.min())}")
            if (over := np.broadcast_to(asked, known.shape) > known).any():
                row = int(np.argmax(over))
                problems.value(
                    f"lengths must be at most those so far, got {int(np.broadcast_to(asked, known.shape)[row])} in row "
                    f"{row}, which has {int(known[row])} tokens"
                )
            problems.raise_if_any()
        kept = self._whole(minimum(maximum(given, given * 0) + self.lengths * 0, self.lengths))
        return kept, None if self.lost is None else self._whole(minimum(self.lost, kept))

    def _picked(self, indices: Traced) -> tuple[A, A, A | None]:
        """For `reorder`, checked: the rows to take, and their lengths and `lost`."""
        problems, batch = Problems("Cache.reorder"), self.batch
        found = problems.array("indices", indices, "int", "[N]")
        problems.raise_if_any()
        rows: Traced = self._array(found)
        known = self._read(rows)
        if known is not None and known.size and (int(known.min()) < 0 or int(known.max()) >= batch):
            raise ValueError(f"Cache.reorder: indices must be rows from 0 to {batch - 1}, got {shown(known.tolist())}")
        inside = (rows >= 0) & (rows < batch)
        rows = rows * inside
        lengths: Traced = self._picked_of(self.lengths, rows)
        lost = None if self.lost is None else self._picked_of(self.lost, rows)
        return rows, self._whole(choose(inside, lengths, BROKEN)), lost

    def _resized(self, size: int) -> tuple[A | None, A | None]:
        """For `resize`, checked: `lost` then, and which slot each new slot is filled from; None: the same one."""
        problems = Problems("Cache.resize")
        problems.integer("size", size, minimum=1)
        problems.raise_if_any()
        if self.lost is None:
            known = self._read(self.lengths)
            if known is not None and known.size and int(known.max()) > size:
                row = int(np.argmax(known))
                raise ValueError(f"Cache.resize: row {row} has {int(known[row])} tokens, more than {size} slots")
            return None, None
        ends, slots = self._visible()[:, None], self._count(size)[None]
        latest = ends - 1 - (ends - 1 - slots) % size
        lost = self._whole(maximum(self.lost, self.lengths - size))
        return lost, self._whole(maximum(latest, latest * 0) % self.size)

    def _of_one_token(self, mask: Mask) -> Mask | None:
        """The mask of a step of one token in lengths alone, which kernels can do without reading other slots; None
        where it is not one run of slots."""
        rest = last(mask)
        if self.lost is None and isinstance(rest, Full):
            return KeyPadding(self._visible())
        back = window(rest)
        if back is None:
            return None
        known = self._read(self.lengths)
        if self.lost is None:
            ends = self._visible()
            begins = maximum(ends - 1 - back, ends * 0) if known is None else self._array(_from(known - 1 - back))
            return And((KeyPadding(ends), Not(KeyPadding(self._whole(begins)))))
        lost = self._read(self.lost)
        if known is None or lost is None or back + 1 != self.size:
            return None
        if (known >= BROKEN).any() or (lost != _from(known - self.size)).any():
            return None  # after a rewind some slot holds nothing
        return KeyPadding(self._array(np.minimum(known, np.int32(self.size))))

    def _visible(self) -> A:
        """The lengths, 0 where a row ran over or was told wrong positions."""
        limit = self.size if self.lost is None else BROKEN - 1
        if self._all_up_to(limit):
            return self.lengths
        return self._whole(self.lengths * (self.lengths <= limit))

    def _check_data(self, where: str, node: Mask | Bias) -> None:
        """A mask or bias must say something of every token."""
        sizes = [size for axis, size in node.sizes().items() if axis in ("q_len", "kv_len")]
        if not sizes:
            return
        most, known = min(sizes), self._read(self.lengths)
        if known is not None and known.size and int(known.max()) > most:
            row = int(np.argmax(known))
            raise ValueError(f"{where}: {node!r} is for {most} tokens, but row {row} has {int(known[row])}")

    def _within_reach(self, mask: Mask, tokens: A) -> A:
        """The queries' tokens, -1 for those that may attend to a token which is no longer held.

        Raises:
            ValueError: there are such, and the values can be read.
        """
        lost: Traced = self.lost
        known, numbers = self._read(tokens), self._read(lost)
        if known is None or numbers is None:
            beyond = reaches_lost(mask, tokens, lost, self._count)
        elif not numbers.any():
            return tokens
        else:
            beyond = reaches_lost(mask, known, numbers, self._count)
        if beyond is None:
            raise ValueError(f"Cache.mask: what {mask!r} never attends to is not known: a rolling cache cannot hold it")
        if known is None or numbers is None:
            return self._whole(choose(beyond, -1, tokens))
        if beyond.any():
            row, query = (int(x) for x in np.argwhere(beyond)[0])
            back = lookback(mask)
            need = "" if back is None else f"; a step of {tokens.shape[1]} tokens needs {back + tokens.shape[1]} slots"
            raise ValueError(
                f"Cache.mask: the token at {int(known[row, query])} of row {row} may attend to tokens below "
                f"{int(numbers[row])}, which a rolling cache of {self.size} slots no longer holds{need}: give fewer "
                "tokens at once, or make room for them: `resize`"
            )
        return tokens


def reach(mask: Mask) -> int | None:
    """How many positions before its own the last token of a row may attend to, where a mask says nothing else of it: -1
    for all; None of other masks."""
    rest = last(mask)
    return -1 if isinstance(rest, Full) else window(rest)


def _from(numbers: NumPyArray) -> NumPyArray:
    """The numbers, 0 for those below."""
    return np.maximum(numbers, 0).astype(np.int32)
