from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from maskattn._declared import data, declared
from maskattn._fields import Array
from maskattn.masks._slots import Slots

if TYPE_CHECKING:
    from jaxtyping import Bool


@declared
class QueryMask(Slots):
    """keep[b, q]: of each row some queries are kept, the others are padding. True = may attend.

    Padded queries, whose rows become empty and follow `empty_rows`. A slot outside `keep` is not kept.

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
    """

    keep: Bool[Array, "#B L"] = data("bool", "[B, L]", meaning="which queries are kept; [1, L] serves every row")

    rule: ClassVar[str] = "keep[b, q]"
    of_keys: ClassVar[bool] = False
