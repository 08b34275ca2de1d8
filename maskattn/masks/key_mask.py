from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from maskattn._declared import data, declared
from maskattn._fields import Array
from maskattn.masks._slots import Slots

if TYPE_CHECKING:
    from jaxtyping import Bool


@declared
class KeyMask(Slots):
    """keep[b, k]: of each row some keys are kept, the others are padding. True = may attend.

    Padding anywhere in the row (left padding, holes), Hugging Face's attention_mask == 1. A slot outside `keep` is not
    kept.

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
    """

    keep: Bool[Array, "#B S"] = data("bool", "[B, S]", meaning="which keys are kept; [1, S] serves every row")

    rule: ClassVar[str] = "keep[b, k]"
    of_keys: ClassVar[bool] = True
