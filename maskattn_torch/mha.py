"""MultiheadAttention: `torch.nn.MultiheadAttention`, by our kernels; and `replace`, which puts it into a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import nn
from torch.nn import functional as F

from maskattn._fields import peek
from maskattn.attention import Call
from maskattn.masks import Causal, Dense, KeyMask, Mask
from maskattn.typing import EmptyRows, KernelName
from maskattn_torch._short import attend
from maskattn_torch._weights import weights
from maskattn_torch.dropout import dense
from maskattn_torch.functional import FRAMEWORK
from maskattn_torch.kernels.merging import merge
from maskattn_torch.rng import fold_in
from maskattn_torch.sdpa import drawn_key
from maskattn_torch.types import Array, Device, DType

__all__ = ["MultiheadAttention", "replace"]

Model = TypeVar("Model", bound=nn.Module)

#: PyTorch's, whatever may stand under its name later.
Theirs = nn.MultiheadAttention


class MultiheadAttention(Theirs):
    """`torch.nn.MultiheadAttention`, of which it has arguments, parameters, names and initial numbers, by our kernels.

    It takes a Mask as `attn_mask`, has no fast path (nor has a `TransformerEncoderLayer` that holds it), and gives what
    `empty_rows` says where a row may attend to nothing.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as in
            `torch.nn.MultiheadAttention`.
        empty_rows, kernel: as in `attention`.

    Errors as in `torch.nn.MultiheadAttention`.
    """

    empty_rows: EmptyRows
    kernel: KernelName

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Device = None,
        dtype: DType | None = None,
        *,
        empty_rows: EmptyRows = "zero",
        kernel: KernelName = "auto",
    ) -> None:
        nn.Module.__init__(self)
        sizes = (embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first)
        made = Theirs(*sizes, device=device, dtype=dtype)
        self.__dict__.update(vars(made), empty_rows=empty_rows, kernel=kernel)

    @classmethod
    def of(cls, module: Theirs, *, empty_rows: EmptyRows = "zero", kernel: KernelName = "auto") -> Self:
        """The same layer by our kernels: it shares the parameters, hooks and mode of `module`.

        Args:
            module: a `torch.nn.MultiheadAttention`.
            empty_rows, kernel: as in `attention`.

        Raises:
            TypeError: anything else, subclasses too: what those compute is not known.
        """
        if type(module) is not Theirs:
            raise TypeError(
                f"MultiheadAttention.of: module must be a torch.nn.MultiheadAttention, got {type(module).__name__}"
            )
        made = cls.__new__(cls)
        made.__dict__ = {**vars(module), "empty_rows": empty_rows, "kernel": kernel}
        return made

    @property
    def _qkv_same_embed_dim(self) -> bool:
        # PyTorch's encoder layers read it before they compute attention by themselves, past `forward`
        return False

    def _reset_parameters(self) -> None:
        plain: Any = Theirs.__new__(Theirs)
        plain.__dict__ = vars(self)
        plain._reset_parameters()

    def forward(
        self,
        query: Float[Array, "*batch_and_L E"],
        key: Float[Array, "*batch_and_S kdim"],
        value: Float[Array, "*batch_and_S vdim"],
        key_padding_mask: Bool[Array, "*batch S"] | Float[Array, "*batch S"] | None = None,
        need_weights: bool = True,
        attn_mask: Mask | Bool[Array, "#BH L S"] | Float[Array, "#BH L S"] | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Array, "*batch_and_L E"], Float[Array, "*scores"] | None]:
        """(output, weights or None), as `torch.nn.MultiheadAttention`.

        Args:
            query: [L, B, E], [B, L, E] with `batch_first`, or [L, E]. key, value: likewise, of length S.
            key_padding_mask: [B, S], or [S]: bool, True = drop; or float, which is added.
            need_weights: also return the weights: L x S numbers for each row, and each head. After dropout, as
                PyTorch's.
            attn_mask: [L, S] or [B * H, L, S]: bool, True = drop; or float, which is added. Or a Mask of this library,
                where True = may attend.
            average_attn_weights: the weights are the mean over the heads, [B, L, S], else [B, H, L, S].
            is_causal: a hint that `attn_mask` is the causal mask; used where PyTorch uses it, without padding and
                weights.

        Raises:
            AssertionError, RuntimeError: where PyTorch raises them. TypeError, ValueError: from `attention`.
        """
        batched = self._check((query, key, value), key_padding_mask, attn_mask, is_causal)
        if not batched:
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        hinted = is_causal and key_padding_mask is None and not need_weights and not isinstance(attn_mask, Mask)
        q, k, v = (self._heads(x, batched) for x in self._projected(query, key, value))
        sizes = (q.shape[0], self.num_heads, q.shape[1], k.shape[1])
        mask, bias = _mask_and_bias(Causal() if hinted else attn_mask, key_padding_mask, sizes)
        out, found = self._attended(q, k, v, mask, bias, need_weights)
        out = out.flatten(2)
        out = self.out_proj(out[0] if not batched else out if self.batch_first else out.transpose(0, 1))
        if found is None:
            return out, None
        found = found.to(out.dtype)
        found = found.mean(1) if average_attn_weights else found
        return out, found if batched else found[0]

    def _check(self, inputs: Sequence[Array], padding: Any, attn_mask: Any, is_causal: bool) -> bool:
        """Whether the inputs have an axis of the batch; raises as PyTorch does."""
        query, key, value = inputs
        if query.is_nested or key.is_nested or value.is_nested:
            raise NotImplementedError(
                "MultiheadAttention: nested tensors are not taken. A torch.nn.TransformerEncoder that was made before "
                "makes them of padded batches unless its use_nested_tensor is False, as `replace` sets it"
            )
        axes = query.dim()
        if axes not in (2, 3) or not axes == key.dim() == value.dim():
            listed = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise AssertionError(f"query, key and value must all be 2-D (unbatched) or 3-D (batched), got {listed}")
        given = None if isinstance(attn_mask, Mask) else attn_mask
        for name, mask, dims in (("key_padding_mask", padding, (axes - 1,)), ("attn_mask", given, (2, 3))):
            if mask is None:
                continue
            if mask.dtype != torch.bool and not mask.is_floating_point():
                raise AssertionError(f"only bool and floating types of {name} are supported, got {mask.dtype}")
            if mask.dim() not in dims:
                words = " or ".join(f"{n}-D" for n in dims)
                raise AssertionError(f"{name} must be {words} for {axes}-D inputs, got shape {tuple(mask.shape)}")
        if is_causal and attn_mask is None:
            raise RuntimeError("MultiheadAttention: is_causal is a hint about attn_mask, which must be given, too")
        if query.shape[-1] != self.embed_dim:
            raise AssertionError(f"query must have embedding dimension {self.embed_dim}, got {query.shape[-1]}")
        if key.shape[:-1] != value.shape[:-1]:
            raise AssertionError(f"key and value must agree in length and batch, got {key.shape} and {value.shape}")
        return axes == 3

    def _projected(self, query: Array, key: Array, value: Array) -> tuple[Array, ...]:
        bias = self.in_proj_bias
        if self.kdim == self.vdim == self.embed_dim:
            if query is key and key is value:
                return F.linear(query, self.in_proj_weight, bias).chunk(3, -1)
            layers = self.in_proj_weight.chunk(3)
        else:
            layers = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        given = zip((query, key, value), layers, biases, strict=True)
        return tuple([F.linear(x, weight, added) for x, weight, added in given])

    def _heads(self, x: Array, batched: bool) -> Array:
        """[L, B, E], [B, L, E] or [L, E] as a view [B, L, H, D]."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        if not batched:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _attended(
        self, query: Array, key: Array, value: Array, mask: Mask | None, bias: Array | None, need_weights: bool
    ) -> tuple[Array, Array | None]:
        """Output [B, L, H, D], and the weights [B, H, L, S + what was added] where they are needed."""
        extra = self._extra_keys(key)
        # what is added may be attended to by every row, so that none is empty
        policy: EmptyRows = self.empty_rows if extra is None else "zero"
        calls: list[Call[Array]] = [Call(query, key, value, mask, bias, empty_rows=policy, kernel=self.kernel)]
        if extra is not None:
            calls.append(Call(query, extra[0], extra[1], kernel=self.kernel))
        rate = float(self.dropout) if self.training else 0.0
        if rate:
            drawn = drawn_key(query.device)
            keys = (fold_in(drawn, i) for i in range(len(calls)))
            calls = [dataclasses.replace(call, dropout_rate=rate, dropout_key=next(keys)) for call in calls]
        if extra is None and not need_weights:
            return attend(calls[0], FRAMEWORK), None
        found = [attend(dataclasses.replace(call, return_lse=True), FRAMEWORK) for call in calls]
        out, lse = found[0] if extra is None else merge(*found[0], *found[1])
        return out, torch.cat([_weights(lse, call) for call in calls], -1) if need_weights else None

    def _extra_keys(self, key: Array) -> tuple[Array, Array] | None:
        """Keys and values that every query may attend to, beside those of the inputs: [B, 1 or 2, H, D]."""
        shape = (key.shape[0], 1, self.num_heads, self.head_dim)
        added = []
        if self.bias_k is not None and self.bias_v is not None:
            added.append([x.to(key.dtype).view(1, *shape[1:]).expand(shape) for x in (self.bias_k, self.bias_v)])
        if self.add_zero_attn:
            added.append([key.new_zeros(shape)] * 2)
        if not added:
            return None
        keys, values = (torch.cat(each, 1) for each in zip(*added, strict=True))
        return keys, values


