"""The arithmetic of whole models on tensors: modules applied, and what is computed between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from maskattn.models import leaves
from maskattn_torch import dropout, rng
from maskattn_torch.functional import FRAMEWORK
from maskattn_torch.kernels.merging import merge
from maskattn_torch.layer import LAYER
from maskattn_torch.models.grouped import grouped
from maskattn_torch.types import Array, DType

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
        hooked = module._forward_hooks or module._forward_pre_hooks
        if self.dtype is None and type(module) is nn.Linear and not hooked:
            return _linear(x, module.weight, module.bias)
        return self._applied(module, x)

    def norm(self, leaf: leaves.Norm, module: Any, x: Array) -> Array:
        """x [..., width] normed; rounded to its dtype once."""
        return module(x)

    def embed(self, leaf: leaves.Embedding, module: Any, ids: Array) -> Array:
        """Rows of the table, [..., width]."""
        return self._cast(module(ids))

    def logits(self, leaf: leaves.Embedding, module: Any, x: Array, bias: Array | None) -> Array:
        """x [..., width] by all rows of the table: [..., rows]."""
        return _linear(x, self._cast(module.weight), bias)

    def conv(self, leaf: leaves.Conv, module: Any, x: Array) -> Array:
        """x [B, *places, inputs] -> [B, *places, outputs]."""
        return self._applied(module, x.movedim(-1, 1)).movedim(1, -1)

    def convolve(self, leaf: leaves.Conv, weight: Array, bias: Array | None, x: Array) -> Array:
        """As `conv`, with these numbers."""
        assert len(leaf.size) == 1
        return F.conv1d(x.movedim(-1, 1), weight, bias, leaf.stride, leaf.padding, 1, leaf.groups).movedim(1, -1)

    def array(self, held: Any) -> Array:
        """The numbers of a parameter that stands by itself."""
        return self._cast(held)

    def _cast(self, x: Array) -> Array:
        return x if self.dtype is None or not x.is_floating_point() else x.to(self.dtype)

    def _applied(self, module: Any, x: Array) -> Array:
        if self.dtype is None or self.dtype == module.weight.dtype:
            return module(x.to(module.weight.dtype))
        cast = {name: self._cast(number) for name, number in module.named_parameters()}
        return torch.func.functional_call(module, cast, (self._cast(x),))

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
        return cache

    def products(self, x: Array, y: Array) -> Array:
        """x [..., width] by all rows of y [rows, width]: [..., rows]."""
        wide = torch.promote_types(x.dtype, y.dtype)
        return F.linear(x.to(wide), y.to(wide)).to(x.dtype)

    def mean(self, x: Array, keep: Array | None = None) -> Array:
        """The mean of x [B, L, E] over L, or over what is kept of it, bool [B, L]: [B, E]."""
        if keep is None:
            return x.mean(1)
        wide = torch.promote_types(x.dtype, torch.float32)
        counted = (x * keep[..., None]).sum(1, dtype=wide) / keep.sum(1).clamp(min=1)[:, None]
        return counted.to(x.dtype)

    def order(self, x: Array) -> Array:
        """Which place of each row of x [B, L] is the smallest, the next, ...; the first of equal ones first."""
        return torch.argsort(x, dim=1, stable=True)

    def take(self, x: Array, places: Array) -> Array:
        """The tokens of x [B, L, E] at places [B, N]: [B, N, E]."""
        return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))

    def uniform(self, key: Array, shape: Sequence[int]) -> Array:
        """Numbers in [0, 1), float32."""
        return rng.uniform(key, tuple(shape))

    def arange(self, length: int, like: Array) -> Array:
        """0, 1, ..., int32 [length], where `like` is."""
        return torch.arange(length, device=like.device)

    def as_array(self, x: Any, like: Array | None) -> Array:
        """A tensor, where `like` is."""
        return torch.as_tensor(x, device=None if like is None else like.device)

    def wide_linear(self, leaf: leaves.Linear, module: Any, x: Array) -> Array:
        """As `linear`, computed and given in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(wide), module.weight.to(wide), None if module.bias is None else module.bias.to(wide))

    def softmax(self, x: Array) -> Array:
        """Over the last axis, float32 at least."""
        return x.softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32))

    def divide(self, x: Array, y: Array) -> Array:
        """x by y, which broadcast."""
        return x / y

    def cast(self, x: Array, like: Array) -> Array:
        """x rounded to the dtype of `like`."""
        return x.to(like.dtype)

    def top(self, x: Array, count: int) -> Array:
        """int [..., count]: where the largest numbers of the last axis are; of equal ones the first."""
        return x.sort(dim=-1, descending=True, stable=True).indices[..., :count]

    def pick(self, x: Array, places: Array) -> Array:
        """The numbers of x [..., n] at places [..., count]."""
        return x.gather(-1, places)

    def groups(self, numbers: Array, count: int) -> tuple[Array, Array, Any]:
        """Places that bring equal numbers together, those that undo it, and how many of each there are."""
        flat = numbers.reshape(-1)
        order = flat.sort(stable=True).indices
        counts = flat.new_zeros(count).scatter_add(0, flat, torch.ones_like(flat))  # bincount has a size of its own
        return order, order.argsort(), counts

    def grouped(self, x: Array, weights: Array, counts: Any, turned: bool) -> Array:
        """Rows of x [N, in], sorted by group, each by the matrix of its group: [N, out]."""
        return grouped(x, weights, counts, turned)

    def rows(self, table: Array, ids: Array) -> Array:
        """Rows of an array [rows, width]: [..., width]."""
        return table[ids]

    def sums(self, x: Array, ids: Array, count: int) -> Array:
        """Of x [B, L, E] those of each id of [B, L] summed: [B, count, E]; other ids are left out."""
        known = torch.where((ids >= 0) & (ids < count), ids, count).long()
        made = x.new_zeros((x.shape[0], count + 1, x.shape[2]))
        return made.scatter_add(1, known[..., None].expand(x.shape), x)[:, :count]

    def merge(self, out: Array, lse: Array, out2: Array, lse2: Array) -> Array:
        """Attention over two sets of keys."""
        return merge(out, lse, out2, lse2)[0]

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """The arrays one after the other along an axis."""
        return torch.cat(list(arrays), axis)

    def split(self, x: Array, sizes: Sequence[int], axis: int) -> Sequence[Array]:
        """x cut along an axis, whose gradient is then joined and not added."""
        return x.split(list(sizes), axis)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where the condition holds, else y."""
        return torch.where(condition, x, y)

    def once(self, x: Array) -> Array:
        """x: gradients are added by the framework."""
        return x

    def broadcast(self, x: Array, shape: Sequence[int]) -> Array:
        """x of a larger shape."""
        return x.expand(tuple(shape))


#: Up to so many rows of x, PyTorch's product of float32 numbers on a CPU leaves cores idle: it is given a block of the
#: weight for each core (benchmarks/models.py: 1.1 to 2 times as fast on two).
_FEW = 16
_LARGE = 2**14


def _linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """x [..., in], weight [out, in] -> [..., out]."""
    if torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    cores, (outputs, inputs) = torch.get_num_threads(), weight.shape
    rows = x.numel() // inputs
    if (
        not 0 < rows <= _FEW
        or outputs * inputs < _LARGE
        or outputs % cores
        or cores == 1
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or not (x.is_cpu and weight.is_contiguous())
        or torch.is_grad_enabled()
        or not (type(x) is torch.Tensor and type(weight) in (nn.Parameter, torch.Tensor))
    ):
        return F.linear(x, weight, bias)
    blocks = weight.view(cores, outputs // cores, inputs).transpose(1, 2)
    made = torch.bmm(x.reshape(1, rows, inputs).expand(cores, rows, inputs), blocks)
    made = made.transpose(0, 1).reshape(*x.shape[:-1], outputs)
    return made if bias is None else made + bias


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "linear": lambda x: x,
}

OPS = Plain()
