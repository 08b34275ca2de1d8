"""What PyTorch computes in one kernel, in the operations that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Wider:
    """An operator that takes no float64, done by others that do."""

    operator: torch._ops.OpOverload
    function: Callable[..., Tensor]

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        return self.function(*args, **kwargs)

    def __str__(self) -> str:
        return str(self.operator)

    @property
    def __name__(self) -> str:
        return self.operator.__name__

    @property
    def _schema(self) -> object:
        return self.operator._schema


def _grouped(rows: Tensor, kernels: Tensor, ends: Tensor, *_: object, **__: object) -> Tensor:
    """Rows [R, D] in groups that end at `ends`, each times its kernel [G, D, F]; rows behind the last are 0."""
    out = rows.new_zeros(rows.shape[0], kernels.shape[-1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        out[start:end] = rows[start:end] @ kernels[group]
        start = end
    return out


WIDER: Mapping[str, Callable[..., Tensor]] = {"aten._grouped_mm.default": _grouped}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` in its parts, as PyTorch documents it: [..., L, D] of [..., S, D].

    Args:
        attn_mask: True = may attend, or numbers to add. A row that may attend to nothing gives 0.
    """
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        key, value = (_repeated(x, query.shape[-3] // x.shape[-3]) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = torch.where(attn_mask, scores, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, -1)
    empty = (scores == float("-inf")).all(-1, keepdim=True)
    if bool(empty.any()):
        weights = torch.where(empty, 0.0, weights)
    if dropout_p:
        weights = torch.dropout(weights, dropout_p, True)
    return weights @ value


def _repeated(x: Tensor, times: int) -> Tensor:
    """[..., H, S, D] -> [..., H * times, S, D], each head several times in a row."""
    *batch, heads, length, size = x.shape
    return x.unsqueeze(-3).expand(*batch, heads, times, length, size).reshape(*batch, heads * times, length, size)


def _convolution(axes: int) -> Callable[..., Tensor]:
    """`conv1d`, `conv2d`, `conv3d` without their question whether input and kernel are of one dtype: see `Wider`."""
    own: Callable[..., Tensor] = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]

    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or input.dim() != axes + 2 or input.dtype == weight.dtype:
            return own(input, weight, bias, stride, padding, dilation, groups)
        each = [[one] * axes if isinstance(one, int) else list(one) for one in (stride, padding, dilation)]
        made: Tensor = torch.ops.aten.convolution(input, weight, bias, *each, False, [0] * axes, groups)
        return made

    return convolution


def _by_name(function: Callable[..., object]) -> FunctionType:
    """A function of PyTorch's that calls its attention by name, which a mode does not see: it calls this one."""
    assert isinstance(function, FunctionType)
    names = {**function.__globals__, "scaled_dot_product_attention": attention}
    return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)


INSTEAD: Mapping[Callable[..., object], Callable[..., object]] = {
    functional.scaled_dot_product_attention: attention,
    functional.conv1d: _convolution(1),
    functional.conv2d: _convolution(2),
    functional.conv3d: _convolution(3),
    functional.multi_head_attention_forward: _by_name(functional.multi_head_attention_forward),
}


class _Apart(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return INSTEAD.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def taken_apart() -> Iterator[None]:
    """Attention is computed in its parts, and no module of PyTorch's by a kernel that does all of it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _Apart():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
