"""`Mask`: what every mask can do, derived from its `allowed` and its fields."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from maskattn._fields import Array, Spec, fill, to_numpy
from maskattn._problems import Problems, describe
from maskattn.masks._examples import Draws, Sizes

AXES = ("batch", "heads", "q_len", "kv_len")


class Mask(Spec):
    """What may attend to what. True = may attend.

    A mask is a `@dataclass(frozen=True)` subclass with an `allowed` method. Fields are static (ints, tuples: hashable,
    part of a compile key) unless declared with `data()` (arrays of NumPy, JAX or PyTorch) or `part()` (masks).
    Masks combine with `&`, `|` and `~`, which is the plain complement.

    Attributes:
        relational: whether `allowed` compares positions rather than reads stored slots; only then does
            `with_positions` replace its positions.
        rule: the inequality, in words or symbols, for `why`.
    """

    relational: ClassVar[bool] = False
    rule: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        # A class writes the inequality and returns whatever shape it gives; callers get the broadcast shape.
        for name, full in (("allowed", _full_allowed), ("tile", _full_tile)):
            if name in vars(cls):
                setattr(cls, name, full(vars(cls)[name]))
        super().__init_subclass__(**options)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        """Masks of this class that fit these sizes, chosen with `draws`; [] where none does.

        The parity suite, the benchmarks, the gallery and the tests take their masks from here.
        """
        return []

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        """Whether query q of batch row b and head h may attend to key k.

        Args:
            b, h, q, k: integer arrays that broadcast together (or ints), all of one framework, the one the data are of.

        Returns:
            bool, of the broadcast shape.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define allowed(b, h, q, k)")

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        """Bounds for the tiles of queries q_lo..q_hi and keys k_lo..k_hi (inclusive; not empty).

        Returns:
            (some, every), bool, of the broadcast shape: `some` False means that no pair of the tile is allowed, `every`
            True that all are. Both may be loose, never wrong.
        """
        indices = (b, h, q_lo, q_hi, k_lo, k_hi)
        return fill(True, *indices), fill(False, *indices)

    @property
    def depends(self) -> frozenset[str]:
        """Those of "b", "h", "q", "k" that `allowed` reads."""
        return frozenset("bhqk")

    def sizes(self) -> dict[str, int]:
        """The lengths that the data fix, of "batch", "heads", "q_len", "kv_len"; an axis of size 1 fixes none.

        "batch_multiple" is a number that must divide the batch.

        Raises:
            ValueError: two parts of the expression disagree.
        """
        return merge_sizes(self.children())

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        """Why this mask cannot be used at these sizes (all four axes; None is not checked); [] where it can."""
        if self.children():
            return [fault for child in self.children() for fault in child.conflicts(sizes)]
        faults = []
        for axis, expected in self.sizes().items():
            size = sizes["batch" if axis == "batch_multiple" else axis]
            if axis == "batch_multiple":
                if size is not None and size % expected:
                    faults.append(f"{self!r} expects a batch that is a multiple of {expected}, got {size}")
            elif size not in (None, expected):
                faults.append(f"{self!r} expects {axis} {expected}, got {sizes[axis]}")
        return faults

    def settle(self, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None) -> dict[str, int]:
        """All four sizes, those not given taken from the data (else 1).

        Raises:
            ValueError: a size is negative or conflicts with the data; every conflict is named.
        """
        found = self.sizes()
        problems = Problems(f"sizes of {type(self).__name__}")
        sizes = {
            "batch": found.get("batch", found.get("batch_multiple", 1)) if batch is None else batch,
            "heads": found.get("heads", 1) if heads is None else heads,
            "q_len": q_len,
            "kv_len": kv_len,
        }
        sizes = {axis: problems.integer(axis, size, minimum=0) for axis, size in sizes.items()}
        problems.raise_if_any()
        faults = self.conflicts(sizes)
        if faults:
            raise ValueError("; ".join(faults))
        return sizes

    def dense(self, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None) -> np.ndarray:
        """The mask as a NumPy bool array [batch, heads, q_len, kv_len]. True = may attend.

        Raises:
            ValueError: a size conflicts with the data.
        """
        from maskattn.masks._evaluate import evaluate

        mask = self.map_data(to_numpy)
        sizes = mask.settle(q_len, kv_len, batch, heads)
        shape = tuple(sizes[axis] for axis in AXES)
        return np.array(np.broadcast_to(evaluate(mask, shape, np.arange), shape))

    def at(self, q_offset: Array = 0, k_offset: Array = 0) -> Mask:
        """The same mask where query 0 is position q_offset and key 0 is position k_offset (decoding, shards).

        Data masks (lengths, keep) index storage slots, which move too. Offsets are ints or int arrays, [] or [B].
        """
        from maskattn.masks.positions import shifted

        return shifted(self, q_offset, k_offset)

    def with_positions(self, q_pos: Array, k_pos: Array) -> Mask:
        """The same mask with a position given for each token: q_pos int [B, L], k_pos int [B, S].

        Only relational masks compare positions; data masks in the expression keep reading their slots.
        """
        from maskattn.masks.positions import positioned

        return positioned(self, q_pos, k_pos)

    def why(self, b: int, h: int, q: int, k: int) -> str:
        """In words: which parts of the expression allow or forbid query q of row b, head h, to attend to key k."""
        from maskattn.masks._why import explain

        problems = Problems("why")
        sizes = self.sizes()
        for name, index, axis in zip("bhqk", (b, h, q, k), AXES, strict=True):
            number = problems.integer(name, index, minimum=0)
            # beyond the data a position is forbidden, which is an answer; a row or head that is not there has none
            if name in "bh" and axis in sizes and isinstance(number, int) and number >= sizes[axis]:
                problems.value(f"{name} must be less than {axis} {sizes[axis]}, got {number}")
        problems.raise_if_any()
        return explain(self, b, h, q, k)

    def to_json(self) -> str:
        """The expression as JSON text, data included, which `masks.from_json` reads; see there for its errors."""
        from maskattn.masks.json import to_json

        return to_json(self)

    def asks(self, b: int, h: int, q: int, k: int) -> list[tuple[Mask, tuple[int, int, int, int]]]:
        """For `why`: the masks that decide this pair, each with the (b, h, q, k) that it is asked about."""
        return [(child, (b, h, q, k)) for child in self.children()]

    def reads(self) -> dict[str, Any]:
        """For `why`: the names in `rule` and what they stand for; by default the fields."""
        return dict(vars(self))

    def __and__(self, other: Any) -> Mask:
        from maskattn.masks.algebra import conjunction

        _refuse_array(other)
        return conjunction(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Any) -> Mask:
        from maskattn.masks.algebra import disjunction

        _refuse_array(other)
        return disjunction(self, other) if isinstance(other, Mask) else NotImplemented

    #: NumPy leaves `array & mask` to the mask, which refuses it by name
    __array_ufunc__ = None

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Mask:
        from maskattn.masks.algebra import complement

        return complement(self)

    def __bool__(self) -> bool:
        raise TypeError(f"{type(self).__name__} has no truth value: combine masks with & | ~, not with and, or, not")