def replace(model: Model, *, empty_rows: EmptyRows = "zero", kernel: KernelName = "auto") -> Model:
    """Put our `MultiheadAttention` in the place of every `torch.nn.MultiheadAttention` of a model; returns the model.

    Parameters stay the same objects, so an optimizer and a state dictionary of the model stay right. Encoders that hold
    them are told to make no nested tensors, which PyTorch's own fast path takes.

    Args:
        model: any module, which is changed; where it is itself a `torch.nn.MultiheadAttention`, that is not, and the
            new one is returned.
        empty_rows, kernel: as in `attention`.

    Raises:
        ValueError: there is none in the model. TypeError: one is of a subclass, of which is not known what it computes.
    """
    if type(model) is Theirs:
        made: Any = model
        made = MultiheadAttention.of(made, empty_rows=empty_rows, kernel=kernel)
        return cast(Model, made)
    found: dict[nn.Module, MultiheadAttention] = {}
    for name, module in model.named_modules():
        if isinstance(module, Theirs) and type(module) not in (Theirs, MultiheadAttention):
            raise TypeError(f"replace: {name} is a {type(module).__name__}, of which is not known what it computes")
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if type(child) is Theirs:
                if child not in found:
                    found[child] = MultiheadAttention.of(child, empty_rows=empty_rows, kernel=kernel)
                parent._modules[name] = found[child]
    if not found:
        raise ValueError(f"replace: {type(model).__name__} has no torch.nn.MultiheadAttention")
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return model


