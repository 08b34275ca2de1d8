"""The words of every signature: arrays, and the options that are a choice of words.

Shapes are written with jaxtyping, `query: Float[Array, "B L H D"]`, in one vocabulary of axes:

B batch · L query length · S key/value length · H heads · K key/value heads, head h reading h // (H // K) ·
D head_dim · Dv value head_dim · E embed_dim · C classes or channels · N tokens or patches ·
`#B` an axis of size B or 1 · `*shape` any axes

The twins import jaxtyping, so `typing.get_type_hints` reads their signatures. Here it is imported by type checkers and
editors alone, since it takes as long to load as all masks do; `hints` reads the signatures of both:

    >>> from maskattn import masks
    >>> hints(masks.Causal.end_aligned)["q_len"]
    <class 'int'>

The options below are what is checked at run time, too: their values stand here and nowhere else.
"""

from __future__ import annotations

import importlib
import sys
import typing
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

__all__ = [
    "Array",
    "EmptyRows",
    "KernelName",
    "NumPyArray",
    "NumPyDType",
    "Precision",
    "Reduction",
    "SharedAxis",
    "Traced",
    "Width",
    "hints",
]

NumPyArray: TypeAlias = np.ndarray[Any, Any]
"""An array of NumPy, of any shape and dtype."""

Traced: TypeAlias = Any
"""An array of whichever framework runs, in formulas that are written once: masks, biases, corruption, exact arithmetic.

They take NumPy, PyTorch, JAX (also traced) and ints for arrays, by methods that no one type has."""

NumPyDType: TypeAlias = np.dtype[Any]
"""A dtype of NumPy, or of ml_dtypes."""

KernelName: TypeAlias = Literal["auto", "reference", "exact", "blockwise", "fused"]
"""Which kernel runs a call; "auto" chooses."""

EmptyRows: TypeAlias = Literal["zero", "mean", "nan", "error"]
"""What a row gives that may attend to nothing."""

Precision: TypeAlias = Literal["default", "high", "highest"]
"""Of the float32 products on devices that have several."""

SharedAxis: TypeAlias = Literal["batch", "heads"]
"""An axis whose entries share one draw of dropout."""

Reduction: TypeAlias = Literal["mean", "sum", "none"]
"""What a loss makes of its terms."""


Width: TypeAlias = Literal[8, 16, 32, 64]
"""Bits of a random integer."""


class Array(Protocol):
    """An array of NumPy, JAX (also traced) or PyTorch: what the arithmetic of masks and biases needs of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> Any: ...
    def reshape(self, shape: Any, /) -> Array: ...
    def __getitem__(self, index: Any, /) -> Array: ...
    def __eq__(self, other: Any, /) -> Array: ...  # type: ignore[override]
    def __ne__(self, other: Any, /) -> Array: ...  # type: ignore[override]
    def __lt__(self, other: Any, /) -> Array: ...
    def __le__(self, other: Any, /) -> Array: ...
    def __gt__(self, other: Any, /) -> Array: ...
    def __ge__(self, other: Any, /) -> Array: ...
    def __add__(self, other: Any, /) -> Array: ...
    def __radd__(self, other: Any, /) -> Array: ...
    def __sub__(self, other: Any, /) -> Array: ...
    def __rsub__(self, other: Any, /) -> Array: ...
    def __mul__(self, other: Any, /) -> Array: ...
    def __rmul__(self, other: Any, /) -> Array: ...
    def __mod__(self, other: Any, /) -> Array: ...
    def __floordiv__(self, other: Any, /) -> Array: ...
    def __and__(self, other: Any, /) -> Array: ...
    def __or__(self, other: Any, /) -> Array: ...
    def __xor__(self, other: Any, /) -> Array: ...
    def __lshift__(self, other: Any, /) -> Array: ...
    def __rshift__(self, other: Any, /) -> Array: ...
    def __invert__(self) -> Array: ...
    def __neg__(self) -> Array: ...
    def __abs__(self) -> Array: ...


def hints(function: Callable[..., object]) -> dict[str, object]:
    """`typing.get_type_hints` of a function of this library, with jaxtyping's shapes where it has them."""
    module = vars(sys.modules[function.__module__])
    jaxtyping = importlib.import_module("jaxtyping")
    shaped = {
        name: getattr(jaxtyping, name)
        for name in ("Bool", "Float", "Int", "Integer", "Num", "Shaped", "UInt", "UInt32")
    }
    return typing.get_type_hints(function, module, {**shaped, "Array": Array, **module}, include_extras=True)
