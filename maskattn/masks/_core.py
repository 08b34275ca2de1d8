"""`Mask`, what `&`, `|` and `~` make of masks, and the two ways to walk an expression: `fold` and `rebuild`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

from maskattn._arithmetic import Bounds, negated
from maskattn._declared import declared, part
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array, on_subclass, to_numpy
from maskattn._pairs import AXES, Pairwise, filled, grid, restrict
from maskattn._problems import Problems, describe
from maskattn.masks._to_json import to_json
from maskattn.masks._why import explain
from maskattn.masks.rows import FAR, Rows

#: How `at` and `with_positions` are done, by name: said in positions.py, whose masks cannot come before `Mask`.
MOVES: dict[str, Callable[..., Mask]] = {}


class Mask(Pairwise):
    """What may attend to what. True = may attend.

    A mask is a `@dataclass(frozen=True)` subclass with an `allowed` method. Fields are static (ints, tuples: hashable,
    part of a compile key) unless declared with `data()` (arrays of NumPy, JAX or PyTorch) or `part()` (masks), which
    check them where they are told what to expect: `data("int", "[B]")`, `part(Mask)`. Masks combine with `&`, `|` and
    `~`, which is the plain complement.

    Attributes:
        relational: whether `allowed` compares positions rather than reads stored slots; only then does
            `with_positions` replace its positions.
        rule: the inequality, in words or symbols, for `why`.
    """

    relational: ClassVar[bool] = False
    rule: ClassVar[str] = ""

    def __init_subclass__(cls, **options: object) -> None:
        for name in ("allowed", "tile"):
            if name in vars(cls):
                setattr(cls, name, filled(vars(cls)[name]))
        if "allowed" in vars(cls) and "rows" not in vars(cls):
            cls.rows = Mask.rows  # type: ignore[method-assign]  # those of another `allowed` say nothing of this one
        super().__init_subclass__(**options)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        """Masks of this class that fit the sizes of `shape`, chosen with `draws`; [] where none does.

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

    @filled
    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        """Bounds for the tiles of queries q_lo..q_hi and keys k_lo..k_hi (inclusive; not empty) of row b and head h.

        Args:
            b, h, q_lo, q_hi, k_lo, k_hi: integer arrays that broadcast together, or ints.

        Returns:
            (some, every), bool, of the broadcast shape: `some` False means that no pair of the tile is allowed, `every`
            True that all are. Both may be loose, never wrong.
        """
        return True, False

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows | None:
        """What `allowed` says as one interval of keys for each query, of which a tag may choose some; None where it
        cannot be said so. A kernel that is compiled for this form serves every mask that has it.

        Args:
            b, h, q, k: integer arrays that broadcast together (or ints), as for `allowed`; `k` is read for tags only.
        """
        return None

    def on_grid(self, shape: tuple[int, ...], arange: Callable[[int], Array]) -> Array:
        """`allowed` for the whole of `shape` [batch, heads, q_len, kv_len], size 1 on axes that are not read: bool.

        `arange` makes index arrays of the framework that the data are of.
        """
        return self.allowed(*grid(self.depends, shape, arange))

    def settle(self, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None) -> dict[str, int]:
        """All four sizes: q_len, kv_len, and batch and heads, which not given are taken from the data (else 1).

        Raises:
            ValueError: a size is negative or conflicts with the data; every conflict is named.
        """
        fixed = self.sizes()
        problems = Problems(f"sizes of {type(self).__name__}")
        sizes = {
            "batch": fixed.get("batch", fixed.get("batch_multiple", 1)) if batch is None else batch,
            "heads": fixed.get("heads", 1) if heads is None else heads,
            "q_len": q_len,
            "kv_len": kv_len,
        }
        sizes = {axis: problems.integer(axis, size, minimum=0) for axis, size in sizes.items()}
        problems.raise_if_any()
        Problems(problems.where, self.conflicts(sizes)).raise_if_any()
        return sizes

    def dense(self, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None) -> np.ndarray:
        """The mask as a NumPy bool array [batch, heads, q_len, kv_len]. True = may attend.

        Raises:
            ValueError: a size conflicts with the data.
        """
        mask = self.map_data(to_numpy)
        sizes = mask.settle(q_len, kv_len, batch, heads)
        shape = tuple(sizes[axis] for axis in AXES)
        return np.array(np.broadcast_to(evaluate(mask, shape, np.arange), shape))

    def at(self, q_offset: Array = 0, k_offset: Array = 0) -> Mask:
        """The same mask where query 0 is position q_offset and key 0 is position k_offset (decoding, shards).

        Data masks (lengths, keep) index storage slots, which move too.

        `q_offset`, `k_offset`: ints or int arrays, [] or [B].
        """
        return MOVES["at"](self, q_offset, k_offset)

    def with_positions(self, q_pos: Array, k_pos: Array) -> Mask:
        """The same mask with a position given for each token: q_pos int [B, L], k_pos int [B, S].

        Only relational masks compare positions; data masks in the expression keep reading their slots.
        """
        return MOVES["with_positions"](self, q_pos, k_pos)

    def why(self, b: int, h: int, q: int, k: int) -> str:
        """In words: which parts of the expression allow or forbid query q of row b, head h, to attend to key k.

        Raises:
            ValueError: an index is negative, or there is no such row or head. TypeError: one is not an int.
        """
        problems = Problems("why")
        sizes = self.sizes()
        for name, index, axis in zip("bhqk", (b, h, q, k), AXES, strict=True):
            number = problems.integer(name, index, minimum=0)
            # beyond the data a position is forbidden, which is an answer; a row or head that is not there has none
            if name in "bh" and axis in sizes and isinstance(number, int) and number >= sizes[axis]:
                problems.value(f"{name} must be less than {axis} {sizes[axis]}, got {number}")
        problems.raise_if_any()
        return explain(self.map_data(to_numpy), b, h, q, k)

    def asks(self, b: int, h: int, q: int, k: int) -> list[tuple[Mask, tuple[int, int, int, int]]]:
        """For `why`: the masks that decide this pair, each with the (b, h, q, k) that it is asked about."""
        return [(child, (b, h, q, k)) for child in self.children()]

    def reads(self) -> dict[str, Any]:
        """For `why`: the names in `rule` and what they stand for; by default the fields."""
        return dict(vars(self))

    def to_json(self) -> str:
        """The expression as JSON text, data included, which `masks.from_json` reads.

        Raises:
            ValueError: data cannot be read (traced) or have a dtype other than bool and the integers, an integer does
                not fit in 64 bits, or a class has the name of one of the library's.
        """
        return to_json(self, library_classes())

    def __and__(self, other: object) -> Mask:
        _refuse_array(other)
        return conjunction(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: object) -> Mask:
        _refuse_array(other)
        return disjunction(self, other) if isinstance(other, Mask) else NotImplemented

    @property
    def ndim(self) -> int:
        """None: a mask has no axes until it is given sizes.

        Raises:
            AttributeError: always, with what to do where an array is asked for, as Flax's `combine_masks` asks.
        """
        raise AttributeError(
            f"{type(self).__name__} is a mask, which has no axes: where an array is asked for (Flax's combine_masks, "
            "and so decode=True), give it sizes: maskattn_jax.lower.to_dense(mask.at(step), 1, max_length)",
            name="ndim",
            obj=self,
        )

    #: NumPy leaves `array & mask` to the mask, which refuses it by name
    __array_ufunc__ = None

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Mask:
        return complement(self)

    def __bool__(self) -> bool:
        raise TypeError(f"{type(self).__name__} has no truth value: combine masks with & | ~, not with and, or, not")


