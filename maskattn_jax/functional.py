"""attention(...): checks a call, binds its mask and bias to JAX, chooses a kernel and runs it."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from maskattn._problems import Problems
from maskattn.attention import Call, Framework, Options, attend, choose, prepare
from maskattn.biases import Bias
from maskattn.masks import Mask
from maskattn.typing import EmptyRows, KernelName, NumPyArray, Precision, SharedAxis
from maskattn_jax import auto, lower, rng
from maskattn_jax._gathered import gathered
from maskattn_jax._scope import own_modes, plain
from maskattn_jax.kernels import KERNELS
from maskattn_jax.types import Array, Given, Operand, RandomKey

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
@own_modes
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

    Args:
        query: [B, L, H, D], float64, float32, bfloat16 or float16 (float64 needs jax_enable_x64).
        key: [B, S, K, D], the same dtype; H must be divisible by K, and head h reads key/value head h // (H // K).
        value: [B, S, K, Dv], the same dtype.
        mask: a Mask, or a bool array that broadcasts to [B, H, L, S]; True = may attend. None allows everything.
        bias: added to the logits after softcap: a Bias, or a float array that broadcasts to [B, H, L, S]. -inf forbids,
            as a mask does.
        scale: multiplies query times key (default 1 / sqrt(D)).
        softcap: c > 0 replaces a logit x by c * tanh(x / c).
        sinks: [H], one more logit per head, in the softmax's denominator only.
        dropout_rate: the probability, in [0, 1), that a weight is dropped after the softmax. Weights are multiplied by
            keep / (1 - dropout_rate); the log-sum-exp does not change.
        dropout_key: which weights are dropped, needed where dropout_rate is above 0: a seed in [0, 2**31),
            two uint32 words, or a `jax.random.key`. The same key drops the
            same weights in both frameworks, with every kernel.
        dropout_broadcast: the axes, of "batch" and "heads", that share one draw. () draws for every weight, as PyTorch
            does; ("batch", "heads") is the default of Flax.
        empty_rows: what a row gives that may attend to nothing and has no sink. "zero": output +0, log-sum-exp -inf, no
            gradient. "nan": output NaN. "mean": the average of all values. "error": raises; where the data of mask or
            bias are traced it cannot be checked, and that is what the error says.
        kernel: "reference", "exact", "blockwise", "fused", or "auto", which chooses (see `explain`). A kernel named
            here runs, or raises with every reason why it cannot; another never takes its place.
        precision: "highest", "high" or "default", the `jax.lax.Precision` of the products (the CPU's are always full).
        return_lse: also return the log-sum-exp of each row.
        blocks: (queries, keys) of a tile, for a kernel that works in tiles (on a GPU they are powers of two, and no
            more than it has room for); None leaves it the choice.

    Returns:
        The output [B, L, H, Dv] in the dtype of the inputs, or (output, lse) with lse [B, L, H] in float64 for float64
        inputs and float32 otherwise.

    Raises:
        TypeError, ValueError: one error that lists everything wrong with the arguments.
    """
    query, key, value, mask, bias, sinks = map(plain, (query, key, value, mask, bias, sinks))
    call = Call(
        query,
        key,
        value,
        mask,
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


@own_modes
def explain(
    query: Float[Operand, "B L H D"],
    key: Float[Operand, "B S K D"],
    value: Float[Operand, "B S K Dv"],
    mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
    **keywords: Unpack[Options[Operand]],
) -> tuple[str, str]:
    """Which kernel `attention` would run for these arguments, and why: ("blockwise", "..."). Nothing is computed.

    For arrays on a mesh of devices it also says what is gathered.

    Arguments and errors as in `attention`.
    """
    given: dict[str, Any] = {name: plain(x) for name, x in keywords.items()}
    call = prepare(Call(*map(plain, (query, key, value, mask)), **given), FRAMEWORK)
    kernel, why = choose(call, FRAMEWORK)
    sent = gathered(kernel, call)
    return kernel, f"{why}; {sent}" if sent else why


def _check(problems: Problems, operands: dict[str, Operand]) -> None:
    for name, x in operands.items():
        if isinstance(x, _ARRAYS) and x.dtype == np.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            problems.value(f"{name} is float64, which JAX holds only where jax_enable_x64 is on")


def _concrete(x: Given) -> NumPyArray | None:
    """The data of a mask or bias as NumPy, or None where they are traced."""
    x = jax.lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


_ARRAYS = (jax.Array, np.ndarray)

FRAMEWORK: Framework[Array] = Framework(
    kernels=KERNELS,
    auto=auto.choose,
    operand="a JAX or NumPy array",
    operands=_ARRAYS,
    keys="a seed, two uint32 words of JAX or NumPy, or a jax.random.key",
    arrays=_ARRAYS,
    check=_check,
    convert=jnp.asarray,
    bind=lambda node, query: lower.bind(node),
    words=lambda key, query: rng.words(key),
    concrete=_concrete,
    compiling=lambda: False,
)
