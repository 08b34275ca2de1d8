"""Masks and biases of a part of a call: some batch rows, heads and queries of it, as one device of several has them.

A mask keeps its class where its data can be cut into rows and heads; where it cannot, it is asked about the indices of
the whole (`Moved`). Queries move as `Mask.at` moves them, and the arrays of Dense and DenseBias are cut along them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from maskattn._declared import data, declared, integer, part
from maskattn._pairs import Pairwise, restrict
from maskattn.biases import Additive, ALiBi, Bias, DenseBias, Disentangled, T5Buckets, TableBias
from maskattn.masks import Dense, Empty, Mask, PerHead, rebuild
from maskattn.masks.positions import At, Positioned, Stored
from maskattn_torch.types import Array, Given

__all__ = ["Part", "bias_of", "mask_of", "scores"]

_READ = {"B": "b", "H": "h"}


@dataclass(frozen=True)
class Part:
    """Where a part of a call lies in the whole.

    Attributes:
        first, count: the first batch row "B", head "H" and query "L", and how many there are.
        divided: those of the three letters along which the part is not the whole.
        local: (an array, a letter for each of its axes) -> the array cut along those axes; one of size 1 is never cut.
    """

    first: Mapping[str, int]
    count: Mapping[str, int]
    divided: frozenset[str]
    local: Callable[[Given, str], Given]

    def cut(self, x: Given, axes: str) -> Given:
        """What `local` gives of an array that is here whole: a view."""
        for axis, letter in enumerate(axes):
            if letter in self.divided and x.shape[axis] != 1:
                low = self.first[letter]
                x = x[(slice(None),) * axis + (slice(low, low + self.count[letter]),)]
        return x


def scores(array: Given) -> str:
    """The letters of the axes of an array that broadcasts to the score matrix."""
    return "BHLS"[4 - array.ndim :]


def mask_of(mask: Mask, of: Part) -> Mask:
    """The mask of a part of a call. True = may attend."""

    def change(node: Mask) -> Mask | None:
        if isinstance(node, Dense):
            return node.map_data(lambda keep: of.local(keep, scores(keep)))
        if isinstance(
            node, (At, Positioned, Stored)
        ):  # their queries are counted by what is given to them: moved outside
            return _queries(_own(node.with_children([_rows_and_heads(node.part, of)]), of), of)
        if isinstance(node, PerHead):
            return _of_heads([rebuild(each, change) for each in node.parts], node, of)
        if node.children() and _library(node):
            return None
        return _queries(_leaf(node, of), of)

    return rebuild(mask, change)


def bias_of(bias: Bias, of: Part) -> Bias:
    """The bias of a part of a call; gradients flow to the arrays of the whole."""
    row, head, query = (of.first[letter] for letter in "BHL")
    if isinstance(bias, DenseBias):
        return bias.map_data(lambda array: of.local(array, scores(array)))
    if isinstance(bias, ALiBi):
        offset = _moved(bias.offset, of)
        heads = bias.heads if bias.heads == 1 else of.count["H"]
        return bias if not heads else replace(bias, heads=heads, slopes=of.local(bias.slopes, "H"), offset=offset)
    if isinstance(bias, T5Buckets):
        return replace(bias, table=of.local(bias.table, "-H"), offset=_moved(bias.offset, of))
    if isinstance(bias, Disentangled):
        made = replace(bias, of_queries=of.local(bias.of_queries, "BH--"), of_keys=of.local(bias.of_keys, "BH--"))
        return MovedBias(made, 0, 0, query) if query else made
    if isinstance(bias, Additive):
        return bias.with_children([mask_of(bias.mask, of)])
    if isinstance(bias, TableBias):
        table = of.local(bias.table, "-H")
        fixed = table.detach() if isinstance(table, Array) else table  # the gradient is of the one that is looked up
        rest = bias.map_data(lambda array: fixed if array is bias.table else of.local(array, ""))
        return MovedTable(table, rest, row, query)  # type: ignore[arg-type]
    whole = bias.map_data(lambda array: of.local(array, ""))
    return MovedBias(whole, row, head, query) if of.divided else whole


def _rows_and_heads(mask: Mask, of: Part) -> Mask:
    """The mask of the part's rows and heads, of the queries of the whole."""
    still = replace(
        of,
        first={**of.first, "L": 0},
        divided=of.divided - {"L"},
        local=lambda array, axes: of.local(array, axes.replace("L", "-")),
    )
    return mask_of(mask, still)


def _queries(mask: Mask, of: Part) -> Mask:
    if "L" not in of.divided or "q" not in mask.depends:
        return mask
    first, sizes = of.first["L"], {"batch": None, "heads": None, "q_len": of.count["L"], "kv_len": None}
    # where the first query is the first, only a length of its own would be another
    return mask.at(first) if first or mask.conflicts(sizes) else mask


def _leaf(mask: Mask, of: Part) -> Mask:
    """The rows and heads of a mask that is made of no others."""
    divided = {letter for letter in of.divided & {"B", "H"} if _READ[letter] in mask.depends}
    if not divided or _library(mask) and divided <= _cut(mask):
        return _own(mask, of)
    return Moved(mask.map_data(lambda array: of.local(array, "")), of.first["B"], of.first["H"])


