"""What a kernel reads besides queries, keys and values: the data of mask and bias, dropout's key, sinks, the origin.

A kernel may not hold arrays of its own, so these are operands: flat, in the GPU's memory. Inside the kernel each array
of a mask or bias is a `Loaded`, which is read at the indices that a formula asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import triton as plt

from maskattn.biases import Bias
from maskattn.masks import Mask
from maskattn_jax._partition import Origin
from maskattn_jax.dropout import Dropout
from maskattn_jax.kernels.blockwise.pallas.sides import Ref


class Given(NamedTuple):
    """What decides about a pair besides its query and key, as a pytree: whole on every device, but for the sinks."""

    mask: Mask | None
    bias: Bias | None
    dropout: Dropout[Array] | None
    sinks: Array | None
    origin: Origin


@dataclass(frozen=True)
class Structure:
    """How the operands of a `Given` are put together again inside a kernel; static."""

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    def loaded(self, refs: Sequence[Ref], zero: Array) -> Given:
        """The `Given` whose arrays are read from `refs`; scalars are read now. `zero`: an int32 0 of the kernel's."""
        each, leaves = iter(refs), []
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            ref = None if 0 in shape else next(each)
            leaf = Loaded(ref, shape, jnp.dtype(dtype), zero)
            leaves.append(leaf if shape else ref[zero])  # type: ignore[index]
        given: Given = jax.tree.unflatten(self.tree, leaves)
        if given.dropout is None:
            return given
        words = cast(Any, given.dropout.words)
        return given._replace(dropout=replace(given.dropout, words=cast(Array, (words[zero], words[zero + 1]))))


def operands(given: Given) -> tuple[list[Array], Structure]:
    """The arrays of a `Given` that are not empty, flat, and how they are put together again."""
    leaves, tree = jax.tree.flatten(given)
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    structure = Structure(tree, tuple(x.shape for x in arrays), tuple(str(x.dtype) for x in arrays))
    return [x.reshape(-1) for x in arrays if x.size], structure


class Loaded:
    """An array in memory that formulas of masks and biases read at index arrays.

    Of an array's interface it has what `maskattn._lookup` uses: `shape`, `dtype`, `astype`, axes of size 1 put in
    front, and an index for each axis.
    """

    def __init__(self, ref: Ref, shape: tuple[int, ...], stored: Any, zero: Any, dtype: Any = None) -> None:
        self.ref, self.shape, self.stored, self.zero = ref, shape, stored, zero
        self.dtype = jnp.dtype(stored if dtype is None else dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def astype(self, dtype: Any) -> Loaded:
        return Loaded(self.ref, self.shape, self.stored, self.zero, jax.dtypes.canonicalize_dtype(dtype))

    def reshape(self, *shape: Any) -> Loaded:
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        if [n for n in shape if n != 1] != [n for n in self.shape if n != 1]:
            raise NotImplementedError(f"a kernel reads arrays in their own order: {self.shape} as {shape}")
        return Loaded(self.ref, tuple(shape), self.stored, self.zero, self.dtype)

    def __getitem__(self, index: Any) -> Any:
        if index is None:
            return self.reshape((1, *self.shape))
        indices = index if isinstance(index, tuple) else (index,)
        if len(indices) != len(self.shape) or any(i is None or isinstance(i, slice) for i in indices):
            raise NotImplementedError(f"a kernel reads single entries: {index} of {self.shape}")
        flat: Any = self.zero  # a number of the kernel's: it reads at no constant
        for i, size in zip(indices, self.shape, strict=True):
            flat = flat * size + i
        return self.ref[jnp.asarray(flat, jnp.int32)].astype(self.dtype)

    def tile(self, indices: Sequence[Any], inside: Any) -> Any:
        """The entries at indices that broadcast to a tile's shape, as a block; an axis of size 1 serves every index.

        `inside`: where the indices lie in the array, or None for everywhere; elsewhere 0 is read.
        """
        flat: Any = self.zero
        for i, size in zip(indices, self.shape, strict=True):
            flat = flat * size + (0 if size == 1 else i)
        if inside is None or not jnp.ndim(flat):
            return self.ref[jnp.asarray(flat, jnp.int32)].astype(self.dtype)
        # only along the axes that are read
        axes = [axis for axis, size in enumerate(jnp.shape(flat)) if size == 1 != inside.shape[axis]]
        for axis in axes:
            inside = jnp.max(inside.astype(jnp.int32), axis=axis, keepdims=True) > 0
        return plt.load(self.ref.at[flat], mask=inside, other=jnp.zeros((), self.stored)).astype(self.dtype)

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("these values are on the device")