_RECORDED: list[type] = []
on_subclass(_RECORDED.append)


def library_classes() -> dict[str, type[Mask]]:
    """The masks of this library by class name. A class defined elsewhere is never found through a text alone."""
    return {cls.__name__: cls for cls in _RECORDED if cls.__module__.startswith("maskattn.") and is_mask(cls)}


def is_mask(cls: type) -> bool:
    """Whether the class is one of masks, and not only their base."""
    return issubclass(cls, Mask) and "__dataclass_fields__" in vars(cls)


def check_mask(problems: Problems, mask: object) -> None:
    """Note an argument `mask` that is no mask."""
    if not isinstance(mask, Mask):
        problems.type(f"mask must be a Mask, got {describe(mask)}")


def require_mask(where: str, mask: object) -> None:
    """A TypeError that names the argument where it is no mask."""
    problems = Problems(where)
    check_mask(problems, mask)
    problems.raise_if_any()


def _refuse_array(other: object) -> None:
    if hasattr(other, "shape") and hasattr(other, "dtype"):
        raise TypeError(
            "an array does not combine with a mask: wrap it first, as masks.Dense(array), True = may attend"
        )


class _Combination(Mask):
    """What `&`, `|` and `~` have in common: pairs and tiles are those of the parts, combined likewise."""

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return fold(self, lambda mask: mask.allowed(*restrict(mask, b, h, q, k)))

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        some, every = fold(self, lambda mask: Bounds(*mask.tile(b, h, q_lo, q_hi, k_lo, k_hi)))
        return some, every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset().union(*[mask.depends for mask in self.children()])


