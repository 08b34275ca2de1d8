"""attention_fn: what the attention modules of Flax, Linen's and NNX's, take as `attention_fn`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.nnx.nn.dtypes import promote_dtype as flax_promote_dtype
from jaxtyping import Bool, Float, Integer

from maskattn._problems import Problems
from maskattn.attention import Call
from maskattn.biases import Bias
from maskattn.masks import Mask
from maskattn.modules import with_causal
from maskattn.typing import EmptyRows, KernelName, SharedAxis
from maskattn_jax._flax_calls import zero_one
from maskattn_jax._precision import own_precision
from maskattn_jax._scope import own_modes, plain
from maskattn_jax._weights import weights
from maskattn_jax.functional import attention
from maskattn_jax.types import Array, DType, Given, Operand, RandomKey

__all__ = ["attention_fn"]


@own_modes
def attention_fn(
    query: Float[Operand, "*batch L H D"],
    key: Float[Operand, "*batch S K D"],
    value: Float[Operand, "*batch S K Dv"],
    bias: Bias | Float[Given, "*#scores"] | None = None,
    mask: Mask | Bool[Given, "*#scores"] | Integer[Given, "*#scores"] | Float[Given, "*#scores"] | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: RandomKey | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DType | None = None,
    precision: jax.lax.PrecisionLike = None,
    module: linen.Module | nnx.Module | None = None,
    *,
    is_causal: bool = False,
    force_fp32_for_softmax: bool = False,
    promote_dtype: Callable[..., Any] = flax_promote_dtype,
    einsum_dot_general: None = None,
    qk_attn_weights_einsum: None = None,
    attn_weights_value_einsum: None = None,
    empty_rows: EmptyRows = "zero",
    kernel: KernelName = "auto",
) -> Float[Array, "*batch L H Dv"]:
    """`attention` with the arguments of `flax.linen.dot_product_attention` and `flax.nnx.dot_product_attention`.

    For `nn.MultiHeadDotProductAttention(..., attention_fn=attention_fn)`, its kin, and `nnx.MultiHeadAttention`; with
    other defaults as `functools.partial(attention_fn, empty_rows="mean")`.

    Args:
        query: [..., L, H, D]; the leading axes, none or several, are flattened row-major into the batch.
        key: [..., S, K, D]; H must be divisible by K.
        value: [..., S, K, Dv].
        bias: added to the logits: a Bias, or a float array that broadcasts to [..., H, L, S].
        mask: a Mask (of the flattened batch), or an array that broadcasts to [..., H, L, S], bool or 0 and 1 of any
            dtype; True = may attend.
        broadcast_dropout: True: one draw for all rows and heads; False: each weight has its own.
        dropout_rng: a `jax.random.key`, or two uint32 words; it drops the same weights as in Flax.
        dropout_rate: the probability, in [0, 1), that a weight is dropped.
        deterministic: True drops nothing, whatever the rate and the key.
        dtype: of the computation; None promotes the three to one.
        precision: a `jax.lax.Precision` or its name; None is JAX's own default.
        module: where the weights are sown before dropout, [..., H, L, S], as `attention_weights`.
        is_causal: query i sees no key beyond i, counted from the start of both; what `mask` forbids stays forbidden.
        force_fp32_for_softmax: the softmax is in float32 at least, whatever this says; True sows it so, too.
        promote_dtype: ((query, key, value), dtype=dtype) -> the three in one dtype.
        einsum_dot_general, qk_attn_weights_einsum, attn_weights_value_einsum: only None: there is no product of all
            scores to replace.
        empty_rows: what a row gives that may attend to nothing, as in `attention`; Flax's is "mean".
        kernel: as in `attention`.

    Returns:
        [..., L, H, Dv] in the dtype of the computation.

    Raises:
        TypeError, ValueError: one error that lists what is wrong with the arguments.
    """
    problems = Problems("attention_fn")
    replaced: dict[str, object] = {
        "einsum_dot_general": einsum_dot_general,
        "qk_attn_weights_einsum": qk_attn_weights_einsum,
        "attn_weights_value_einsum": attn_weights_value_einsum,
    }
    for name, given in replaced.items():
        if given is not None:
            problems.value(f"{name} must be None: the kernels make no product of all scores that it could replace")
    chosen = own_precision(problems, precision)
    rate = 0.0 if deterministic else dropout_rate
    if rate and dropout_rng is None:
        problems.value(f"dropout_rng must be given where dropout_rate is {rate} and deterministic is False")
    inputs = promote_dtype(tuple(map(plain, (query, key, value))), dtype=dtype)
    lead = _lead(problems, inputs)
    mask = mask if mask is None or isinstance(mask, Mask) else _mask(problems, plain(mask), lead)
    bias = bias if bias is None or isinstance(bias, Bias) else _flat(problems, "bias", plain(bias), lead)
    problems.raise_if_any()
    query, key, value = (x.reshape(math.prod(lead), *x.shape[-3:]) for x in inputs)
    options: dict[str, Any] = {"bias": bias, "empty_rows": empty_rows, "precision": chosen, "kernel": kernel}
    allowed = with_causal(mask, is_causal)
    dropout: dict[str, Any] = {"dropout_rate": rate}
    if rate:
        dropout |= {"dropout_key": dropout_rng, "dropout_broadcast": get_args(SharedAxis) if broadcast_dropout else ()}
    if module is None:
        out = attention(query, key, value, allowed, **options, **dropout)
    else:
        out, lse = attention(query, key, value, allowed, return_lse=True, **options, **dropout)
        found = weights(lse, Call(query, key, value, allowed, **options))
        found = found.reshape(*lead, *found.shape[1:])
        _sow(module, found if force_fp32_for_softmax else found.astype(query.dtype))
    return out.reshape(*lead, *out.shape[1:])


def _lead(problems: Problems, inputs: tuple[Array, Array, Array]) -> tuple[int, ...]:
    """The axes before [length, heads, width], which the three inputs have in common."""
    shapes = dict(zip(("query", "key", "value"), (tuple(x.shape) for x in inputs), strict=True))
    for name, shape in shapes.items():
        if len(shape) < 3:
            problems.value(f"{name} must be [..., length, heads, head_dim], got shape {shape}")
    found = {shape[:-3] for shape in shapes.values()}
    if not problems and len(found) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        problems.value(f"query, key and value must agree in the axes before the last three, got {listed}")
    problems.raise_if_any()
    return found.pop()


def _mask(problems: Problems, mask: Any, lead: tuple[int, ...]) -> Array | None:
    """A mask of Flax as a bool array for the flattened batch; 0 and 1 of any dtype, which is checked where it can be
    read."""
    allowed = zero_one(problems, mask)
    return None if allowed is None else _flat(problems, "mask", allowed, lead)


def _flat(problems: Problems, name: str, array: Any, lead: tuple[int, ...]) -> Any:
    """An array that broadcasts to [*lead, H, L, S] as one that broadcasts to [B, H, L, S], B the product of `lead`."""
    shape = tuple(getattr(array, "shape", ()))
    rows, rest = shape[:-3], shape[-3:]
    if len(rows) == len(lead) == 1 or not rows:
        return array
    if len(rows) > len(lead) or any(n not in (1, m) for n, m in zip(rows[::-1], lead[::-1], strict=False)):
        problems.value(f"{name} must broadcast to [..., H, L, S] with the leading axes {lead}, got shape {shape}")
        return array
    if set(rows) == {1}:
        return array.reshape(1, *rest)
    return jnp.broadcast_to(array, (*lead, *rest)).reshape(math.prod(lead), *rest)


def _sow(module: Any, found: Float[Array, "... H L S"]) -> None:
    """Leave the weights where Flax's own attention leaves them."""
    if isinstance(module, nnx.Module):
        module.sow(nnx.Intermediate, "attention_weights", found)
    else:
        module.sow("intermediates", "attention_weights", found)
