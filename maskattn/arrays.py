"""Arrays of PyTorch and JAX as NumPy's, and back, bit for bit: bfloat16, which NumPy has not, is that of ml_dtypes.

No framework is imported here: whoever has a tensor of PyTorch has imported PyTorch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from maskattn.typing import Array, NumPyArray, NumPyDType

T = TypeVar("T")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def dtype_named(name: DTypeLike) -> NumPyDType:
    """The NumPy dtype of this name, or of this type; those of ml_dtypes too."""
    return np.dtype(getattr(ml_dtypes, str(name), name))


def dtype_name(array: Array) -> str:
    """The dtype's name without its framework: "bool", "int32", "bfloat16"."""
    return str(array.dtype).removeprefix("torch.")


def to_numpy(array: object) -> NumPyArray:
    """The array in NumPy, on the CPU a view of its memory; fails for traced arrays, each framework in its own words."""
    if not hasattr(array, "detach"):
        return np.asarray(array)
    tensor = array.detach().cpu()
    extended = getattr(ml_dtypes, str(tensor.dtype).removeprefix("torch."), None)
    if extended is None:
        return np.asarray(tensor)
    torch = sys.modules["torch"]
    bits = torch.int16 if tensor.element_size() == 2 else torch.uint8
    return np.asarray(tensor.view(bits)).view(extended)


def is_compiling() -> bool:
    """Whether PyTorch's compiler reads along."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def constant(function: Callable[..., T]) -> Callable[..., T]:
    """A function of ints that PyTorch's compiler calls and does not follow, as it would NumPy and `lru_cache`.

    As `torch.compiler.assume_constant_result` marks functions; no framework is imported here.
    """

    @functools.wraps(function)
    def called(*numbers: Any) -> T:
        return function(*numbers)

    setattr(called, "_dynamo_marked_constant", True)  # noqa: B010
    return called


def is_int(value: object) -> bool:
    """Whether this is a Python int, or one that PyTorch's compiler leaves open."""
    return isinstance(value, int) or is_open(value)


def is_open(value: object) -> bool:
    """Whether this is an int that PyTorch leaves open, outside of code that its compiler reads: there it is an int."""
    return type(value).__name__ == "SymInt"


def peek(array: object) -> NumPyArray | None:
    """The array in NumPy where its values can be read now, else None (traced, batched by vmap, being compiled)."""
    if isinstance(array, np.ndarray):
        return array
    if is_compiling() or _is_traced(array):
        return None
    try:
        return to_numpy(array)
    except Exception:  # every framework refuses with exceptions of its own
        return None


def _is_traced(array: object) -> bool:
    """Whether JAX traces this array. (Asking for its values says so too, after milliseconds.)"""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


def to_torch(array: NumPyArray, device: Any = None) -> Any:
    """The array as a tensor, on the CPU a view of its memory."""
    torch = sys.modules["torch"]
    if array.dtype == BFLOAT16:
        return torch.as_tensor(array.view(np.int16), device=device).view(torch.bfloat16)
    return torch.as_tensor(array, device=device)


def how_many_up_to(rising: Any, length: int) -> Any:
    """For each of 0, 1, ..., length - 1: how many entries of an int array [N] that does not decrease are no larger.

    [length], in the array's framework, which may be tracing.
    """
    if isinstance(rising, np.ndarray):
        return np.searchsorted(rising, np.arange(length), side="right")
    if not hasattr(rising, "detach"):
        return sys.modules["jax"].numpy.searchsorted(rising.astype(int), np.arange(length), side="right")
    rising = rising.long()  # `searchsorted` warns under vmap
    counts = rising.new_zeros(length + 1).scatter_add(0, rising.clamp(0, length), rising.new_ones(rising.shape))
    return counts.cumsum(0)[:length]
