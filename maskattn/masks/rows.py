"""What the keys of each query are, where they are one interval, or the keys of a tag: `Mask.rows`."""

from __future__ import annotations

from typing import NamedTuple

from maskattn._arithmetic import choose, maximum, minimum
from maskattn._fields import Array
from maskattn.arrays import is_int

#: No key and no query lies further out than this; moved by an offset, it still fits in int32.
FAR = 1 << 30
#: Tags that nothing has in common.
NO_QUERY, NO_KEY = -2, -1


class Rows(NamedTuple):
    """The keys of each query: low <= k < high, and of these, where there are tags, the ones whose tag is the query's.

    Attributes:
        low, high: int, broadcasting with b, h and q; None: no bound.
        q_tag, k_tag: int, broadcasting with b, h, and q or k; None, both: no tags. Tags are not negative, but NO_QUERY
            and NO_KEY; where q_tag is the int 0, k_tag is 0 or NO_KEY.
    """

    low: Array | None = None
    high: Array | None = None
    q_tag: Array | None = None
    k_tag: Array | None = None

    def within(self, other: Rows) -> Rows | None:
        """What both allow; None where that takes two tags."""
        tags = self._tags(other)
        if tags is None:
            return None
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        low = maximum(*lows) if len(lows) == 2 else lows[0] if lows else None
        high = minimum(*highs) if len(highs) == 2 else highs[0] if highs else None
        return Rows(low, high, *tags)

    def _tags(self, other: Rows) -> tuple[Array | None, Array | None] | None:
        for one, two in ((self, other), (other, self)):
            if one.q_tag is None:
                return two.q_tag, two.k_tag
        for one, two in ((self, other), (other, self)):
            if is_int(one.q_tag) and one.k_tag is not None and two.k_tag is not None:
                return two.q_tag, choose(one.k_tag >= 0, two.k_tag, NO_KEY)
        return None

    def moved(self, k_offset: Array) -> Rows:
        """The same in keys that are counted from `k_offset` on."""
        low, high = (None if bound is None else bound - k_offset for bound in (self.low, self.high))
        return Rows(low, high, self.q_tag, self.k_tag)
