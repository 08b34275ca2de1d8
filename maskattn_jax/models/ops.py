"""The arithmetic of whole models on JAX's arrays: modules applied, and what is computed between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskattn.models import leaves
from maskattn_jax import dropout, rng
from maskattn_jax.functional import FRAMEWORK
from maskattn_jax.kernels.merging import merge
from maskattn_jax.layer import LAYER
from maskattn_jax.models.grouped import grouped
from maskattn_jax.types import Array, DType

__all__ = ["OPS", "Plain"]


class Plain:
    """See `maskattn.models.part.Ops`.

    Args:
        dtype: of the computation; None: that of the parameters.
    """

    framework = FRAMEWORK
    arithmetic = LAYER

    def __init__(self, dtype: DType | None = None) -> None:
        self.dtype = dtype

    def linear(self, leaf: leaves.Linear, module: Any, x: Array) -> Array:
        """x [..., inputs] -> [..., outputs]."""
        return module(x)

    def norm(self, leaf: leaves.Norm, module: Any, x: Array) -> Array:
        """x [..., width] normed; rounded to its dtype once."""
        return module(x)

    def embed(self, leaf: leaves.Embedding, module: Any, ids: Array) -> Array:
        """Rows of the table, [..., width]; NaN where there is no such row."""
        return module(jnp.where(ids < 0, leaf.rows, ids))

    def logits(self, leaf: leaves.Embedding, module: Any, x: Array, bias: Array | None) -> Array:
        """x [..., width] by all rows of the table: [..., rows]."""
        made = module.attend(x)
        return made if bias is None else made + bias.astype(made.dtype)

    def conv(self, leaf: leaves.Conv, module: Any, x: Array) -> Array:
        """x [B, *places, inputs] -> [B, *places, outputs]."""
        kernel = module.kernel[...]
        x = x.astype(kernel.dtype)
        if not leaf.is_product:
            return module(x)
        made = leaf.pieces(x) @ kernel.reshape(-1, leaf.outputs)
        return made if module.bias is None else made + module.bias[...]

    def convolve(self, leaf: leaves.Conv, weight: Array, bias: Array | None, x: Array) -> Array:
        """As `conv`, with these numbers."""
        padding = [(leaf.padding, leaf.padding)] * len(leaf.size)
        axes = ("NWC", "OIW", "NWC")
        sizes: dict[str, Any] = {"dimension_numbers": axes, "feature_group_count": leaf.groups}
        made = jax.lax.conv_general_dilated(x, weight.astype(x.dtype), leaf.stride, padding, **sizes)
        return made if bias is None else made + bias.astype(made.dtype)

    def array(self, held: Any) -> Array:
        """The numbers of a parameter that stands by itself."""
        numbers = held[...]
        floating = self.dtype is not None and jnp.issubdtype(numbers.dtype, jnp.floating)
        return numbers.astype(self.dtype) if floating else numbers

    def activate(self, x: Array, name: str) -> Array:
        """One of `ACTIVATIONS` of each number."""
        return _ACTIVATIONS[name](x)

    def product(self, x: Array, y: Array) -> Array:
        """x times y, which broadcast."""
        return x * y

    def scaled(self, x: Array, factor: float) -> Array:
        """x times a number."""
        return x * factor

    def add(self, x: Array, y: Array, factor: float = 1.0) -> Array:
        """x plus factor times y, which broadcast."""
        return x + y if factor == 1.0 else x + y * factor

    def drop(self, x: Array, rate: float, key: Array) -> Array:
        """Dropout of each number by itself."""
        return dropout.drop(x, rate, key)

    def fold(self, key: Array, number: int | Array) -> Array:
        """The key of a place, from the key of what it is within."""
        return rng.fold_in(key, number)

    def first_of(self, cache: Any) -> Any:
        """The first layer's own cache, of what a model's stack has."""
        while isinstance(cache, tuple):
            cache = cache[0]
        return jax.tree.map(lambda x: x[0], cache) if cache.lengths.ndim == 2 else cache

    def products(self, x: Array, y: Array) -> Array:
        """x [..., width] by all rows of y [rows, width]: [..., rows]."""
        return (x @ y.T).astype(x.dtype)

    def mean(self, x: Array, keep: Array | None = None) -> Array:
        """The mean of x [B, L, E] over L, or over what is kept of it, bool [B, L]: [B, E]."""
        if keep is None:
            return x.mean(1)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        counted = (x * keep[..., None]).sum(1, dtype=wide) / keep.sum(1).clip(1)[:, None]
        return counted.astype(x.dtype)

    def order(self, x: Array) -> Array:
        """Which place of each row of x [B, L] is the smallest, the next, ...; the first of equal ones first."""
        return jnp.argsort(x, 1, stable=True)

    def take(self, x: Array, places: Array) -> Array:
        """The tokens of x [B, L, E] at places [B, N]: [B, N, E]."""
        return jnp.take_along_axis(x, places[..., None], 1)

    def uniform(self, key: Array, shape: Sequence[int]) -> Array:
        """Numbers in [0, 1), float32."""
        return rng.uniform(key, tuple(shape))

    def arange(self, length: int, like: Array) -> Array:
        """0, 1, ..., int32 [length], where `like` is."""
        return jnp.arange(length, dtype=jnp.int32)

    def as_array(self, x: Any, like: Array | None) -> Array:
        """An array of the framework."""
        return jnp.asarray(x)

    def wide_linear(self, leaf: leaves.Linear, module: Any, x: Array) -> Array:
        """As `linear`, computed and given in float32 at least."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        made = x.astype(wide) @ module.kernel[...].astype(wide)
        return made + module.bias[...].astype(wide) if leaf.bias else made

    def softmax(self, x: Array) -> Array:
        """Over the last axis, float32 at least."""
        return jax.nn.softmax(x.astype(jnp.promote_types(x.dtype, jnp.float32)))

    def divide(self, x: Array, y: Array) -> Array:
        """x by y, which broadcast."""
        return x / y

    def cast(self, x: Array, like: Array) -> Array:
        """x rounded to the dtype of `like`."""
        return x.astype(like.dtype)

    def top(self, x: Array, count: int) -> Array:
        """int [..., count]: where the largest numbers of the last axis are; of equal ones the first."""
        return jax.lax.top_k(x, count)[1]

    def pick(self, x: Array, places: Array) -> Array:
        """The numbers of x [..., n] at places [..., count]."""
        return jnp.take_along_axis(x, places, -1)

    def groups(self, numbers: Array, count: int) -> tuple[Array, Array, Any]:
        """Places that bring equal numbers together, those that undo it, and how many of each there are."""
        flat = numbers.reshape(-1)
        order = jnp.argsort(flat, stable=True)
        return order, jnp.argsort(order), jnp.bincount(flat, length=count)

    def grouped(self, x: Array, weights: Array, counts: Any, turned: bool) -> Array:
        """Rows of x [N, in], sorted by group, each by the matrix of its group: [N, out]."""
        wide = jnp.promote_types(x.dtype, weights.dtype)
        return grouped(x.astype(wide), weights.astype(wide), counts, turned)

    def rows(self, table: Array, ids: Array) -> Array:
        """Rows of an array [rows, width]: [..., width]; NaN where there is no such row."""
        return jnp.take(table, jnp.where(ids < 0, len(table), ids), axis=0)

    def sums(self, x: Array, ids: Array, count: int) -> Array:
        """Of x [B, L, E] those of each id of [B, L] summed: [B, count, E]; other ids are left out."""
        known = jnp.where(ids < 0, count, ids)
        made = jnp.zeros((x.shape[0], count, x.shape[2]), x.dtype)
        return made.at[jnp.arange(x.shape[0])[:, None], known].add(x, mode="drop")

    def merge(self, out: Array, lse: Array, out2: Array, lse2: Array) -> Array:
        """Attention over two sets of keys."""
        return merge(out, lse, out2, lse2)[0]

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """The arrays one after the other along an axis."""
        return jnp.concatenate(list(arrays), axis)

    def split(self, x: Array, sizes: Sequence[int], axis: int) -> Sequence[Array]:
        """x cut along an axis, whose gradient is then joined and not added."""
        return jax.lax.split(x, list(sizes), axis % x.ndim)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where the condition holds, else y."""
        return jnp.where(condition, x, y)

    def once(self, x: Array) -> Array:
        """x: gradients are added by the framework."""
        return x

    def broadcast(self, x: Array, shape: Sequence[int]) -> Array:
        """x of a larger shape."""
        return jnp.broadcast_to(x, tuple(shape))


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "exp": jnp.exp,
    "linear": lambda x: x,
}

OPS = Plain()
