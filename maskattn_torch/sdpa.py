"""scaled_dot_product_attention: what `torch.nn.functional.scaled_dot_product_attention` takes, by our kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt32
from torch.nn.attention.bias import CausalBias, CausalVariant

from maskattn.attention import Call
from maskattn.masks import Causal, Mask
from maskattn.typing import EmptyRows, KernelName
from maskattn_torch import _autocast
from maskattn_torch._short import attend
from maskattn_torch.functional import FRAMEWORK
from maskattn_torch.types import Array

__all__ = ["drawn_key", "scaled_dot_product_attention"]

_LOWERED = (torch.float32, torch.bfloat16, torch.float16)


def scaled_dot_product_attention(
    query: Float[Array, "*batch L D"],
    key: Float[Array, "*batch S D"],
    value: Float[Array, "*batch S Dv"],
    attn_mask: Mask | Bool[Array, "*#scores"] | Float[Array, "*#scores"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    empty_rows: EmptyRows = "zero",
    kernel: KernelName = "auto",
) -> Float[Array, "*batch L Dv"]:
    """`attention` with the arguments of `torch.nn.functional.scaled_dot_product_attention`, and its layout.

    Args:
        query: [..., L, D]: [batch, heads, L, D], or any number of leading axes; those of the three broadcast.
        key: [..., S, D]. value: [..., S, Dv]. Under autocast all three are taken in its dtype.
        attn_mask: broadcasts to [..., L, S]: bool, True = may attend; or float, of the query's dtype or float32, which
            is added to the logits, and where -inf forbids. Or a Mask: its h is the axis before L (one where there is
            none), its b all axes before that, flattened row-major. Or a `CausalBias` of PyTorch.
        dropout_p: the probability that a weight is dropped, in training and not; the key is drawn from PyTorch's
            generator, that of the query's device.
        is_causal: query i sees no key beyond i, counted from the start of both. Not beside an attn_mask that is a
            tensor; what a Mask forbids stays forbidden.
        scale: multiplies query times key (default 1 / sqrt(D)).
        enable_gqa: the heads of key and value may be fewer, and divide those of the query.
        empty_rows: what a row gives that may attend to nothing, as in `attention`; PyTorch's is "zero".
        kernel: as in `attention`.

    Returns:
        [..., L, Dv], with whatever strides the kernel gives; [B, H, L, D] is taken and given without a copy.

    Raises:
        RuntimeError: where PyTorch raises it: dtypes that differ, too few axes, shapes that do not broadcast.
        TypeError, ValueError: whatever else is wrong.
    """
    _check_types(query, key, value)
    if _autocast.is_on(query.device):
        query, key, value, attn_mask = _lowered(query, key, value, attn_mask)
    _check(query, key, value, attn_mask, dropout_p)
    lead: torch.Size | None = None  # None: the three are [batch, heads, ...] already
    if not _alike(query.shape, key.shape, value.shape):
        lead = _lead(query, key, value, enable_gqa)
        query, key, value = _four_axes(query, key, value, lead)
    mask, bias = attn_mask, None
    if attn_mask is not None and not isinstance(attn_mask, Mask):
        lengths = (query.shape[-2], key.shape[-2])
        mask, bias = _mask_and_bias(attn_mask, (*(query.shape[:2] if lead is None else lead), *lengths))
    if is_causal:
        mask = Causal() if attn_mask is None else _with_causal(attn_mask)
    drawn = drawn_key(query.device) if 0.0 < dropout_p < 1.0 else None
    call = Call.of(
        query=query.transpose(1, 2),
        key=key.transpose(1, 2),
        value=value.transpose(1, 2),
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=None,
        sinks=None,
        dropout_rate=0.0 if drawn is None else dropout_p,
        dropout_key=drawn,
        dropout_broadcast=(),
        empty_rows=empty_rows,
        kernel=kernel,
        precision="highest",
        return_lse=False,
        blocks=None,
    )
    out: Array = attend(call, FRAMEWORK).transpose(1, 2)
    if dropout_p == 1.0:
        out = torch.where(torch.zeros((), dtype=torch.bool, device=out.device), out, 0)
    return out if lead is None else out.reshape(*lead, *out.shape[-2:])


def _alike(query: torch.Size, key: torch.Size, value: torch.Size) -> bool:
    """Whether the three shapes are [B, H, length, width], of one B and one H."""
    return (
        len(query) == len(key) == len(value) == 4 and query[0] == key[0] == value[0] and query[1] == key[1] == value[1]
    )


def drawn_key(device: torch.device) -> UInt32[Array, " 2"]:
    """A key of dropout from PyTorch's generator, that of the device: uint32 [2], there. `torch.manual_seed` fixes it,
    and checkpointing restores it."""
    return torch.randint(0, 1 << 32, (2,), dtype=torch.int64, device=device).to(torch.uint32)


def _lowered(query: Array, key: Array, value: Array, attn_mask: Any) -> tuple[Array, Array, Array, Any]:
    """What autocast makes of the arguments of PyTorch's function: floats of 32 bits and fewer become its dtype."""
    dtype = torch.get_autocast_dtype(query.device.type)
    given = (query, key, value, attn_mask)
    taken = (x.to(dtype) if isinstance(x, torch.Tensor) and x.dtype in _LOWERED else x for x in given)
    q, k, v, mask = taken
    return q, k, v, mask


