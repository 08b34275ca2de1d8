"""attention(...): checks a call, binds its mask and bias to PyTorch, chooses a kernel and runs it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Literal, Unpack, overload

import numpy as np
import torch
from jaxtyping import Bool, Float

from maskattn._problems import Problems
from maskattn.attention import Call, Framework, Options, choose, prepare
from maskattn.biases import Bias
from maskattn.masks import Mask
from maskattn.typing import EmptyRows, KernelName, NumPyArray, Precision, SharedAxis
from maskattn_torch import _autocast, _sharded, auto, lower, rng
from maskattn_torch._short import attend
from maskattn_torch.kernels import KERNELS
from maskattn_torch.types import Array, Given, Operand, RandomKey

__all__ = ["FRAMEWORK", "attention", "explain"]


@overload
def attention(
    query: Float[Operand, "B L H D"],
    key: Float[Operand, "B S K D"],
    value: Float[Operand, "B S K Dv"],
    mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[Options[Operand]],
) -> Float[Array, "B L H Dv"]: ...
@overload
def attention(
    query: Float[Operand, "B L H D"],
    key: Float[Operand, "B S K D"],
    value: Float[Operand, "B S K Dv"],
    mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
    *,
    return_lse: Literal[True],
    **options: Unpack[Options[Operand]],
) -> tuple[Float[Array, "B L H Dv"], Float[Array, "B L H"]]: ...
@overload
def attention(
    query: Float[Operand, "B L H D"],
    key: Float[Operand, "B S K D"],
    value: Float[Operand, "B S K Dv"],
    mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
    *,
    return_lse: bool,
    **options: Unpack[Options[Operand]],
) -> Float[Array, "B L H Dv"] | tuple[Float[Array, "B L H Dv"], Float[Array, "B L H"]]: ...
def attention(
    query: Float[Operand, "B L H D"],
    key: Float[Operand, "B S K D"],
    value: Float[Operand, "B S K Dv"],
    mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
    *,
    bias: Bias | Float[Given, "#B #H #L #S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Operand, " H"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: RandomKey | None = None,
    dropout_broadcast: tuple[SharedAxis, ...] = (),
    empty_rows: EmptyRows = "zero",
    kernel: KernelName = "auto",
    precision: Precision = "highest",
    return_lse: bool = False,
    blocks: tuple[int, int] | None = None,
) -> Float[Array, "B L H Dv"] | tuple[Float[Array, "B L H Dv"], Float[Array, "B L H"]]:
    """Masked multi-head attention: softmax(softcap(scale * q.k) + bias) v, over the keys that the mask allows.

    Query, key and value may be DTensors of one mesh: what is sharded by batch, heads or queries stays so, and the
    results are the DTensors that one device's would be (`explain` says what is gathered for it).

    Args:
        query: [B, L, H, D], float64, float32, bfloat16 or float16.
        key: [B, S, K, D], the same dtype; H must be divisible by K, and head h reads key/value head h // (H // K).
        value: [B, S, K, Dv], the same dtype. Autocast lowers nothing; but under it the three may differ in dtype,
            and are then taken in its own, as SDPA takes all.
        mask: a Mask, or a bool array that broadcasts to [B, H, L, S]; True = may attend. None allows everything.
        bias: added to the logits after softcap: a Bias, or a float array that broadcasts to [B, H, L, S]. -inf forbids,
            as a mask does.
        scale: multiplies query times key (default 1 / sqrt(D)).
        softcap: c > 0 replaces a logit x by c * tanh(x / c).
        sinks: [H], one more logit per head, in the softmax's denominator only.
        dropout_rate: the probability, in [0, 1), that a weight is dropped after the softmax. Weights are multiplied by
            keep / (1 - dropout_rate); the log-sum-exp does not change.
        dropout_key: which weights are dropped, needed where dropout_rate is above 0: a seed in [0, 2**31), or
            two uint32 words. The same key drops the
            same weights in both frameworks, with every kernel.
        dropout_broadcast: the axes, of "batch" and "heads", that share one draw. () draws for every weight, as PyTorch
            does; ("batch", "heads") is the default of Flax.
        empty_rows: what a row gives that may attend to nothing and has no sink. "zero": output +0, log-sum-exp -inf, no
            gradient. "nan": output NaN. "mean": the average of all values. "error": raises; where the data of mask or
            bias are traced it cannot be checked, and that is what the error says (in a compiled graph, always).
        kernel: "reference", "exact", "blockwise", "fused", or "auto", which chooses (see `explain`; on CUDA it may
            compile a kernel for a large call, unless `maskattn_torch.compile_flex` is "never"). A kernel named here
            runs, or raises with every reason why it cannot; another never takes its place.
        precision: "highest", "high" or "default", PyTorch's float32 matmul precision on CUDA devices ("default" leaves
            the process's setting); on the CPU it changes nothing.
        return_lse: also return the log-sum-exp of each row.
        blocks: (queries, keys) of a tile, for a kernel that works in tiles; None leaves it the choice.

    Returns:
        The output [B, L, H, Dv] in the dtype of the inputs, or (output, lse) with lse [B, L, H] in float64 for float64
        inputs and float32 otherwise.

    Raises:
        TypeError, ValueError: one error that lists everything wrong with the arguments.
    """
    call = Call.of(
        query=query,
        key=key,
        value=value,
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        dropout_broadcast=dropout_broadcast,
        empty_rows=empty_rows,
        kernel=kernel,
        precision=precision,
        return_lse=return_lse,
        blocks=blocks,
    )
    return attend(call, FRAMEWORK)


def explain(
    query: Float[Operand, "B L H D"],
    key: Float[Operand, "B S K D"],
    value: Float[Operand, "B S K Dv"],
    mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
    **keywords: Unpack[Options[Operand]],
) -> tuple[str, str]:
    """Which kernel `attention` would run for these arguments, and why: ("blockwise", "..."). Nothing is computed.

    For DTensors: on this device, and what has to be gathered; nothing is sent. Arguments and errors as in `attention`.
    """
    call = Call(query, key, value, mask, **keywords)
    if FRAMEWORK.spread(call) is not None:
        return _sharded.explain(call, FRAMEWORK)
    return choose(prepare(call, FRAMEWORK), FRAMEWORK)


def _check(problems: Problems, operands: dict[str, Operand]) -> None:
    query = operands["query"]
    for name, x in operands.items():
        if x is not query and isinstance(x, torch.Tensor) and isinstance(query, torch.Tensor):
            if x.device != query.device:
                problems.value(f"{name} is on {x.device}, but query on {query.device}")


def _given(call: Call[Operand]) -> Call[Operand]:
    """Under autocast, query, key and value of several dtypes in the one that it computes in, as SDPA has them."""
    query, key, value = arrays = call.query, call.key, call.value
    dtypes = {x.dtype for x in arrays if isinstance(x, torch.Tensor)}
    if len(dtypes) < 2 or not isinstance(query, torch.Tensor) or not _autocast.is_on(query.device):
        return call
    if not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        return call
    dtype = torch.get_autocast_dtype(query.device.type)
    return replace(call, query=query.to(dtype), key=key.to(dtype), value=value.to(dtype))


def _concrete(x: Given) -> NumPyArray | None:
    """The data of a mask or bias as NumPy, or None where they are traced (compiled code, torch.func)."""
    if not isinstance(x, torch.Tensor):
        return np.asarray(x)
    if torch.compiler.is_compiling():
        return None
    try:
        x = x.detach().cpu()
        return (x.double() if x.is_floating_point() else x).numpy()
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def _facts(call: Call[Operand]) -> Hashable | None:
    """What `Framework.facts` is: for calls with nothing that has to be looked at each time. Types are among the facts,
    since 1 equals True.
    """
    if call.sinks is not None or call.dropout_key is not None or call.blocks is not None or call.dropout_broadcast:
        return None
    if torch.compiler.is_compiling():
        return None
    query, key, value = call.query, call.key, call.value
    options = (call.scale, call.softcap, call.dropout_rate, call.empty_rows, call.kernel, call.precision)
    try:
        return (
            (query.shape, query.dtype, query.device, type(query)),
            (key.shape, key.dtype, key.device, type(key)),
            (value.shape, value.dtype, value.device, type(value)),
            (options, *map(type, options), call.return_lse is True, call.return_lse is False),
            type(call.dropout_broadcast),
        )
    except AttributeError:  # no tensors
        return None


FRAMEWORK: Framework[Array] = Framework(
    kernels=KERNELS,
    auto=auto.choose,
    operand="a torch.Tensor",
    operands=(torch.Tensor,),
    keys="a seed or two uint32 words of PyTorch or NumPy",
    arrays=(torch.Tensor, np.ndarray),
    check=_check,
    convert=lambda x: x,
    bind=lambda node, query: lower.bind(node, device=query.device),
    words=lambda key, query: rng.words(key, query.device),
    concrete=_concrete,
    compiling=torch.compiler.is_compiling,
    facts=_facts,
    given=_given,
    spread=lambda call: _sharded.spread(FRAMEWORK, call),
    short=attend,
)
