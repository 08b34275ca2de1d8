from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskattn._fields import Array, data
from maskattn.masks._slots import Slots


@dataclass(frozen=True)
class QueryMask(Slots):
    """keep[b, q]. True = may attend.

    Padded queries, whose rows become empty and follow `empty_rows`. `keep` is a bool array
    [B, L] (in a [1, L] array, one for every row); a slot outside it is not kept.

    >>> from maskattn import masks
    >>> keep = [[True, True, False], [False, True, False]]
    >>> print(masks.draw(masks.QueryMask(keep), 3, 3))
    ###
    ###
    ---
    >>> print(masks.draw(masks.QueryMask(keep), 3, 5, batch=1))
    -----
    #####
    -----

    Raises:
        ValueError: the array has not two axes. TypeError: its dtype is not bool.
    """

    keep: Array = data()

    rule: ClassVar[str] = "keep[b, q]"
    of_keys: ClassVar[bool] = False