def require_mask(where: str, mask: Any) -> None:
    """A TypeError that names the argument where it is no mask."""
    if not isinstance(mask, Mask):
        raise TypeError(f"{where}: mask must be a Mask, got {describe(mask)}")


def _refuse_array(other: Any) -> None:
    if hasattr(other, "shape") and hasattr(other, "dtype"):
        raise TypeError(
            "an array does not combine with a mask: wrap it first, as masks.Dense(array), True = may attend"
        )


def _full_allowed(method: Callable[..., Array]) -> Callable[..., Array]:
    """`allowed` with its result broadcast to the shape of all indices together."""

    @functools.wraps(method)
    def allowed(self: Mask, b: Array, h: Array, q: Array, k: Array) -> Array:
        return fill(method(self, b, h, q, k), b, h, q, k)

    return allowed


def _full_tile(method: Callable[..., Any]) -> Callable[..., Any]:
    """`tile` with both results broadcast to the shape of all indices together."""

    @functools.wraps(method)
    def tile(self: Mask, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        indices = (b, h, q_lo, q_hi, k_lo, k_hi)
        some, every = method(self, *indices)
        return fill(some, *indices), fill(every, *indices)

    return tile


def restrict(mask: Any, b: Array, h: Array, q: Array, k: Array) -> tuple[Array, ...]:
    """The indices, 0 in place of those that the mask does not read: its result then stays small."""
    depends = mask.depends
    return (
        b if "b" in depends else 0,
        h if "h" in depends else 0,
        q if "q" in depends else 0,
        k if "k" in depends else 0,
    )


def grid(depends: frozenset[str], shape: tuple[int, ...], arange: Callable[[int], Array]) -> list[Array]:
    """Index arrays of rank 4 for every entry of [batch, heads, q_len, kv_len]; size 1 on axes not read."""
    return [
        arange(size if name in depends else 1).reshape([-1 if i == axis else 1 for i in range(4)])
        for axis, (name, size) in enumerate(zip("bhqk", shape, strict=True))
    ]


def merge_sizes(masks: tuple[Any, ...]) -> dict[str, int]:
    """What all the masks fix together.

    Raises:
        ValueError: two of them disagree.
    """
    merged: dict[str, int] = {}
    owners: dict[str, Any] = {}
    for mask in masks:
        for axis, size in mask.sizes().items():
            if axis == "batch_multiple":
                merged[axis] = math.lcm(merged.get(axis, 1), size)
            elif axis in merged and merged[axis] != size:
                raise ValueError(f"{axis} is {merged[axis]} in {owners[axis]!r} but {size} in {mask!r}")
            else:
                merged[axis], owners[axis] = size, mask
    return merged


def draw(mask: Mask, q_len: int, kv_len: int, batch: int = 0, head: int = 0) -> str:
    """The mask as text, a line per query: "#" may attend, "-" may not.

    Raises:
        TypeError: this is no mask. ValueError: a size conflicts with the data, or there is no such batch row or head.
    """
    require_mask("draw", mask)
    rows = mask.dense(q_len, kv_len)
    for name, index, count in (("batch", batch, rows.shape[0]), ("head", head, rows.shape[1])):
        if not 0 <= index < count and name[0] in mask.depends:
            raise ValueError(f"draw: {name} must be less than {count}, got {index}")
    rows = rows[batch if "b" in mask.depends else 0, head if "h" in mask.depends else 0]
    return "\n".join("".join("-#"[int(allowed)] for allowed in row) for row in rows)
