"""What masks and biases share: frozen dataclasses whose fields are static values, data arrays or further masks.

Everything that depends on the kind of a field is derived here, once: equality, hashing, printing, binding the arrays to
a framework (`map_data`) and flattening into a pytree (`flatten`, `unflatten`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from maskattn._declared import Declared, Kind as Kind, data as data, part as part
from maskattn.arrays import dtype_name as dtype_name, is_open, peek as peek, to_numpy as to_numpy
from maskattn.typing import Traced as Array

Key = tuple[str, int | None]  # a field, and the place in it where it holds a tuple
Structure = tuple[tuple[Key, ...], tuple[tuple[str, Any], ...]]  # where each leaf stands, and the other fields

_NO_ARRAY = (int, type(None))
_SUBCLASSES: list[type[Spec]] = []
_LISTENERS: list[Callable[[type[Spec]], None]] = []


def on_subclass(callback: Callable[[type[Spec]], None]) -> None:
    """Call `callback`, once, with every class of mask and bias: those that exist now, and later ones when defined."""
    if callback in _LISTENERS:
        return
    for cls in _SUBCLASSES:
        callback(cls)
    _LISTENERS.append(callback)


class Spec(Declared):
    """Base of `Mask` and `Bias`. A subclass is `@declared`, or a `@dataclass(frozen=True)`."""

    _data: ClassVar[tuple[str, ...]] = ()
    _masks: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls._data = tuple(name for name, kind in cls._kinds.items() if kind.role == "data")
        cls._masks = tuple(name for name, kind in cls._kinds.items() if kind.role == "part")
        # dataclass() generates these three unless the class has them; arrays need the versions below.
        for name in ("__eq__", "__hash__", "__repr__"):
            if name not in vars(cls):
                setattr(cls, name, getattr(cls, name))
        _SUBCLASSES.append(cls)
        for callback in _LISTENERS:
            callback(cls)

    def data_fields(self) -> tuple[str, ...]:
        """Names of the fields that hold an array in this object (a data field may also hold None or an int)."""
        # After unflattening a leaf can be anything, so the names are then those of the object that was flattened.
        if "_leaves" in self.__dict__:
            return self.__dict__["_leaves"]
        held = [(name, getattr(self, name)) for name in self._data]
        return tuple([name for name, value in held if not isinstance(value, _NO_ARRAY) and not is_open(value)])

    def _parts(self) -> list[tuple[Key, Any]]:
        """The masks this one is made of, each with the field it is in, and its place where that is a tuple."""
        keyed: list[tuple[Key, Any]] = []
        for name in self._masks:
            value = getattr(self, name)
            if isinstance(value, tuple):
                keyed += [((name, place), mask) for place, mask in enumerate(value)]
            else:
                keyed.append(((name, None), value))
        return keyed

    def children(self) -> tuple[Any, ...]:
        """The masks this one is made of."""
        return tuple([mask for _, mask in self._parts()])

    def with_children(self, children: Sequence[Spec]) -> Self:
        """The same but for its masks; nothing is validated."""
        leaves, structure = self.flatten()
        return type(self).unflatten(structure, [*leaves[: len(leaves) - len(children)], *children])

    def map_data(self, function: Callable[[Array], object]) -> Self:
        """The same expression with `function` applied to every array in it; nothing is validated."""
        if not self._data and not self._masks:
            return self
        if not self._masks:
            made, changed = [], False
            for name in self.data_fields():
                array = getattr(self, name)
                made.append(function(array))
                # types too: to PyTorch's compiler a tensor may be the NumPy array that it was made of
                changed = changed or type(made[-1]) is not type(array) or made[-1] is not array
            return type(self).unflatten(self.flatten()[1], made) if changed else self
        leaves, structure = self.flatten()
        mapped = [leaf.map_data(function) if isinstance(leaf, Spec) else function(leaf) for leaf in leaves]
        same = all([type(new) is type(leaf) and new is leaf for new, leaf in zip(mapped, leaves, strict=True)])
        return self if same else type(self).unflatten(structure, mapped)

    def flatten(self) -> tuple[list[Any], Structure]:
        """(leaves, structure). Leaves are this object's arrays, then its masks; the structure, which is hashable, says
        where each stands, and what the other fields hold."""
        keyed: list[tuple[Key, Any]] = [((name, None), getattr(self, name)) for name in self.data_fields()]
        keyed += self._parts()
        taken = {name for (name, _), _ in keyed}
        names = [field.name for field in dataclasses.fields(self) if field.name not in taken]
        rest = tuple([(name, getattr(self, name)) for name in names])
        return [leaf for _, leaf in keyed], (tuple([key for key, _ in keyed]), rest)

    @classmethod
    def unflatten(cls, structure: Structure, leaves: Iterable[object]) -> Self:
        """The inverse of `flatten`. It never validates: frameworks put placeholders where arrays were."""
        keys, rest = structure
        values = dict(rest)
        for (name, place), leaf in zip(keys, leaves, strict=True):
            values[name] = leaf if place is None else (*values.get(name, ()), leaf)
        new = object.__new__(cls)
        new._set(**values, _leaves=tuple([name for name, _ in keys if name in cls._data]))
        return new

    def __eq__(self, other: object) -> bool:
        """Same class, same static fields, and data equal in dtype, shape and bytes (traced data: the same object)."""
        if self is other:
            return True
        if type(self) is not type(other):
            return False
        mine, structure = self.flatten()
        theirs, other_structure = other.flatten()
        return structure == other_structure and all(
            a == b if isinstance(a, Spec) else same_array(a, b) for a, b in zip(mine, theirs, strict=True)
        )

    def __hash__(self) -> int:
        names = self.data_fields()
        if names:
            raise TypeError(
                f"{type(self).__name__} cannot be hashed: it holds data in {', '.join(names)}; only a mask without "
                "data is hashable"
            )
        parts, structure = self.flatten()
        return hash((type(self), structure, tuple(parts)))

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            usual = hasattr(type(self), name)  # a default, which PyTorch's compiler can read here, not of the field
            if not field.init or (usual and value is getattr(type(self), name)):
                continue
            shown.append(f"{name}={literal(value)}" if usual else literal(value))
        return f"{type(self).__name__}({', '.join(shown)})"


#: Arrays of more entries are printed as their dtype and shape.
LITERAL_ENTRIES = 32


def literal(value: Any) -> str:
    """A field's value as `repr` shows it, in the words that `masks.parse` reads back.

    Small NumPy arrays of bools and integers are nested lists, with their dtype where a list would not give it: [1, 3],
    int32([1, 3]). Others, and arrays of a framework (which may be on a device, or traced), are dtype and shape alone:
    int64[2, 1000].
    """
    if not hasattr(value, "dtype"):
        return repr(value)
    size = 1
    for length in value.shape:
        size *= length
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biu" or not 0 < size <= LITERAL_ENTRIES:
        return f"{dtype_name(value)}{list(value.shape)}"
    listed = repr(value.tolist())
    return listed if value.ndim and value.dtype in (np.bool_, np.int64) else f"{dtype_name(value)}({listed})"


def same_array(one: Array, other: Array) -> bool:
    """The same object, or equal dtype, shape and bytes."""
    if one is other:
        return True
    if tuple(one.shape) != tuple(other.shape) or dtype_name(one) != dtype_name(other):
        return False
    first, second = peek(one), peek(other)
    return first is not None and second is not None and first.tobytes() == second.tobytes()


def broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether an array of a shape broadcasts to another, without making it larger."""
    if len(shape) > len(full):
        return False
    for n, m in zip(shape, full[len(full) - len(shape) :], strict=True):
        if n != 1 and n != m:
            return False
    return True