def _mask_and_bias(
    attn_mask: Mask | Array | None, padding: Array | None, sizes: tuple[int, int, int, int]
) -> tuple[Mask | None, Array | None]:
    """What may attend, and what is added, [B or 1, H or 1, L or 1, S]."""
    batch, heads, q_len, kv_len = sizes
    mask = attn_mask if isinstance(attn_mask, Mask) else None
    bias: Array | None = None
    if attn_mask is not None and not isinstance(attn_mask, Mask):
        expected = (q_len, kv_len) if attn_mask.dim() == 2 else (batch * heads, q_len, kv_len)
        if tuple(attn_mask.shape) != expected:
            raise RuntimeError(f"attn_mask must have the shape {expected}, got {tuple(attn_mask.shape)}")
        rows = (1, 1) if attn_mask.dim() == 2 else (batch, heads)
        keep, bias = _kept(attn_mask.reshape(*rows, q_len, kv_len))
        mask = None if keep is None else Dense(keep)
    if padding is not None:
        if tuple(padding.shape) != (batch, kv_len):
            raise AssertionError(f"key_padding_mask must have the shape {(batch, kv_len)}, got {tuple(padding.shape)}")
        keep, added = _kept(padding)
        if keep is not None:
            mask = KeyMask(keep) if mask is None else mask & KeyMask(keep)
        if added is not None:
            added = added[:, None, None]
            bias = added if bias is None else bias + added
    return mask, bias


def _kept(given: Array) -> tuple[Array | None, Array | None]:
    """A mask of PyTorch as (True = may attend, None), or as (None, what is added).

    Its encoder layers make floats of bools, 0 and -inf: on the CPU they are looked at, and are bools again.
    """
    if given.dtype == torch.bool:
        return ~given, None
    if given.device.type == "cpu" and not given.requires_grad and peek(given) is not None:
        keep = given == 0
        if bool((keep | (given == -torch.inf)).all()):
            return keep, None
    return None, given


def _weights(lse: Float[Array, "B L H"], call: Call[Array]) -> Float[Array, "B H L S"]:
    """The weights of a call, after dropout, as its output was made of them."""
    found = weights(lse, call)
    if call.dropout is None:
        return found
    return torch.where(dense(call.dropout, call.sizes), found / (1.0 - call.dropout_rate), 0)
