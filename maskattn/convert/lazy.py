"""Arrays that are described but not read: what a plan is made of.

A `Lazy` has a shape and a dtype, and remembers which tensors of a checkpoint it is made from and by which operations.
Layouts run on it as they run on NumPy arrays, so that one piece of code plans a conversion and carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskattn._contiguous import fill
from maskattn.checkpoints import SHARED
from maskattn.typing import NumPyArray as Array, NumPyDType

Read = Callable[[str], Array]
"""Gives a tensor of the source by its name."""


class NeedsNumbers(TypeError):
    """An operation looks at the numbers of an array that has none yet."""


class Lazy:
    """An array to be: `evaluate(read)` makes it. `sources` are the names it reads, `operations` what is done to them.

    Operations are recorded, not performed: reshape, transpose, slices, and any NumPy function or ufunc. `parts`: what
    it was stacked of, one after the other, where no two of them read the same tensor.
    """

    __slots__ = ("_make", "_reversed", "dtype", "operations", "parts", "shape", "sources")

    def __init__(
        self,
        shape: Sequence[int],
        dtype: NumPyDType,
        sources: tuple[str, ...],
        operations: tuple[str, ...],
        make: Callable[[Read], Any],
        parts: tuple[Lazy, ...] = (),
    ) -> None:
        self.parts = parts
        self.shape, self.dtype = tuple(int(size) for size in shape), np.dtype(dtype)
        self.sources, self.operations, self._make = sources, operations, make
        self._reversed: Lazy | None = None

    @classmethod
    def read(cls, name: str, shape: Sequence[int], dtype: NumPyDType) -> Lazy:
        """The tensor called ``name``."""
        return cls(shape, dtype, (name,), (), lambda read: read(name))

    def evaluate(self, read: Read) -> Array:
        """The array, often a view of what ``read`` gives; ValueError where it has not the planned shape and dtype."""
        array = np.asarray(self._make(read))
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"{', '.join(self.sources)}: planned {list(self.shape)} {self.dtype}, "
                f"got {list(array.shape)} {array.dtype}"
            )
        return array

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def T(self) -> Lazy:
        """All axes reversed; twice is the array itself."""
        if self._reversed is None:
            self._reversed = self.transpose()
            self._reversed._reversed = self
        return self._reversed

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: Any, **options: Any) -> Lazy:
        """As NumPy's; a view stays a view where it can."""
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return self._then(lambda array: array.reshape(sizes, **options), "reshape")

    def transpose(self, *axes: Any) -> Lazy:
        """As NumPy's."""
        return self._then(lambda array: array.transpose(*axes), "transpose")

    def swapaxes(self, one: int, two: int) -> Lazy:
        """As NumPy's."""
        return self._then(lambda array: array.swapaxes(one, two), "transpose")

    def astype(self, dtype: Any, **options: Any) -> Lazy:
        """As NumPy's."""
        return self.changed(lambda array: array.astype(dtype, **options), f"cast to {np.dtype(dtype)}", dtype)

    def changed(self, function: Callable[[Array], Array], what: str, dtype: Any) -> Lazy:
        """``function`` of the array, which may look at its numbers: one of this shape, and of ``dtype``."""
        make, operations = self._make, (*self.operations, what)
        return Lazy(self.shape, dtype, self.sources, operations, lambda read: function(make(read)), self.parts)

    def __getitem__(self, index: Any) -> Lazy:
        if isinstance(index, slice) and self.ndim and index.indices(len(self)) == (0, len(self), 1):
            return self
        return self._then(lambda array: array[index], f"take {_show(index)}")

    def __array__(self, *args: object, **kwargs: object) -> Array:
        raise NeedsNumbers("a planned array has no numbers yet: only operations that need none can be planned")

    __bool__ = __float__ = __array__

    def __getattr__(self, name: str) -> Any:
        if hasattr(np.ndarray, name) and not name.startswith("_"):
            raise NeedsNumbers(f"a planned array has no numbers yet, and {name!r} is not among what can be planned")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.shape:
            return self.shape
        if function is np.split:
            return _split(*args, **kwargs)
        if function is np.ascontiguousarray:
            return args[0]
        return combine(function, args, kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        return combine(getattr(ufunc, method), args, kwargs, ufunc.__name__)

    def __mul__(self, other: object) -> Lazy:
        return combine(np.multiply, (self, other), {})

    def __truediv__(self, other: object) -> Lazy:
        return combine(np.true_divide, (self, other), {})

    __rmul__ = __mul__

    def _then(self, function: Callable[[Array], Array], what: str) -> Lazy:
        outline, operations, make = function(_outline(self)), self.operations, self._make
        if not (what in ("reshape", "transpose") and operations[-1:] == (what,)):
            operations = (*operations, what)
        return Lazy(
            outline.shape, outline.dtype, self.sources, operations, lambda read: function(make(read)), self.parts
        )


def combine(function: Callable[..., Any], args: object, kwargs: object, name: str | None = None) -> Lazy:
    """``function`` of arguments among which are lazy arrays, in lists too."""
    parts: list[Lazy] = []
    _visit((args, kwargs), parts.append)
    shape, dtype = _result(function, args, kwargs, parts)
    operations: list[str] = []
    for part in parts:
        operations += [what for what in part.operations if what not in operations]
    what = "transpose" if function is np.moveaxis else name or function.__name__
    if not (what == "transpose" and operations[-1:] == [what]):
        operations.append(f"{what} {len(parts)}" if len(parts) > 1 else what)
    sources = tuple(dict.fromkeys(name for part in parts for name in part.sources))

    def make(read: Read) -> Any:
        given, named = _map((args, kwargs), lambda part: part._make(read))
        return function(*given, **named)

    return Lazy(shape, dtype, sources, tuple(operations), make)


def constant(array: Array) -> Lazy:
    """An array that no tensor of the source has a part in."""
    return Lazy(array.shape, array.dtype, (), ("computed",), lambda read: array)


def stack(parts: Sequence[Lazy], axis: int) -> Lazy:
    """One array with a new axis; filled part by part, so that no more than one part need be held beside it."""
    shape = (*parts[0].shape[:axis], len(parts), *parts[0].shape[axis:])

    def make(read: Read) -> Array:
        out = SHARED.empty(shape, parts[0].dtype)
        for i, part in enumerate(parts):
            fill(np.moveaxis(out, axis, 0)[i], part.evaluate(_once(read)))
        return out

    operations = (*parts[0].operations, f"stack {len(parts)} on axis {axis}")
    sources = tuple(dict.fromkeys(name for part in parts for name in part.sources))
    apart = len(sources) == sum(len(part.sources) for part in parts)
    return Lazy(shape, parts[0].dtype, sources, operations, make, tuple(parts) if apart else ())


def _once(read: Read) -> Read:
    """``read`` that holds what it has read, for as long as it is held itself."""
    held: dict[str, Array] = {}

    def first(name: str) -> Array:
        if name not in held:
            held[name] = read(name)
        return held[name]

    return first


def _outline(lazy: Lazy) -> Array:
    return np.broadcast_to(np.zeros((), lazy.dtype), lazy.shape)


def _result(function: Any, args: Any, kwargs: Any, parts: list[Lazy]) -> tuple[tuple[int, ...], NumPyDType]:
    if function is np.concatenate:  # the one common function whose result would take memory
        arrays, axis = list(args[0]), kwargs.get("axis", args[1] if len(args) > 1 else 0) % parts[0].ndim
        rest = {(array.shape[:axis], array.shape[axis + 1 :]) for array in arrays}
        if len(rest) > 1:
            raise ValueError(f"arrays of shapes {[list(array.shape) for array in arrays]} cannot be joined")
        total = sum(array.shape[axis] for array in arrays)
        shape = (*parts[0].shape[:axis], total, *parts[0].shape[axis + 1 :])
        return shape, np.result_type(*(array.dtype for array in arrays))
    given, named = _map((args, kwargs), _outline)
    result = function(*given, **named)
    if not isinstance(result, np.ndarray):
        raise NeedsNumbers(f"{function.__name__} cannot be planned: it does not give one array")
    return result.shape, result.dtype


def _split(array: Lazy, where: Any, axis: int = 0) -> list[Lazy]:
    size = array.shape[axis]
    if isinstance(where, int):
        if size % where:
            raise ValueError(f"axis {axis} of shape {list(array.shape)} cannot be split into {where} equal parts")
        where = range(size // where, size, size // where)
    bounds = [0, *(int(at) for at in where), size]
    before = (slice(None),) * axis
    return [array[(*before, slice(start, end))] for start, end in zip(bounds[:-1], bounds[1:], strict=True)]


def _visit(value: object, see: Callable[[Lazy], None]) -> None:
    if isinstance(value, Lazy):
        see(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _visit(item, see)
    elif isinstance(value, dict):
        for item in value.values():
            _visit(item, see)


def _map(value: object, change: Callable[[Lazy], Any]) -> Any:
    if isinstance(value, Lazy):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    return value


def _show(index: object) -> str:
    parts = index if isinstance(index, tuple) else (index,)
    return "[" + ", ".join(_show_one(part) for part in parts) + "]"


def _show_one(part: object) -> str:
    if isinstance(part, slice):
        ends = ("" if end is None else str(end) for end in (part.start, part.stop))
        return ":".join(ends)
    return "..." if part is Ellipsis else str(part)
