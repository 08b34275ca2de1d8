"""Choices by arithmetic alone, for formulas that run anywhere.

A mask's formula is given ints, arrays of NumPy, JAX or PyTorch, and tracers: under jit, `torch.compile`, and inside
FlexAttention's `mask_mod`. No `where`, `zeros` or `clip` serves all of these, and `if` serves no tracer; comparison and
arithmetic do. The exact arithmetic of `numerics` has its tricks here too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from maskattn._fields import Array, dtype_name


def zero(*indices: Array) -> Array:
    """0 for all the indices together, in their framework and on their device: `zeros` would have to be told both."""
    result = indices[0] * 0
    for index in indices[1:]:
        result = result + index * 0
    return result


def never(*indices: Array) -> Array:
    """False for all the indices together: no function makes it in every framework, and False alone has no shape."""
    return zero(*indices) != 0


def negated(value: Any) -> Any:
    """The opposite of a bool, a bool array or an expression: `~` would turn a Python True into -2."""
    return value ^ True if isinstance(value, int) or hasattr(value, "dtype") else ~value


class Bounds(NamedTuple):
    """What `Mask.tile` says of tiles, as a value that combines as masks do.

    Attributes:
        some: whether some pair may attend; every: whether every pair may.
    """

    some: Any
    every: Any

    def __and__(self, other: Bounds) -> Bounds:
        return Bounds(self.some & other.some, self.every & other.every)

    def __or__(self, other: Bounds) -> Bounds:
        return Bounds(self.some | other.some, self.every | other.every)

    def __invert__(self) -> Bounds:
        return Bounds(negated(self.every), negated(self.some))


def as_int(flag: Array) -> Array:
    """1 for True and 0 for False: PyTorch does not subtract bools, and NumPy adds them by `or`."""
    return flag * 1


def choose(flag: Array, one: Array, other: Array) -> Array:
    """`one` where the flag is True, else `other`: `where` is another function in each framework, and none of ints."""
    return one * flag + other * negated(flag)


def constant(value: float, like: Array) -> Array:
    """A float array of one value, NaN where `like` is not finite: `full` would have to be told framework and device."""
    return like * 0.0 + value


def is_number(x: Array) -> Array:
    """Where a float is not NaN, which alone differs from itself: each framework has its own `isnan`."""
    return x == x


def minimum(one: Array, other: Array) -> Array:
    """The smaller, entry by entry: `min` asks a tracer for its value."""
    return one * (one <= other) + other * (other < one)


def maximum(one: Array, other: Array) -> Array:
    """The larger, entry by entry: `max` asks a tracer for its value."""
    return one * (one >= other) + other * (one < other)


def clip(index: Array, low: int, high: int) -> Array:
    """`index` brought into [low, high], where low may be beyond high: `clip` is a function of arrays only."""
    within = (index >= low) & (index <= high)
    return index * within + low * (index < low) + high * (index > high)


def fill(result: Array, *indices: Array) -> Array:
    """`result` broadcast to the shape of all the indices: `broadcast_to` is not traced everywhere, `&` and `*` are."""
    plain = not hasattr(result, "shape") and any(hasattr(index, "shape") for index in indices)
    if not plain and tuple(getattr(result, "shape", ())) == broadcast_shape(*indices):
        return result
    everywhere = zero(*indices) == 0
    boolean = isinstance(result, bool) or (hasattr(result, "dtype") and dtype_name(result) == "bool")
    return result & everywhere if boolean else result * everywhere


def broadcast_shape(*indices: Array) -> tuple[int, ...]:
    """The shape that the indices (arrays or ints) broadcast to."""
    shapes = [tuple(getattr(index, "shape", ())) for index in indices]
    rank = max(len(shape) for shape in shapes)
    result = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, start=rank - len(shape)):
            if size != 1:
                result[axis] = size
    return tuple(result)