def _own(mask: Mask, of: Part) -> Mask:
    """The mask with its own arrays cut, by the axes that its class declares for them."""
    fields = mask.data_fields()
    if not fields:
        return mask
    leaves, structure = mask.flatten()
    cut = [of.local(leaf, _axes(mask, name, leaf.ndim)) for name, leaf in zip(fields, leaves, strict=False)]
    return type(mask).unflatten(structure, [*cut, *leaves[len(cut) :]])


def _of_heads(parts: list[Mask], mask: PerHead, of: Part) -> Mask:
    if "H" not in of.divided:
        return mask.with_children(parts)
    first, count = of.first["H"], of.count["H"]
    return PerHead(tuple(parts[first : first + count])) if count else Empty()


def _library(mask: Mask) -> bool:
    """Whether this library knows how the mask reads rows and heads: by the axes of its arrays, or not at all."""
    return type(mask).__module__.startswith("maskattn.")


def _cut(mask: Mask) -> set[str]:
    """The letters of the axes along which the arrays of a mask can be cut."""
    axes = [(getattr(mask, name), name) for name in mask.data_fields()]
    named = [(x.shape, _axes(mask, name, x.ndim)) for x, name in axes]
    if any(len(shape) and not letters for shape, letters in named):
        return set()
    return {letter for shape, letters in named for size, letter in zip(shape, letters, strict=True) if size != 1}


def _axes(node: Pairwise, name: str, rank: int) -> str:
    """A letter for each axis of an array, of those that its declaration names: "B" and "H", others "-"; "" if none."""
    said = node._kinds[name].says
    for shape in said.split("[")[1:]:
        names = [axis.strip() for axis in shape.partition("]")[0].split(",") if axis.strip()]
        if len(names) == rank and not said.startswith("broadcastable"):
            return "".join(axis if axis in _READ else "-" for axis in names)
    return ""


def _moved(offset: Given | int, of: Part) -> Given | int:
    """The position of the part's first query, of an offset [] or [B], where query 0 of the whole is at `offset`."""
    if isinstance(offset, int):
        return offset + of.first["L"]
    local = of.local(offset, "B" if offset.ndim else "")
    return local + of.first["L"] if of.first["L"] else local


@declared
class Moved(Mask):
    """A mask where row 0 is its row `row`, and head 0 its head `head`. True = may attend."""

    part: Mask = part(Mask, meaning="the mask of the whole")
    row: int = integer(default=0, meaning="the first row")
    head: int = integer(default=0, meaning="the first head")

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return self.part.allowed(*restrict(self.part, b + self.row, h + self.head, q, k))

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        return self.part.tile(b + self.row, h + self.head, q_lo, q_hi, k_lo, k_hi)

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Any:
        return self.part.rows(b + self.row, h + self.head, q, k)

    @property
    def depends(self) -> frozenset[str]:
        return self.part.depends

    def sizes(self) -> dict[str, int]:
        return {axis: size for axis, size in self.part.sizes().items() if axis in ("q_len", "kv_len")}

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        return self.part.conflicts({**sizes, "batch": None, "heads": None})


@declared
class MovedBias(Bias):
    """A bias where row, head and query 0 are its row `row`, its head `head` and its query `query`."""

    part: Bias = part(Bias, meaning="the bias of the whole")
    row: int = integer(default=0, meaning="the first row")
    head: int = integer(default=0, meaning="the first head")
    query: int = integer(default=0, meaning="the first query")

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return self.part.values(*restrict(self.part, b + self.row, h + self.head, q + self.query, k))

    @property
    def depends(self) -> frozenset[str]:
        return self.part.depends

    def sizes(self) -> dict[str, int]:
        return {axis: size for axis, size in self.part.sizes().items() if axis == "kv_len"}

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        return self.part.conflicts({**sizes, "batch": None, "heads": None, "q_len": None})


@declared
class MovedTable(TableBias):
    """A table whose rows are those of `part`, where row and query 0 are its row `row` and its query `query`."""

    table: Array = data("float", "[rows, H]", meaning="a row per kind of pair")
    part: TableBias = part(TableBias, meaning="whose rows they are")
    row: int = integer(default=0, meaning="the first row")
    query: int = integer(default=0, meaning="the first query")

    def rows(self, b: Array, q: Array, k: Array) -> Array:
        """The row of the table of the whole."""
        return self.part.rows(b + self.row, q + self.query, k)

    @property
    def depends(self) -> frozenset[str]:
        return self.part.depends | super().depends

    def sizes(self) -> dict[str, int]:
        return {axis: size for axis, size in self.part.sizes().items() if axis == "kv_len"} | super().sizes()

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        own = {} if self.table.shape[1] == 1 else {"heads": self.table.shape[1]}
        faults = [f"{self!r} expects {axis} {n}, got {sizes[axis]}" for axis, n in own.items() if sizes[axis] != n]
        return faults + self.part.conflicts({**sizes, "batch": None, "heads": None, "q_len": None})
