"""`&`, `|` and `~` of masks, simplified as they are built."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn._fields import Array, part
from maskattn.masks._base import Mask, restrict
from maskattn.masks.empty import Empty
from maskattn.masks.full import Full


@dataclass(frozen=True)
class And(Mask):
    """Allowed where every part allows; built by `&`."""

    parts: tuple[Mask, ...] = part()

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        result: Array = True
        for mask in self.parts:
            result = result & mask.allowed(*restrict(mask, b, h, q, k))
        return result

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        some: Array = True
        every: Array = True
        for mask in self.parts:
            part_some, part_every = mask.tile(b, h, q_lo, q_hi, k_lo, k_hi)
            some, every = some & part_some, every & part_every
        return some, every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset().union(*(mask.depends for mask in self.parts))

    def __repr__(self) -> str:
        return " & ".join(f"({mask!r})" if isinstance(mask, Or) else repr(mask) for mask in self.parts)


@dataclass(frozen=True)
class Or(Mask):
    """Allowed where any part allows; built by `|`."""

    parts: tuple[Mask, ...] = part()

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        result: Array = False
        for mask in self.parts:
            result = result | mask.allowed(*restrict(mask, b, h, q, k))
        return result

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        some: Array = False
        every: Array = False
        for mask in self.parts:
            part_some, part_every = mask.tile(b, h, q_lo, q_hi, k_lo, k_hi)
            some, every = some | part_some, every | part_every
        return some, every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset().union(*(mask.depends for mask in self.parts))

    def __repr__(self) -> str:
        return " | ".join(f"({mask!r})" if isinstance(mask, And) else repr(mask) for mask in self.parts)


@dataclass(frozen=True)
class Not(Mask):
    """Allowed where its part forbids: the plain complement, built by `~`. Padding becomes allowed."""

    part: Mask = part()

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        # ^ rather than ~, which turns a Python True into -2
        return self.part.allowed(*restrict(self.part, b, h, q, k)) ^ True

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        some, every = self.part.tile(b, h, q_lo, q_hi, k_lo, k_hi)
        return every ^ True, some ^ True

    @property
    def depends(self) -> frozenset[str]:
        return self.part.depends

    def __repr__(self) -> str:
        return f"~({self.part!r})" if isinstance(self.part, (And, Or)) else f"~{self.part!r}"


def conjunction(*masks: Mask) -> Mask:
    """`&` of the masks: nested ones flattened, duplicates and Full dropped, Empty where two parts are complements."""
    parts = _distinct(And, Full, masks)
    if any(isinstance(mask, Empty) for mask in parts) or _contradict(parts):
        return Empty()
    if not parts:
        return Full()
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def disjunction(*masks: Mask) -> Mask:
    """`|` of the masks: nested ones flattened, duplicates and Empty dropped, Full where two parts are complements."""
    parts = _distinct(Or, Empty, masks)
    if any(isinstance(mask, Full) for mask in parts) or _contradict(parts):
        return Full()
    if not parts:
        return Empty()
    return parts[0] if len(parts) == 1 else Or(tuple(parts))


def complement(mask: Mask) -> Mask:
    """`~` of the mask; twice is the mask itself."""
    if isinstance(mask, Not):
        return mask.part
    if isinstance(mask, Full):
        return Empty()
    return Full() if isinstance(mask, Empty) else Not(mask)


def _distinct(kind: type[And] | type[Or], neutral: type[Mask], masks: tuple[Mask, ...]) -> list[Mask]:
    parts: list[Mask] = []
    for mask in masks:
        for entry in mask.parts if isinstance(mask, (And, Or)) and isinstance(mask, kind) else (mask,):
            if not isinstance(entry, neutral) and not any(entry == other for other in parts):
                parts.append(entry)
    return parts


def _contradict(parts: list[Mask]) -> bool:
    """Whether some part is the complement of another."""
    return any(isinstance(mask, Not) and any(mask.part == other for other in parts) for mask in parts)