@declared
class And(_Combination):
    """Allowed where every part allows; built by `&`. True = may attend.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Causal() & masks.KeyPadding([2]), 3, 3))
    #--
    ##-
    ##-
    >>> print(masks.draw(masks.Causal() & masks.Strided(2), 2, 4))
    #---
    -#--
    """

    parts: tuple[Mask, ...] = part(Mask, many=True, meaning="the masks that are combined")

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows | None:
        found: Rows | None = Rows()
        for each in self.parts:
            other = each.rows(*restrict(each, b, h, q, k))
            found = None if found is None or other is None else found.within(other)
        return found

    def __repr__(self) -> str:
        return " & ".join(f"({mask!r})" if isinstance(mask, Or) else repr(mask) for mask in self.parts)


@declared
class Or(_Combination):
    """Allowed where any part allows; built by `|`. True = may attend.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Strided(2) | masks.KeyPadding([1]), 3, 3))
    #--
    ##-
    #-#
    >>> print(masks.draw(masks.Causal() | masks.KeyPadding([3]), 2, 4))
    ###-
    ###-
    """

    parts: tuple[Mask, ...] = part(Mask, many=True, meaning="the masks that are combined")

    def __repr__(self) -> str:
        return " | ".join(f"({mask!r})" if isinstance(mask, And) else repr(mask) for mask in self.parts)


@declared
class Not(_Combination):
    """Allowed where its part forbids, built by `~`: the plain complement. True = may attend.

    Padding becomes allowed too.

    >>> from maskattn import masks
    >>> print(masks.draw(~masks.Causal(), 3, 3))
    -##
    --#
    ---
    >>> print(masks.draw(~masks.KeyPadding([3]), 2, 5))
    ---##
    ---##
    """

    part: Mask = part(Mask, meaning="the mask that is turned round")

    def __repr__(self) -> str:
        return f"~({self.part!r})" if isinstance(self.part, (And, Or)) else f"~{self.part!r}"


class _Constant(Mask):
    """The same for every pair."""

    value: ClassVar[bool]
    relational: ClassVar[bool] = True

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        return [cls()]

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        return self.value

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        return self.value, self.value

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows:
        return Rows(None, None if self.value else -FAR)

    @property
    def depends(self) -> frozenset[str]:
        return frozenset()


@declared
class Full(_Constant):
    """Everything: every query may attend to every key. True = may attend.

    Encoders without padding use it; it is what `mask=None` means, and the neutral element of `&`.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Full(), 3, 3))
    ###
    ###
    ###
    >>> print(masks.draw(masks.Full(), 2, 5))
    #####
    #####
    """

    value: ClassVar[bool] = True
    rule: ClassVar[str] = "everything"


