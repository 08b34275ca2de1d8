"""Masks whose positions were moved (`at`) or given per token (`with_positions`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from maskattn._declared import data, declared, part
from maskattn._fields import Array, literal
from maskattn._lookup import at_row, extent, gather, rows_of, wide
from maskattn._pairs import restrict
from maskattn._problems import Problems
from maskattn.arrays import is_int
from maskattn.masks._core import MOVES, And, Mask, Not, Or, rebuild
from maskattn.masks.rows import Rows

if TYPE_CHECKING:
    from jaxtyping import Int


@declared
class At(Mask):
    """Query 0 is position q_offset of its mask, and key 0 is position k_offset. True = may attend.

    Made by `Mask.at`. Storage slots of data masks move with the positions. The tensors may then be a block of what the
    data describe, so lengths are checked less: along an axis whose offset is 0 they may not exceed the data, along
    others nothing is checked, and a slot outside the data is not allowed.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Causal().at(q_offset=2), 3, 3))
    ###
    ###
    ###
    >>> print(masks.draw(masks.KeyPadding([4]).at(k_offset=2), 2, 5))
    ##---
    ##---
    """

    part: Mask = part(Mask, meaning="the mask that is moved")
    q_offset: Int[Array, "*B"] = data("int", "[] or [B]", or_int=True, default=0, meaning="the position of query 0")
    k_offset: Int[Array, "*B"] = data("int", "[] or [B]", or_int=True, default=0, meaning="the position of key 0")

    _called: ClassVar[str] = "at"

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return self.part.allowed(*restrict(self.part, b, h, q + at_row(self.q_offset, b), k + at_row(self.k_offset, b)))

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows | None:
        k_by = at_row(self.k_offset, b)
        found = self.part.rows(*restrict(self.part, b, h, q + at_row(self.q_offset, b), k + k_by))
        return None if found is None else found.moved(k_by)

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        q_by, k_by = at_row(self.q_offset, b), at_row(self.k_offset, b)
        return self.part.tile(b, h, q_lo + q_by, q_hi + q_by, k_lo + k_by, k_hi + k_by)

    def asks(self, b: int, h: int, q: int, k: int) -> list[tuple[Mask, tuple[int, int, int, int]]]:
        return [(self.part, (b, h, int(q + at_row(self.q_offset, b)), int(k + at_row(self.k_offset, b))))]

    def _rows(self) -> list[int]:
        """Lengths of the offsets that differ between rows."""
        return [size for offset in (self.q_offset, self.k_offset) for size in rows_of(offset).values()]

    @property
    def depends(self) -> frozenset[str]:
        inner = self.part.depends
        return inner | {"b"} if self._rows() and inner & {"q", "k"} else inner

    def sizes(self) -> dict[str, int]:
        sizes = {axis: size for axis, size in self.part.sizes().items() if axis not in ("q_len", "kv_len")}
        for rows in self._rows():
            if sizes.setdefault("batch", rows) != rows:
                raise ValueError(f"batch is {sizes['batch']} in {self.part!r} but {rows} in the offsets of `at`")
        return sizes

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        inner, whole = dict(sizes), self.part.sizes()
        for axis, offset in (("q_len", self.q_offset), ("kv_len", self.k_offset)):
            size = sizes[axis]
            exceeds = size is not None and axis in whole and size > whole[axis]
            if _moves(offset) or not exceeds:
                inner[axis] = None
        faults = self.part.conflicts(inner)
        for rows in self._rows():
            if rows != sizes["batch"]:
                faults.append(f"{self!r} expects batch {rows}, got {sizes['batch']}")
        return faults

    def __repr__(self) -> str:
        offsets = {"q_offset": self.q_offset, "k_offset": self.k_offset}
        shown = [f"{name}={literal(offset)}" for name, offset in offsets.items() if _moves(offset)]
        inner = f"({self.part!r})" if isinstance(self.part, (And, Or, Not)) else repr(self.part)
        return f"{inner}.at({', '.join(shown)})"


def _moves(offset: Array) -> bool:
    return not is_int(offset) or offset != 0


@declared
class Positioned(Mask):
    """A relational mask whose tokens have given positions: q_pos[b, q] and k_pos[b, k]. True = may attend.

    Made by `Mask.with_positions`. A slot outside the positions is not allowed.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Causal().with_positions([[2, 0, 1]], [[2, 0, 1]]), 3, 3))
    ###
    -#-
    -##
    >>> print(masks.draw(masks.Causal().with_positions([[1, 3]], [[0, 1, 2, 3]]), 2, 4))
    ##--
    ####
    """

    part: Mask = part(Mask, meaning="the mask whose positions are given")
    q_pos: Int[Array, "#B L"] = data("int", "[B, L]", meaning="the position of each query; [1, L] serves every row")
    k_pos: Int[Array, "#B S"] = data("int", "[B, S]", meaning="the position of each key; [1, S] serves every row")

    rule: ClassVar[str] = "q and k have positions"
    _called: ClassVar[str] = "with_positions"

    def _check(self, problems: Problems) -> None:
        """the batches of q_pos and k_pos differ"""
        rows = (self.q_pos.shape[0], self.k_pos.shape[0])
        if rows[0] != rows[1] and 1 not in rows:
            problems.value(f"q_pos and k_pos must have one batch, got {rows[0]} and {rows[1]}")

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        q_at, q_inside = gather(wide(self.q_pos), b, q)
        k_at, k_inside = gather(wide(self.k_pos), b, k)
        return self.part.allowed(*restrict(self.part, b, h, q_at, k_at)) & q_inside & k_inside

    def asks(self, b: int, h: int, q: int, k: int) -> list[tuple[Mask, tuple[int, int, int, int]]]:
        (q_at, q_inside), (k_at, k_inside) = gather(wide(self.q_pos), b, q), gather(wide(self.k_pos), b, k)
        return [(self.part, (b, h, int(q_at), int(k_at)))] if q_inside and k_inside else []

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        q_least, q_most, q_some, q_every = extent(self.q_pos, b, q_lo, q_hi)
        k_least, k_most, k_some, k_every = extent(self.k_pos, b, k_lo, k_hi)
        some, every = self.part.tile(b, h, q_least, q_most, k_least, k_most)
        return some & q_some & k_some, every & q_every & k_every

    @property
    def depends(self) -> frozenset[str]:
        return self.part.depends | ({"b", "q", "k"} if "batch" in self.sizes() else {"q", "k"})

    def sizes(self) -> dict[str, int]:
        sizes = {axis: size for axis, size in self.part.sizes().items() if axis not in ("q_len", "kv_len")}
        for axis, positions in (("q_len", self.q_pos), ("kv_len", self.k_pos)):
            rows, sizes[axis] = positions.shape
            if rows != 1 and sizes.setdefault("batch", rows) != rows:
                raise ValueError(f"batch is {sizes['batch']} in {self.part!r} but {rows} in the positions")
        return sizes

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        # Lengths are those of the positions, whatever lengths the part itself would have.
        faults = self.part.conflicts({**sizes, "q_len": None, "kv_len": None})
        return faults + _unlike(self, sizes, self.q_pos, self.k_pos)

    def __repr__(self) -> str:
        return f"{self.part!r}.with_positions({literal(self.q_pos)}, {literal(self.k_pos)})"


@declared
class Stored(Mask):
    """Query q is token q_tokens[b, q] of its mask, and key k is token k_tokens[b, k]. True = may attend.

    What a cache holds, in whatever slots: relational masks compare the tokens, and data are read at them. A negative
    token is none: it neither attends nor is attended to.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Stored(masks.Causal(), [[2, 3]], [[3, 0, 1, 2, -1]]), 2, 5))
    -###-
    ####-
    >>> print(masks.draw(masks.Stored(masks.KeyMask([[True, False, True]]), [[0]], [[2, 1, 0]]), 1, 3))
    #-#
    """

    part: Mask = part(Mask, meaning="the mask of whole sequences")
    q_tokens: Int[Array, "#B L"] = data("int", "[B, L]", meaning="the token of each query; [1, L] serves every row")
    k_tokens: Int[Array, "#B S"] = data("int", "[B, S]", meaning="the token of each key; [1, S] serves every row")

    rule: ClassVar[str] = "q and k are tokens"

    def _check(self, problems: Problems) -> None:
        """the batches of q_tokens and k_tokens differ"""
        rows = (self.q_tokens.shape[0], self.k_tokens.shape[0])
        if rows[0] != rows[1] and 1 not in rows:
            problems.value(f"q_tokens and k_tokens must have one batch, got {rows[0]} and {rows[1]}")

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        q_at, q_inside = gather(wide(self.q_tokens), b, q)
        k_at, k_inside = gather(wide(self.k_tokens), b, k)
        real = (q_at >= 0) & (k_at >= 0) & q_inside & k_inside
        return self.part.allowed(*restrict(self.part, b, h, q_at, k_at)) & real

    def asks(self, b: int, h: int, q: int, k: int) -> list[tuple[Mask, tuple[int, int, int, int]]]:
        (q_at, q_inside), (k_at, k_inside) = gather(wide(self.q_tokens), b, q), gather(wide(self.k_tokens), b, k)
        real = q_inside and k_inside and q_at >= 0 and k_at >= 0
        return [(self.part, (b, h, int(q_at), int(k_at)))] if real else []

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        q_least, q_most, q_some, q_every = extent(self.q_tokens, b, q_lo, q_hi)
        k_least, k_most, k_some, k_every = extent(self.k_tokens, b, k_lo, k_hi)
        some, every = self.part.tile(b, h, q_least, q_most, k_least, k_most)
        some = some & q_some & k_some & (q_most >= 0) & (k_most >= 0)
        return some, every & q_every & k_every & (q_least >= 0) & (k_least >= 0)

    @property
    def depends(self) -> frozenset[str]:
        return self.part.depends | ({"b", "q", "k"} if "batch" in self.sizes() else {"q", "k"})

    def sizes(self) -> dict[str, int]:
        sizes = {axis: size for axis, size in self.part.sizes().items() if axis not in ("q_len", "kv_len")}
        for axis, tokens in (("q_len", self.q_tokens), ("kv_len", self.k_tokens)):
            rows, sizes[axis] = tokens.shape
            if rows != 1 and sizes.setdefault("batch", rows) != rows:
                raise ValueError(f"batch is {sizes['batch']} in {self.part!r} but {rows} in the tokens")
        return sizes

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        faults = self.part.conflicts({**sizes, "q_len": None, "kv_len": None})
        return faults + _unlike(self, sizes, self.q_tokens, self.k_tokens)


def _unlike(mask: Mask, sizes: Mapping[str, int | None], of_queries: Array, of_keys: Array) -> list[str]:
    """Where the shapes of what was given for each query and key are others than the sizes."""
    faults = []
    for given, names in ((of_queries, ("batch", "q_len")), (of_keys, ("batch", "kv_len"))):
        for axis, expected in zip(names, given.shape, strict=True):
            size = sizes[axis]
            if size is not None and size != expected and not (axis == "batch" and expected == 1):
                faults.append(f"{mask!r} expects {axis} {expected}, got {size}")
    return faults


def shifted(mask: Mask, q_offset: Array, k_offset: Array) -> Mask:
    """`mask.at(q_offset, k_offset)`; offsets that are ints add up."""
    moved = At(mask, q_offset, k_offset)
    if moved.data_fields():
        return moved
    if isinstance(mask, At) and not mask.data_fields():
        moved = At(mask.part, mask.q_offset + moved.q_offset, mask.k_offset + moved.k_offset)
    return moved if moved.depends else moved.part


def positioned(mask: Mask, q_pos: Array, k_pos: Array) -> Mask:
    """`mask.with_positions(q_pos, k_pos)`: relational leaves get the positions, other leaves stay as they are."""
    given = Positioned(mask, q_pos, k_pos)  # checks and converts the positions once

    def place(part: Mask) -> Mask | None:
        if isinstance(part, Positioned):
            return rebuild(part.part, place)
        if isinstance(part, At):
            return _moved(rebuild(part.part, place), part)
        if part.children():
            return None
        return Positioned(part, given.q_pos, given.k_pos) if part.relational and part.depends else part

    return rebuild(mask, place)


def _moved(mask: Mask, at: At) -> Mask:
    """Data keep the slots that `at` gave them; positions that were just given are not moved again."""

    def move(part: Mask) -> Mask | None:
        if isinstance(part, Positioned):
            return part
        return shifted(part, at.q_offset, at.k_offset) if isinstance(part, At) or not part.children() else None

    return rebuild(mask, move)


MOVES.update(at=shifted, with_positions=positioned)
