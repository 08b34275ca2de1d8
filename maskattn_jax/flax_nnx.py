"""MultiHeadAttention with the arguments of `flax.nnx.MultiHeadAttention`: one changes the import.

It is a class of its own, beside `maskattn_jax.MultiHeadAttention`, since the two count differently: Flax's begins with
(num_heads, in_features), ours with (embed_dim, num_heads), and a constructor for both would take one for the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.nnx.nn.linear import default_bias_init, default_kernel_init
from jax.lax import PrecisionLike
from jaxtyping import Bool, Float, Num

from maskattn._problems import Problems
from maskattn.layer import Norm
from maskattn.masks import Mask
from maskattn.typing import KernelName, SharedAxis
from maskattn_jax import multihead
from maskattn_jax._flax_calls import flax_sizes, refuse, zero_one
from maskattn_jax._scope import plain
from maskattn_jax.cache import Cache
from maskattn_jax.rng import words
from maskattn_jax.types import Array, DType, Given, Initializer, Operand, RandomKey, Sharding

__all__ = ["MultiHeadAttention"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class MultiHeadAttention(multihead.MultiHeadAttention):
    """`flax.nnx.MultiHeadAttention` by the kernels of maskattn: its arguments, parameters, first numbers and dropout.

    Rows that may attend to nothing give the mean of all values, as Flax's do. What else is not as in Flax is said at
    the arguments.

    Args:
        num_heads: heads.
        in_features: width of the query input.
        qkv_features: width of all heads together; None: in_features.
        out_features: width of the output; None: in_features.
        num_kv_heads: key/value heads; None: num_heads.
        in_kv_features: width of the key and value inputs; None: in_features.
        dtype, param_dtype: of the computation, and of the parameters.
        broadcast_dropout: True: one draw of dropout for all rows and heads.
        dropout_rate: of the attention weights.
        deterministic: True applies no dropout; to be given here or in the call where dropout_rate is above 0.
        precision: of all products.
        kernel_init, out_kernel_init, bias_init, out_bias_init: how the parameters begin; None of an `out_` one takes
            the other.
        use_bias: whether the four projections have biases.
        attention_fn: None; any other is refused, since it is what this class replaces.
        decode: whether calls read and write the cache that `init_cache` makes; None is False.
        normalize_qk: layer norms of queries and keys, without bias.
        qkv_promote_dtype, out_promote_dtype: of the projections.
        ln_promote_dtype: None; any other is refused, the norms compute in float32 at least.
        qkv_dot_general, out_dot_general, qkv_dot_general_cls, out_dot_general_cls: None; any other is refused.
        rngs: the source of parameters and, where keep_rngs, of the keys of dropout.
        keep_rngs: whether the "dropout" stream is forked.
        kernel_metadata, out_kernel_metadata, bias_metadata, out_bias_metadata: of the projections' parameters; an
            empty `out_` one takes the other.
        query_ln_scale_metadata, key_ln_scale_metadata: of the norms' scales.

    Raises:
        TypeError, ValueError: names each argument at fault.
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        qkv_features: int | None = None,
        out_features: int | None = None,
        num_kv_heads: int | None = None,
        in_kv_features: int | None = None,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        broadcast_dropout: bool = True,
        dropout_rate: float = 0.0,
        deterministic: bool | None = None,
        precision: PrecisionLike = None,
        kernel_init: Initializer = default_kernel_init,
        out_kernel_init: Initializer | None = None,
        bias_init: Initializer = default_bias_init,
        out_bias_init: Initializer | None = None,
        use_bias: bool = True,
        attention_fn: None = None,
        decode: bool | None = None,
        normalize_qk: bool = False,
        qkv_promote_dtype: Callable[..., object] = promote_dtype,
        out_promote_dtype: Callable[..., object] = promote_dtype,
        ln_promote_dtype: Callable[..., object] | None = None,
        qkv_dot_general: None = None,
        out_dot_general: None = None,
        qkv_dot_general_cls: None = None,
        out_dot_general_cls: None = None,
        rngs: nnx.Rngs,
        keep_rngs: bool = True,
        kernel_metadata: Mapping[str, object] = _NOTHING,
        out_kernel_metadata: Mapping[str, object] = _NOTHING,
        bias_metadata: Mapping[str, object] = _NOTHING,
        out_bias_metadata: Mapping[str, object] = _NOTHING,
        query_ln_scale_metadata: Mapping[str, object] = _NOTHING,
        key_ln_scale_metadata: Mapping[str, object] = _NOTHING,
    ) -> None:
        where = type(self).__name__
        refuse(
            where,
            {
                "attention_fn": attention_fn,
                "ln_promote_dtype": None if ln_promote_dtype is promote_dtype else ln_promote_dtype,
                "qkv_dot_general": qkv_dot_general,
                "out_dot_general": out_dot_general,
                "qkv_dot_general_cls": qkv_dot_general_cls,
                "out_dot_general_cls": out_dot_general_cls,
            },
        )
        config = flax_sizes(
            where,
            num_heads,
            in_features,
            in_kv_features,
            qkv_features,
            out_features,
            num_kv_heads=num_kv_heads,
            qkv_bias=use_bias,
            out_bias=use_bias,
            dropout_rate=dropout_rate,
            qk_norm=Norm("layer") if normalize_qk else None,
        )
        scales: dict[str, Any] = {"query_norm.scale": query_ln_scale_metadata, "key_norm.scale": key_ln_scale_metadata}
        ones: Any = nnx.initializers.ones_init()
        super().__init__(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            out_kernel_init=out_kernel_init,
            bias_init=bias_init,
            out_bias_init=out_bias_init,
            part_inits={name: nnx.with_metadata(ones, **given) for name, given in scales.items() if given},
            kernel_metadata=kernel_metadata,
            out_kernel_metadata=out_kernel_metadata or kernel_metadata,
            bias_metadata=bias_metadata,
            out_bias_metadata=out_bias_metadata or bias_metadata,
            qkv_promote_dtype=qkv_promote_dtype,
            out_promote_dtype=out_promote_dtype,
            dropout_broadcast=get_args(SharedAxis) if broadcast_dropout else (),
            deterministic=deterministic,
            keep_rngs=keep_rngs,
            rngs=rngs,
        )
        self.decode = decode
        self.cached_key: nnx.Cache[Array] | None = nnx.data(None)
        self.cached_value: nnx.Cache[Array] | None = nnx.data(None)
        self.cache_index: nnx.Cache[Array] | None = nnx.data(None)

    def __call__(  # type: ignore[override]
        self,
        inputs_q: Float[Operand, "*B L E"],
        inputs_k: Float[Operand, "*B S kdim"] | None = None,
        inputs_v: Float[Operand, "*B S vdim"] | None = None,
        *,
        mask: Mask | Bool[Given, "*#scores"] | Num[Given, "*#scores"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | RandomKey | None = None,
        sow_weights: bool = False,
        decode: bool | None = None,
        is_causal: bool = False,
        out_sharding: Sharding | None = None,
        qkv_sharding: Sharding | None = None,
        kernel: KernelName = "auto",
    ) -> Float[Array, "*B L out_dim"]:
        """inputs_q [..., L, in_features], inputs_k and inputs_v [..., S, in_kv_features] -> [..., L, out_features].

        Args:
            inputs_q, inputs_k, inputs_v: inputs_k defaults to inputs_q, inputs_v to inputs_k.
            mask: a Mask, or an array that broadcasts to [..., H, L, S], bool or 0 and 1 of any dtype; True = may
                attend. Where decoding, an array of one query, [..., 1, size], is that of this step, and a Mask that of
                the whole sequence.
            deterministic: True applies no dropout; None means the attribute.
            rngs: gives the key of dropout; None takes the module's own.
            sow_weights: sow the weights before dropout as `attention_weights`.
            decode: whether this call reads and writes the cache; None means the attribute. Any number of tokens may be
                given, where Flax takes one; none attends to a later one.
            is_causal: no query attends to a later key, counted from the start of both.
            out_sharding, qkv_sharding: as in `maskattn_jax.MultiHeadAttention.__call__`.
            kernel: as in `attention`.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        where = type(self).__name__
        if mask is not None and not isinstance(mask, Mask):
            problems = Problems(where)
            mask = zero_one(problems, plain(mask))
            problems.raise_if_any()
        given: dict[str, Any] = {
            "mask": mask,
            "deterministic": deterministic,
            "dropout_key": rngs,
            "sow_weights": sow_weights,
            "is_causal": is_causal,
            "out_sharding": out_sharding,
            "qkv_sharding": qkv_sharding,
            "kernel": kernel,
        }
        inputs: tuple[Any, ...] = inputs_q, inputs_k, inputs_v
        if not (self.decode if decode is None else decode):
            out: Array = super().__call__(*inputs, **given)
            return out
        out, cache = super().__call__(*inputs, **{**given, "is_causal": True}, cache=self._cache(inputs_q.shape))
        self._keep(cache, inputs_q.shape[-2])
        return out

    def _draws(self, key: RandomKey) -> tuple[Array | None, Array | None]:
        """The key itself: Flax draws from it directly, and drops nothing of the output."""
        return words(key), None

    def _cache(self, shape: tuple[int, ...]) -> Cache:
        """The cache as a value, its leading axes as one."""
        where = type(self).__name__
        if self.cached_key is None or self.cached_value is None or self.cache_index is None:
            raise ValueError(f"{where}: decode needs a cache: call init_cache first")
        key, value = self.cached_key[...], self.cached_value[...]
        if key.shape[:-3] != tuple(shape[:-2]):
            raise ValueError(
                f"{where}: the cache has the leading axes {key.shape[:-3]}, but the input has {tuple(shape[:-2])}"
            )
        batch = math.prod(key.shape[:-3])
        key, value = (x.reshape(batch, *x.shape[-3:]) for x in (key, value))
        return Cache(key, value, jnp.broadcast_to(self.cache_index[...], (batch,)))

    def _keep(self, cache: Cache, more: int) -> None:
        """Store a cache that has `more` tokens than the one before."""
        assert self.cached_key is not None and self.cached_value is not None and self.cache_index is not None
        self.cached_key[...] = cache.key.reshape(self.cached_key.shape)
        self.cached_value[...] = cache.value.reshape(self.cached_value.shape)
        self.cache_index[...] = self.cache_index[...] + more

    def init_cache(self, input_shape: Sequence[int], dtype: DType = jnp.float32) -> None:
        """Make an empty cache.

        Args:
            input_shape: [..., size, width]: the leading axes of the inputs, and how many tokens there will be.
            dtype: of keys and values, that of the computation.

        Raises:
            ValueError: input_shape has fewer than two axes.
        """
        if len(input_shape) < 2:
            raise ValueError(f"{type(self).__name__}: input_shape must be [..., size, width], got {tuple(input_shape)}")
        config = self.config
        shape = (*input_shape[:-1], config.num_kv_heads)
        self.cached_key = nnx.Cache(jnp.zeros((*shape, config.head_dim), dtype))
        self.cached_value = nnx.Cache(jnp.zeros((*shape, config.v_head_dim), dtype))
        self.cache_index = nnx.Cache(jnp.array(0, dtype=jnp.int32))

    def set_view(
        self,
        deterministic: bool | None = None,
        decode: bool | None = None,
        batch_size: int | Sequence[int] | None = None,
        max_length: int | None = None,
    ) -> None:
        """What `nnx.view` calls.

        Args:
            deterministic: True applies no dropout.
            decode: whether calls read and write the cache.
            batch_size, max_length: of a new cache, both or neither.

        Raises:
            TypeError: one of the two is given without the other.
        """
        super().set_view(deterministic)
        self.decode = self.decode if decode is None else decode
        if (batch_size is None) != (max_length is None):
            raise TypeError(f"{type(self).__name__}: batch_size and max_length make a cache: give both or neither")
        if batch_size is not None and max_length is not None:
            rows = (batch_size,) if isinstance(batch_size, int) else tuple(batch_size)
            self.init_cache((*rows, max_length, self.config.embed_dim), self.dtype or self.param_dtype)
