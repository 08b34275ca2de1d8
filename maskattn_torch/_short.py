"""Short calls, again: what was found out about one call serves all that are like it.

Where SDPA takes a tenth of a millisecond, checking, preparing and choosing cost a quarter of that. Here a call like one
before, in all that those look at, goes to SDPA at once: without a mask, causal or, on the CPU, with a bool tensor.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor as Array
from torch.autograd import forward_ad

from maskattn.attention import Call, Framework, attend_anew, choose, prepare
from maskattn.masks import Causal
from maskattn_torch import auto
from maskattn_torch._modes import plain
from maskattn_torch._slots import Slots, slots_of
from maskattn_torch.kernels.blockwise.flex import CompileFailed
from maskattn_torch.kernels.fused import sdpa
from maskattn_torch.kernels.fused.again import twice_differentiable
from maskattn_torch.kernels.fused.cuda import fits, implementation
from maskattn_torch.kernels.fused.finite import finite
from maskattn_torch.kernels.fused.trimmed import apart, bounds_of, padded, run_of, stacked
from maskattn_torch.types import Operand

__all__ = ["attend", "of_step"]

_WHOLE: tuple[type, ...] = (torch.Tensor, torch.nn.Parameter)
#: So many kinds of calls are kept.
_MOST = 4096


class Plan(NamedTuple):
    """How a call is done: SDPA's options, whether its mask is a tensor or the lengths of rows, whether PyTorch may
    choose among all of its implementations, and the kind of device."""

    scale: float
    causal: bool
    grouped: bool
    masked: bool
    padded: bool
    free: bool
    kind: str


_PLANS: dict[Hashable, Plan | None] = {}


def attend(call: Call[Array], framework: Framework[Array]) -> Any:
    """What `maskattn.attention.attend` gives. Errors as there."""
    if (slots := slots_of(call.mask)) is not None and _is_bare(call):
        how = call.kernel, call.precision
        step = of_step(slots, call.query, call.key, call.value, call.mask, call.scale, how)
        if step is not None:
            return step
    key = _facts(call)
    plan = None if key is None else _PLANS.get(key)
    if plan is not None and _plain(plan.kind):
        q, k, v = call.query.transpose(1, 2), call.key.transpose(1, 2), call.value.transpose(1, 2)
        keep = call.mask if plan.masked else None
        run = run_of(call.mask) if plan.padded else None
        shown = (k, v, keep) if run is None else padded(*run, k, v, 2)
        if shown is not None:
            out = _sdpa(call, plan, q, *shown)
            if shown[2] is None or finite(call, out):
                return out
    try:
        found = attend_anew(call, framework)
    except CompileFailed as error:
        if call.kernel != "auto":
            raise
        auto.give_up(error)
        found = attend_anew(call, framework)
    if key is not None and key not in _PLANS and _plain(call.query.device.type):
        if len(_PLANS) >= _MOST:
            _PLANS.clear()
        _PLANS[key] = _planned(call, framework)
    return found


def _is_bare(call: Call[Array]) -> bool:
    """Whether a call has no option but those that `of_step` knows."""
    return (
        call.bias is call.dropout_key is call.blocks is None
        and (call.softcap is None and call.sinks is None)
        and (type(call.dropout_rate) is float and call.dropout_rate == 0.0 and type(call.dropout_broadcast) is tuple)
        and (not call.dropout_broadcast and call.empty_rows == "zero" and call.return_lse is False)
    )


def of_step(
    slots: Slots, query: Operand, key: Operand, value: Operand, mask: object, scale: float | None, how: tuple[str, str]
) -> Array | None:
    """What `attend` gives for one token's query and a mask of these slots, where a step like it was done before, and
    the call has no other options; None where it was not, and where this one is to be done otherwise. `how` are kernel
    and precision.
    """
    if key is not slots.key or value is not slots.value or type(query) not in _WHOLE or not query.is_cpu:
        return None
    asked = (query.shape, query.dtype, type(mask), scale, type(scale), how)
    if slots.asked != asked:
        options = {"scale": scale, "kernel": how[0], "precision": how[1]}
        facts = _facts(Call.of(**vars(Call(query, key, value, mask)) | options))
        plan = _PLANS.get(facts) if facts is not None and query.shape[1] == 1 else None
        if plan is not None and plan.padded and plan.free:
            slots.asked, slots.scale = asked, plan.scale
        return None
    run = run_of(mask) if _plain("cpu") else None
    bounds = None if run is None else bounds_of(*run, slots.size)
    if run is None or bounds is None:
        return None
    low, high, alike = bounds
    batch, _, heads, width = asked[0]
    keep = None if alike else slots.kept(*run, low, high)
    held, count = slots.stored, high - low
    k, v = held[0].narrow(2, low, count), held[1].narrow(2, low, count)
    out: Array = sdpa(query.reshape(batch, k.shape[1], -1, width), k, v, keep, 0.0, False, scale=slots.scale)
    if out.requires_grad:
        twice_differentiable(out)
    out = out.reshape(batch, 1, heads, v.shape[3])
    return out if keep is None or finite(Call.of(key=key, value=value), out) else None


def _sdpa(call: Call[Array], plan: Plan, q: Array, k: Array, v: Array, keep: Array | None) -> Array:
    """SDPA by a plan, of arrays with the heads first: [B, L, H, Dv]."""
    heads = q.shape[1]
    if plan.grouped and plan.kind == "cpu" and not plan.causal:
        q = stacked(q, k, keep)
    grouped = q.shape[1] != k.shape[1]
    if plan.free:
        out: Array = sdpa(q, k, v, keep, 0.0, plan.causal, scale=plan.scale, enable_gqa=grouped)
    else:
        with implementation(call, None):
            out = sdpa(q, k, v, keep, 0.0, plan.causal, scale=plan.scale, enable_gqa=grouped)
    if out.requires_grad:
        twice_differentiable(out)
    return apart(out, heads).transpose(1, 2)


def _plain(kind: str) -> bool:
    # of other kinds (meta) SDPA is something else, and PyTorch may know no autocast
    return kind in ("cpu", "cuda") and plain() and forward_ad._current_level < 0 and not torch.is_autocast_enabled(kind)


def _facts(call: Call[Array]) -> Hashable | None:
    """All that a plan depends on; None where there is none. Types are among the facts, since 1 equals True."""
    if (
        call.bias is not None
        or call.softcap is not None
        or call.sinks is not None
        or call.dropout_key is not None
        or call.blocks is not None
        or call.return_lse is not False
        or call.empty_rows != "zero"
        or call.dropout_broadcast != ()
        or torch.compiler.is_compiling()
    ):
        return None
    q, k, v, mask = call.query, call.key, call.value, call.mask
    given: object = None
    if mask is not None:
        if type(mask) is torch.Tensor:
            given = (mask.shape, mask.dtype, mask.device)
        elif (run := run_of(mask)) is not None:
            if not all(x is None or type(x) is torch.Tensor and x.device.type == "cpu" for x in run):
                return None
            given = tuple(None if x is None else (x.shape, x.dtype) for x in run)
        elif type(mask) is Causal and type(mask.offset) is int and mask.offset == 0:
            given = Causal
        else:
            return None
    try:
        facts = (
            *(q.shape, q.dtype, q.device, type(q), k.shape, k.dtype, k.device, type(k)),
            *(v.shape, v.dtype, v.device, type(v), given, call.kernel, call.precision),
            *(call.scale, type(call.scale), call.dropout_rate, type(call.dropout_rate)),
        )
        hash(facts)
    except (AttributeError, TypeError):  # no tensors, or an option that is a list
        return None
    return facts


def _planned(call: Call[Array], framework: Framework[Array]) -> Plan | None:
    """The plan for a call that was done; None where it is not done in this way, whatever else it is called with."""
    prepared, mask = prepare(call, framework), call.mask
    query, key = prepared.query, prepared.key
    tensors = all(type(x) in _WHOLE for x in (query, key, prepared.value))
    kind = query.device.type
    if not tensors or kind not in ("cpu", "cuda") or choose(prepared, framework)[0] != "fused":
        return None
    masked = isinstance(mask, torch.Tensor)
    if kind == "cuda" and (masked or mask is not None and not isinstance(mask, Causal) or not fits(prepared)):
        return None
    if masked and (mask.ndim != 4 or mask.device != query.device or not auto._is_short(prepared)):
        return None
    if isinstance(mask, Causal) and key.shape[1] > query.shape[1]:
        return None
    free = kind == "cpu" or query.dtype != torch.float32 or prepared.precision == "default"
    causal, grouped = isinstance(mask, Causal), query.shape[2] != key.shape[2]
    return Plan(prepared.scale, causal, grouped, masked, run_of(mask) is not None, free, kind)
