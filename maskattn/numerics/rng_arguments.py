"""The argument checks of random numbers, written once for `maskattn.rng` and the twins'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from maskattn._problems import Problems, show
from maskattn.arrays import is_int
from maskattn.typing import NumPyArray as Array, NumPyDType, Width

_FLOATS = ("float32", "float64", "float16", "bfloat16")
_WORD = 0xFFFFFFFF
#: The dtypes of JAX's typed keys that are taken, by the names of their implementations.
_KEYS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


def check_numbers(data: ArrayLike) -> Array:
    """What `fold_in` takes, checked: uint32."""
    numbers = np.asarray(data)
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"data: expected integers in [0, 2**32), got dtype {numbers.dtype}")
    if numbers.size:
        check_data(int(numbers.min()), int(numbers.max()))
    return numbers.astype(np.uint32)


def check_data(least: int, most: int) -> None:
    """Raise a ValueError unless both are in [0, 2**32)."""
    if not 0 <= least <= most <= _WORD:
        raise ValueError(f"data: expected integers in [0, 2**32), got {least} to {most}")


def check_width(width: object) -> None:
    """Raise a ValueError unless words of `width` bits can be drawn."""
    if width not in get_args(Width):
        raise ValueError(f"width: expected 8, 16, 32 or 64, got {width!r}")


def check_part(shape: int | Sequence[int], start: int) -> tuple[tuple[int, ...], int]:
    """A shape and the place of its first element, checked: no element is beyond 2**63."""
    dims, low = check_shape("shape", shape), check_integer("start", start)
    if not 0 <= low <= 2**63 - math.prod(dims):
        raise ValueError(f"start: expected a place from 0 with all of shape {dims} below 2**63, got {low}")
    return dims, low


def check_axis(axis: int, ndim: int) -> int:
    """An axis of an array of `ndim` axes, counted from the first."""
    number = check_integer("axis", axis)
    if not -ndim <= number < ndim:
        raise ValueError(f"axis: expected one of {ndim} axes, got {number}")
    return number % ndim


def check_bounds(dtype: NumPyDType, minval: float, maxval: float) -> tuple[Array, Array]:
    """The bounds of `uniform`, checked: minval and maxval - minval in `dtype`."""
    if dtype.name not in _FLOATS:
        raise TypeError(f"dtype: expected float32, float64, float16 or bfloat16, got {dtype}")
    if not (math.isfinite(minval) and math.isfinite(maxval) and minval <= maxval):
        raise ValueError(f"minval, maxval: expected finite numbers, minval <= maxval, got {minval!r} and {maxval!r}")
    # XLA narrows to 16 bits by way of float32, as JAX does with x64 off.
    wide = np.float64 if dtype == np.float64 else np.float32
    with np.errstate(over="ignore"):
        low, high = np.asarray(wide(minval), dtype), np.asarray(wide(maxval), dtype)
        span = np.asarray(high - low, dtype)
    if not np.isfinite(span):
        raise ValueError(f"minval, maxval: expected maxval - minval finite in {dtype}, got {minval!r} and {maxval!r}")
    return low, span


def check_integer(name: str, value: object) -> int:
    """A Python int, or a TypeError."""
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    return int(value.__index__())


def check_shape(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    """A shape, or a length taken for a shape of one axis, checked."""
    sizes = shape if isinstance(shape, Sequence) else (shape,)
    dims = tuple(check_integer(name, size) for size in sizes)
    if any(size < 0 for size in dims):
        raise ValueError(f"{name}: expected sizes of at least 0, got {dims}")
    return dims


def check_key(problems: Problems, name: str, key: Any) -> None:
    """Note what is wrong with a key of random numbers: a seed, two uint32 words (four of rbg), or a `jax.random.key`.

    Of a seed in an array of a framework the value is not read.
    """
    wanted = f"{name} must be a seed in [0, 2**31) or two uint32 words"
    shape: tuple[int, ...] = ()
    dtype = ""
    if not is_int(key):
        shape, dtype = getattr(key, "shape", ()), str(getattr(key, "dtype", "")).removeprefix("torch.")
    if dtype.startswith("key<"):
        if dtype not in _KEYS or shape != ():
            problems.value(f"{name} must be one key of threefry2x32, rbg or unsafe_rbg, got {dtype}{list(shape)}")
    elif dtype == "uint32" and shape:
        if tuple(shape) not in ((2,), (4,)):
            problems.value(f"{wanted}, got shape {tuple(shape)}")
    elif dtype.startswith(("int", "uint")) and shape == () and not isinstance(key, (np.generic, np.ndarray)):
        return
    elif shape or isinstance(key, bool) or not (is_int(key) or dtype.startswith(("int", "uint"))):
        problems.type(f"{wanted}, got {f'{dtype}{list(shape)}' if dtype else show(key)}")
    elif not 0 <= key < 2**31:
        problems.value(f"{wanted}, got {key}")
