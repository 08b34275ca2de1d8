"""The blockwise kernel on CUDA: FlexAttention, compiled once for each kind of mask.

Where a mask's rows are intervals of keys (`Mask.rows`), their bounds are data of one kernel for all such masks; any
other mask has a kernel of its own, which new data do not change. The blocks that are visited are found where the mask's
data are, without waiting for them, and kept for the other layers of a model.

    rows.py       a mask's rows as tensors          compiled.py   what is compiled, and how often
    blocks.py     which blocks are visited          traced.py     the functions that are compiled
    plans.py      both, kept                        scores.py     softcap and biases

What was run of this, without a GPU: plans and their blocks; the functions that are compiled, by PyTorch's compiler for
the CPU, forwards; and what is asked of a compiler, on tensors that only seem to be on a GPU. The pieces it is made of
were measured on an H200 with PyTorch 2.11; the whole was never run on a GPU.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor as Array
from torch.utils._triton import has_triton

from maskattn.attention import Call
from maskattn_torch import _autocast
from maskattn_torch._derivatives import beyond_first
from maskattn_torch._symbolic import known
from maskattn_torch.kernels.blockwise.flex import plans
from maskattn_torch.kernels.blockwise.flex.compiled import KERNELS, CompileFailed, Kind, switched_off
from maskattn_torch.kernels.blockwise.flex.scores import kind_of, prepared
from maskattn_torch.kernels.blockwise.flex.traced import Terms, attend

__all__ = ["COMPILES", "CompileFailed", "attention", "is_new", "unsupported"]

#: What `explain` says of it.
COMPILES = "compiles a kernel (some seconds) on first use"
#: No wider head was tried on a GPU.
_WIDEST = 256


def attention(call: Call[Array], sinks: Array | None) -> tuple[Array, Array | None]:
    """The output [B, L, H, Dv] and log-sum-exp [B, L, H] of a call, with `sinks` in float32; empty rows 0, -inf.

    On the CPU, for tests: forwards, and without the log-sum-exp, which FlexAttention does not give there.

    Raises:
        KernelCannot: a ValueError: FlexAttention was not compiled; names why.
    """
    found = plans.planned(call)
    scores = prepared(call.bias)
    key, value = call.key, call.value
    if found is not None and found.reached is not None:  # what is not finite elsewhere must not show
        key, value = (torch.where(found.reached[:, :, None, None], x, 0) for x in (key, value))
    arrays = (call.query, key, value)
    tables, given = (None, None) if found is None else (found.tables, found.given(call.mask))
    terms = Terms(tables, given, scores, call.scale, call.softcap, _precision(call), _gives_lse(call.query))
    with _autocast.off(call.query.device):
        if torch.compiler.is_compiling():
            out, *more = attend(*arrays, terms)
        else:
            out, *more = KERNELS(_kind(call, found), attend, arrays, terms)
    if not more:
        return out, None
    lse = more[0]
    if sinks is not None:
        total = torch.logaddexp(lse, sinks)
        out, lse = out * torch.exp(lse - total).unsqueeze(-1).to(out.dtype), total
    return out, lse


def unsupported(call: Call[Array]) -> list[str]:
    """Every reason why FlexAttention cannot run a call."""
    reasons = []
    query, key, value = call.query, call.key, call.value
    if call.dropout is not None:
        reasons.append("dropout: FlexAttention draws none")
    if query.dtype == torch.float64:
        reasons.append("float64: FlexAttention has no kernel for it")
    if any(known(size == 0) for size in (*query.shape, *key.shape, *value.shape)):
        reasons.append("FlexAttention takes no empty tensors")
    for name, width in (("head_dim", query.shape[-1]), ("the width of values", value.shape[-1])):
        if width > _WIDEST:
            reasons.append(f"{name} is {width}, and beyond {_WIDEST} FlexAttention was not tried")
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            reasons.append("torch.export: an exported program runs FlexAttention uncompiled, on the whole score matrix")
        return reasons
    if beyond_first():
        reasons.append("FlexAttention has first derivatives in reverse mode only")
    elif torch._C._functorch.peek_interpreter_stack() is not None:
        reasons.append("FlexAttention has no rule for torch.func")
    reasons += switched_off()
    if query.is_cuda and not _has_triton():
        reasons.append("FlexAttention is compiled by Triton, which is not installed or does not know this GPU")
    return reasons


def is_new(call: Call[Array]) -> bool:
    """Whether a call needs another kernel while as many are compiled as are kept."""
    if torch.compiler.is_compiling():
        return False
    return KERNELS.is_full() and not KERNELS.has(_kind(call, plans.planned(call)))


def _kind(call: Call[Array], found: plans.Plan | None) -> Kind:
    query, key, value = arrays = call.query, call.key, call.value
    return Kind(
        "attention",
        None if found is None else found.kind,
        kind_of(prepared(call.bias)),
        call.scale,
        call.softcap,
        query.dtype,
        str(query.device),
        (query.shape[2], key.shape[2], query.shape[3], value.shape[3]),
        (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            *[x.requires_grad for x in arrays],
            *[x.is_inference() for x in arrays],
        ),
        _precision(call),
    )


def _precision(call: Call[Array]) -> str:
    """How float32 is multiplied on a GPU, in Triton's words; "" for what the process says."""
    if call.query.dtype != torch.float32 or not call.query.is_cuda or call.precision == "default":
        return ""
    return "'ieee'" if call.precision == "highest" else "'tf32'"


def _gives_lse(query: Array) -> bool:
    """Whether FlexAttention gives the log-sum-exp there."""
    return query.is_cuda


@functools.cache
def _has_triton() -> bool:
    return has_triton()