@declared
class Empty(_Constant):
    """Nothing: no query may attend to any key. True = may attend.

    The neutral element of `|`; every row is empty, and follows `empty_rows`.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Empty(), 3, 3))
    ---
    ---
    ---
    >>> print(masks.draw(masks.Empty(), 2, 5))
    -----
    -----
    """

    value: ClassVar[bool] = False
    rule: ClassVar[str] = "nothing"


def conjunction(*masks: Mask) -> Mask:
    """`&` of the masks: nested ones flattened, duplicates and Full dropped, Empty where two parts are complements."""
    return _combined(And, masks, Full(), Empty())


def disjunction(*masks: Mask) -> Mask:
    """`|` of the masks: nested ones flattened, duplicates and Empty dropped, Full where two parts are complements."""
    return _combined(Or, masks, Empty(), Full())


def complement(mask: Mask) -> Mask:
    """`~` of the mask; twice is the mask itself."""
    if isinstance(mask, Not):
        return mask.part
    if isinstance(mask, Full):
        return Empty()
    return Full() if isinstance(mask, Empty) else Not(mask)


def _combined(kind: type[And] | type[Or], masks: Iterable[Mask], neutral: Mask, decisive: Mask) -> Mask:
    parts: list[Mask] = []
    for mask in masks:
        for entry in mask.children() if isinstance(mask, kind) else (mask,):
            if entry != neutral and entry not in parts:
                parts.append(entry)
    if decisive in parts or any(isinstance(mask, Not) and mask.part in parts for mask in parts):
        return decisive
    return neutral if not parts else parts[0] if len(parts) == 1 else kind(tuple(parts))


def fold(mask: Mask, leaf: Callable[[Mask], Any]) -> Any:
    """The value of an expression, from those of its parts: `&` and `|` of them, `~` its complement, as the mask says.

    Args:
        mask: True = may attend.
        leaf: the value of a mask that is none of the three (a mask moved by `at` among them): a bool, a bool array of
            any framework, a Mask, or whatever else has the three operators.

    >>> from maskattn import masks
    >>> masks.fold(masks.Causal() & ~masks.SlidingWindow(2), lambda mask: mask.allowed(0, 0, 5, 1))
    True
    """
    if isinstance(mask, And):
        return functools.reduce(operator.and_, [fold(part, leaf) for part in mask.parts])
    if isinstance(mask, Or):
        return functools.reduce(operator.or_, [fold(part, leaf) for part in mask.parts])
    return negated(fold(mask.part, leaf)) if isinstance(mask, Not) else leaf(mask)


def rebuild(mask: Mask, change: Callable[[Mask], Mask | None]) -> Mask:
    """The same expression with some of its masks replaced, `&`, `|` and `~` simplified as they are built.

    Args:
        mask: True = may attend, as in the result.
        change: what takes the place of a mask, or None to keep it and look at the masks that it is made of. Asked from
            the outside in.

    >>> from maskattn import masks
    >>> mask = masks.Causal() & ~masks.SlidingWindow(2).at(q_offset=4)
    >>> masks.rebuild(mask, lambda part: masks.SlidingWindow(1) if isinstance(part, masks.SlidingWindow) else None)
    Causal() & ~SlidingWindow(1).at(q_offset=4)
    """
    changed = change(mask)
    if changed is not None:
        return changed
    parts = [rebuild(child, change) for child in mask.children()]
    if isinstance(mask, And):
        return conjunction(*parts)
    if isinstance(mask, Or):
        return disjunction(*parts)
    return complement(*parts) if isinstance(mask, Not) else mask.with_children(parts)


def evaluate(mask: Mask, shape: tuple[int, ...], arange: Callable[[int], Array]) -> Array:
    """bool, rank 4, broadcastable to `shape` [batch, heads, q_len, kv_len], with sizes already settled: a whole mask as
    one array, each part on only the axes that it reads."""
    return fold(mask, lambda part: part.on_grid(shape, arange))
