from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from maskattn._fields import Array, data
from maskattn.masks._slots import Slots


@dataclass(frozen=True)
class KeyMask(Slots):
    """keep[b, k]. True = may attend.

    Padding anywhere in the row (left padding, holes), Hugging Face's attention_mask == 1. `keep` is a bool array
    [B, S] (in a [1, S] array, one for every row); a slot outside it is not kept.

    >>> from maskattn import masks
    >>> keep = [[False, True, True, True], [True, False, True, False]]
    >>> print(masks.draw(masks.KeyMask(keep), 4, 4))
    -###
    -###
    -###
    -###
    >>> print(masks.draw(masks.KeyMask(keep), 2, 4, batch=1))
    #-#-
    #-#-

    Raises:
        ValueError: the array has not two axes. TypeError: its dtype is not bool.
    """

    keep: Array = data()

    rule: ClassVar[str] = "keep[b, k]"
    of_keys: ClassVar[bool] = True
