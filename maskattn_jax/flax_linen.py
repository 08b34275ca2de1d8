"""MultiHeadDotProductAttention with the attributes and arguments of `flax.linen`'s: one changes the import.

It learns its widths from its first input, as Flax's does, and has its name, by which Flax names submodules.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.linear import default_kernel_init
from jaxtyping import Bool, Float, Num

from maskattn._problems import Problems
from maskattn.layer import Norm
from maskattn.masks import Mask
from maskattn.typing import KernelName, SharedAxis
from maskattn_jax import linen
from maskattn_jax._flax_calls import flax_sizes, refuse, zero_one
from maskattn_jax._scope import plain
from maskattn_jax.cache import Cache
from maskattn_jax.rng import words
from maskattn_jax.types import Array, DType, Given, Initializer, Operand, RandomKey

__all__ = ["MultiHeadAttention", "MultiHeadDotProductAttention"]


class MultiHeadDotProductAttention(nn.Module):
    """`flax.linen.MultiHeadDotProductAttention` by the kernels of maskattn: its attributes, parameters, first numbers
    and dropout.

    Rows that may attend to nothing give the mean of all values, as Flax's do. What else is not as in Flax is said at
    the attributes.

    Attributes:
        num_heads: heads.
        dtype, param_dtype: of the computation, and of the parameters.
        qkv_features: width of all heads together; None: that of inputs_q.
        out_features: width of the output; None: that of inputs_q.
        broadcast_dropout: True: one draw of dropout for all rows and heads.
        dropout_rate: of the attention weights.
        deterministic: True applies no dropout; to be given here or in the call where dropout_rate is above 0.
        precision: of all products, a `jax.lax.Precision` or its name.
        kernel_init, out_kernel_init, bias_init, out_bias_init: how the parameters begin; None of an `out_` one takes
            the other.
        use_bias: whether the four projections have biases.
        attention_fn: None; any other is refused, since it is what this class replaces.
        decode: whether calls read and write the cache in the collection "cache", which `init` makes, as long as its
            input is. Any number of tokens may be given, where Flax takes one; none attends to a later one.
        normalize_qk: layer norms of queries and keys, without bias.
        force_fp32_for_softmax: the softmax is in float32 at least, whatever this says.
        qkv_dot_general, out_dot_general, qkv_dot_general_cls, out_dot_general_cls: None; any other is refused.
        qk_attn_weights_einsum_cls, attn_weights_value_einsum_cls: None; any other is refused.
    """

    num_heads: int
    dtype: DType | None = None
    param_dtype: DType = jnp.float32
    qkv_features: int | None = None
    out_features: int | None = None
    broadcast_dropout: bool = True
    dropout_rate: float = 0.0
    deterministic: bool | None = None
    precision: Any = None
    kernel_init: Initializer = default_kernel_init
    out_kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros_init()
    out_bias_init: Initializer | None = None
    use_bias: bool = True
    attention_fn: None = None
    decode: bool = False
    normalize_qk: bool = False
    force_fp32_for_softmax: bool = False
    qkv_dot_general: None = None
    out_dot_general: None = None
    qkv_dot_general_cls: None = None
    out_dot_general_cls: None = None
    qk_attn_weights_einsum_cls: None = None
    attn_weights_value_einsum_cls: None = None

    @nn.compact
    def __call__(
        self,
        inputs_q: Float[Operand, "*B L E"],
        inputs_k: Float[Operand, "*B S kdim"] | None = None,
        inputs_v: Float[Operand, "*B S vdim"] | None = None,
        *,
        inputs_kv: Float[Operand, "*B S kdim"] | None = None,
        mask: Mask | Bool[Given, "*#scores"] | Num[Given, "*#scores"] | None = None,
        deterministic: bool | None = None,
        dropout_rng: RandomKey | None = None,
        sow_weights: bool = False,
        kernel: KernelName = "auto",
    ) -> Float[Array, "*B L out_dim"]:
        """inputs_q [..., L, E], inputs_k [..., S, kdim], inputs_v [..., S, vdim] -> [..., L, out_features].

        Args:
            inputs_q, inputs_k, inputs_v: inputs_k defaults to inputs_q, inputs_v to inputs_k.
            inputs_kv: both inputs_k and inputs_v.
            mask: a Mask, or an array that broadcasts to [..., H, L, S], bool or 0 and 1 of any dtype; True = may
                attend. Where decoding, an array of one query, [..., 1, size], is that of this step, and a Mask that of
                the whole sequence.
            deterministic: True applies no dropout; None means the attribute.
            dropout_rng: the key of dropout; None takes `make_rng("dropout")`.
            sow_weights: sow the weights before dropout in "intermediates", as `attention_weights`.
            kernel: as in `attention`.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        where = type(self).__name__
        refuse(where, {name: getattr(self, name) for name in _REPLACEABLE})
        problems = Problems(where)
        if inputs_kv is not None and (inputs_k is not None or inputs_v is not None):
            problems.type("inputs_kv is both inputs_k and inputs_v: give either it or them")
        if mask is not None and not isinstance(mask, Mask):
            mask = zero_one(problems, plain(mask))
        problems.raise_if_any()
        key = inputs_k if inputs_kv is None else inputs_kv
        inner = self._inner(where, inputs_q, inputs_q if key is None else key, inputs_v)
        nn.share_scope(self, inner)
        given: dict[str, Any] = {
            "mask": mask,
            "deterministic": deterministic,
            "dropout_key": dropout_rng,
            "sow_weights": sow_weights,
            "kernel": kernel,
        }
        inputs: tuple[Any, ...] = inputs_q, key, inputs_v
        if not self.decode:
            out: Array = inner(*inputs, **given)
            return out
        return self._step(inner, inputs, given)

    def _inner(self, where: str, query: Operand, key: Operand, value: Operand | None) -> linen.MultiHeadAttention:
        width = query.shape[-1]
        config = flax_sizes(
            where,
            self.num_heads,
            width,
            key.shape[-1],
            self.qkv_features,
            self.out_features,
            vdim=(key if value is None else value).shape[-1],
            qkv_bias=self.use_bias,
            out_bias=self.use_bias,
            dropout_rate=self.dropout_rate,
            qk_norm=Norm("layer") if self.normalize_qk else None,
        )
        return _Inner(
            config,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            deterministic=self.deterministic,
            precision=self.precision,
            kernel_init=self.kernel_init,
            out_kernel_init=self.out_kernel_init,
            bias_init=self.bias_init,
            out_bias_init=self.out_bias_init,
            dropout_broadcast=get_args(SharedAxis) if self.broadcast_dropout else (),
        )

    def _step(self, inner: linen.MultiHeadAttention, inputs: tuple[Any, ...], given: dict[str, Any]) -> Array:
        """A call that reads and writes the cache; the first one, of `init`, makes it."""
        config, query = inner.config, inputs[0]
        starts = not self.has_variable("cache", "cached_key")
        dtype = self.dtype or jnp.promote_types(query.dtype, self.param_dtype)
        rows = (query if inputs[1] is None else inputs[1]).shape[:-1]
        shape = (*rows, config.num_kv_heads, config.head_dim)
        key = self.variable("cache", "cached_key", jnp.zeros, shape, dtype)
        value = self.variable("cache", "cached_value", jnp.zeros, shape, dtype)
        index = self.variable("cache", "cache_index", lambda: jnp.array(0, dtype=jnp.int32))
        if starts:
            out: Array = inner(*inputs, **given)
            return out
        lead = key.value.shape[:-3]
        if lead != tuple(query.shape[:-2]):
            raise ValueError(
                f"{type(self).__name__}: the cache has the leading axes {lead}, but the input has "
                f"{tuple(query.shape[:-2])}"
            )
        keys, values = (x.value.reshape(math.prod(lead), *x.value.shape[-3:]) for x in (key, value))
        cache = Cache(keys, values, jnp.broadcast_to(index.value, (math.prod(lead),)))
        out, cache = inner(*inputs, **given, is_causal=True, cache=cache)
        key.value, value.value = cache.key.reshape(key.value.shape), cache.value.reshape(value.value.shape)
        index.value = index.value + query.shape[-2]
        return out


_REPLACEABLE = (
    "attention_fn",
    "qkv_dot_general",
    "out_dot_general",
    "qkv_dot_general_cls",
    "out_dot_general_cls",
    "qk_attn_weights_einsum_cls",
    "attn_weights_value_einsum_cls",
)


class MultiHeadAttention(MultiHeadDotProductAttention):
    """`MultiHeadDotProductAttention` by its other name, by which Flax names submodules."""


class _Inner(linen.MultiHeadAttention):
    """Its dropout is drawn as Flax draws it: from the key itself, and of nothing but the weights."""

    def _draws(self, key: RandomKey) -> tuple[Array | None, Array | None]:
        return words(key), None