def _check_types(query: object, key: object, value: object) -> None:
    if not (isinstance(query, torch.Tensor) and isinstance(key, torch.Tensor) and isinstance(value, torch.Tensor)):
        listed = ", ".join(type(x).__name__ for x in (query, key, value))
        raise TypeError(f"scaled_dot_product_attention: query, key and value must be tensors, got {listed}")


def _check(query: Array, key: Array, value: Array, attn_mask: Any, dropout_p: float) -> None:
    """What PyTorch refuses, as it does."""
    if not query.dtype == key.dtype == value.dtype:
        raise _refused("query, key and value must have one dtype", *(x.dtype for x in (query, key, value)))
    if not query.device == key.device == value.device:
        raise _refused("query, key and value must be on one device", *(x.device for x in (query, key, value)))
    if query.is_nested or key.is_nested or value.is_nested:
        raise NotImplementedError(
            "scaled_dot_product_attention: nested tensors are not taken: pad them, and name the lengths in "
            "masks.KeyPadding, or pack them, with masks.Segments"
        )
    if query.dim() < 2 or key.dim() < 2 or value.dim() < 2:
        shapes = (tuple(x.shape) for x in (query, key, value))
        raise _refused("query, key and value must have two axes or more, [..., L, D]", *shapes)
    if not 0.0 <= dropout_p <= 1.0:
        raise _refused("dropout_p must be between 0 and 1", dropout_p)
    if attn_mask is None or isinstance(attn_mask, Mask | CausalBias):
        return
    if not isinstance(attn_mask, torch.Tensor):
        kind = type(attn_mask).__name__
        raise TypeError(f"scaled_dot_product_attention: attn_mask must be a tensor or a Mask, got {kind}")
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise _refused(f"attn_mask must be bool, float32 or of the query's {query.dtype}", attn_mask.dtype)


def _refused(what: str, *got: object) -> RuntimeError:
    return RuntimeError(f"scaled_dot_product_attention: {what}, got {', '.join(map(str, got))}")


def _lead(query: Array, key: Array, value: Array, enable_gqa: bool) -> torch.Size:
    """The axes before [length, width] of the result: those of the three, broadcast."""
    shapes = [x.shape[:-2] for x in (query, key, value)]
    if not enable_gqa:
        return torch.broadcast_shapes(*shapes)
    if not all(shapes):
        raise _refused("enable_gqa needs an axis of heads, [..., H, L, D]", *map(tuple, shapes))
    heads = [shape[-1] for shape in shapes]
    if any(n == 0 or heads[0] % n for n in heads[1:]):
        raise _refused("the heads of key and value must divide those of the query", *heads)
    return torch.Size([*torch.broadcast_shapes(*(shape[:-1] for shape in shapes)), heads[0]])


def _four_axes(query: Array, key: Array, value: Array, lead: torch.Size) -> tuple[Array, Array, Array]:
    """The three as [batch, heads, length, width]; key and value with the heads that they have."""
    rows, heads = lead[:-1], lead[-1] if lead else 1
    few = math.lcm(*(x.shape[-3] if x.dim() > 2 else 1 for x in (key, value)))

    def shaped(x: Array, n: int) -> Array:
        if x.dim() > 2 and x.shape[-3] != 1 and x.shape[-3] != n:
            x = x.repeat_interleave(n // x.shape[-3], -3)
        return x.expand(*rows, n, *x.shape[-2:]).reshape(math.prod(rows), n, *x.shape[-2:])

    return shaped(query, heads), shaped(key, few), shaped(value, few)


def _mask_and_bias(attn_mask: Any, whole: tuple[int, ...]) -> tuple[Mask | Array | None, Array | None]:
    """attn_mask as `attention` takes it, of a call whose scores are `whole`, [..., L, S]."""
    if isinstance(attn_mask, CausalBias):
        lower_right = attn_mask.variant is CausalVariant.LOWER_RIGHT
        return Causal.end_aligned(*whole[-2:]) if lower_right else Causal(), None
    array = _of_scores(attn_mask, whole)
    return (array, None) if array.dtype == torch.bool else (None, array)


def _with_causal(attn_mask: Any) -> Mask:
    if not isinstance(attn_mask, Mask):
        raise RuntimeError(
            "scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True; a Mask may be, as "
            "masks.Dense(attn_mask)"
        )
    return attn_mask & Causal()


def _of_scores(array: Array, whole: tuple[int, ...]) -> Array:
    """A tensor that broadcasts to `whole`, [..., L, S], as one that broadcasts to [batch, heads, L, S]."""
    shape = array.shape
    if len(shape) == len(whole) == 4:
        return array
    if len(shape) > len(whole) or any(n != 1 and n != m for n, m in zip(shape[::-1], whole[::-1], strict=False)):
        raise _refused(f"attn_mask must broadcast to [..., L, S] = {whole}", f"shape {tuple(shape)}")
    if len(whole) <= 4:
        return array.reshape(*[1] * (4 - len(shape)), *shape)
    rows, rest = whole[:-3], ([1] * 3 + list(shape))[-3:]
    if all(n == 1 for n in shape[:-3]):
        return array.reshape(1, *rest)
    return array.expand(*rows, *rest).reshape(math.prod(rows), *rest)
