from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from maskattn._arithmetic import never
from maskattn._declared import declared, part
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._pairs import restrict
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks.causal import Causal
from maskattn.masks.rows import FAR, Rows
from maskattn.masks.sliding_window import SlidingWindow


@declared
class PerHead(Mask):
    """Head h follows parts[h]: another mask for each head. True = may attend.

    Windows dilated in some heads only (Longformer), retrieval heads beside streaming heads, the kinds of heads of the
    Sparse Transformer.

    >>> from maskattn import masks
    >>> m = masks.PerHead([masks.Causal(), masks.SlidingWindow(1)])
    >>> print(masks.draw(m, 4, 4, head=1))
    #---
    ##--
    -##-
    --##
    >>> print(masks.draw(m, 2, 5, head=0))
    #----
    ##---
    """

    parts: tuple[Mask, ...] = part(Mask, many=True, meaning="one mask per query head, in order")

    rule: ClassVar[str] = "head h follows mask h"

    def _check(self, problems: Problems) -> None:
        """there is no mask"""
        if not self.parts:
            problems.value("parts must have one mask per head, got []")

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        result = never(h)
        for mask, heads in self._distinct():
            mine = never(h)
            for head in heads:
                mine = mine | (h == head)
            result = result | (mine & mask.allowed(*restrict(mask, b, h, q, k)))
        return result

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows | None:
        found: list[tuple[Rows, Array]] = []
        for mask, heads in self._distinct():
            rows, mine = mask.rows(*restrict(mask, b, h, q, k)), never(h)
            if rows is None:
                return None
            for head in heads:
                mine = mine | (h == head)
            found.append((rows, mine))
        low, high, q_tag, k_tag = (
            sum((otherwise if bounds[side] is None else bounds[side]) * mine for bounds, mine in found)
            for side, otherwise in enumerate((-FAR, FAR, 0, 0))
        )
        tagged = any(rows.q_tag is not None for rows, _ in found)
        return Rows(low, high, q_tag, k_tag) if tagged else Rows(low, high)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        some = every = never(h)
        for head, mask in enumerate(self.parts):
            part_some, part_every = mask.tile(b, h, q_lo, q_hi, k_lo, k_hi)
            some, every = some | ((h == head) & part_some), every | ((h == head) & part_every)
        return some, every

    def asks(self, b: int, h: int, q: int, k: int) -> list[tuple[Mask, tuple[int, int, int, int]]]:
        return [(self.parts[h], (b, h, q, k))] if 0 <= h < len(self.parts) else []

    def _distinct(self) -> list[tuple[Mask, list[int]]]:
        """Each mask once, with the heads that follow it."""
        distinct: list[tuple[Mask, list[int]]] = []
        for head, mask in enumerate(self.parts):
            for other, heads in distinct:
                if mask == other:
                    heads.append(head)
                    break
            else:
                distinct.append((mask, [head]))
        return distinct

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("h").union(*(mask.depends for mask in self.parts))

    def sizes(self) -> dict[str, int]:
        sizes = super().sizes()
        if sizes.setdefault("heads", len(self.parts)) != len(self.parts):
            raise ValueError(f"heads is {sizes['heads']} in a part but {len(self.parts)} masks are given in {self!r}")
        return sizes

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        faults = super().conflicts(sizes)
        heads = sizes["heads"]
        if heads is not None and heads != len(self.parts):
            faults.append(f"{self!r} expects heads {len(self.parts)}, got {heads}")
        return faults

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        made = [SlidingWindow(draws.integer(0, 4), draws.integer(0, 2)) for _ in range(shape.heads - 1)]
        return [cls((Causal(), *made))]
