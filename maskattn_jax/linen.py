"""The Linen faces of multihead.py and seed.py: the same configuration, arguments and parameter names."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskattn.checks import check_config
from maskattn.config import AttentionConfig
from maskattn_jax.multihead import _attend, _own_linear, _prepare, _project_by, _project_in
from maskattn_jax.seed import seed_config, soft_mask

Array = Any

__all__ = ["Attention", "MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    """Multi-head attention built from an `AttentionConfig`.

    Parameters, initialised as `nn.MultiHeadDotProductAttention` initialises (the same numbers from the same key):
    `query`, `key`, `value` with kernels [E, H or K, D] and biases [H or K, D], and `out` with kernel [H, Dv, out] and
    bias [out]. With `project=False` there are none.

    Args:
        config: the sizes and options.
        dtype: of the computation; None follows inputs and parameters (Flax's promotion).
        param_dtype: of the parameters.
        deterministic: True applies no dropout; to be given here or in the call where a rate is above 0.
    """

    config: AttentionConfig
    dtype: Any = None
    param_dtype: Any = jnp.float32
    deterministic: bool | None = None

    @nn.compact
    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        *,
        mask: Any = None,
        bias: Any = None,
        dropout_key: Any = None,
        deterministic: bool | None = None,
        kernel: str = "auto",
    ) -> Array:
        """query [B, L, embed_dim], key [B, S, kdim], value [B, S, vdim] -> [B, L, out_dim].

        Args:
            query, key, value: key defaults to query, value to key.
            mask: a Mask or a bool array that broadcasts to [B, H, L, S]; True = may attend.
            bias: a Bias or a float array that broadcasts to [B, H, L, S], added to the logits.
            dropout_key: unused while dropout is not available.
            deterministic: True applies no dropout; None means the attribute.
            kernel: as in `attention`; "exact" computes the projections exactly too.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        check_config("MultiHeadAttention", self.config)
        config = self.config
        deterministic = True if not (config.dropout_rate or config.out_dropout_rate) else _merge(self, deterministic)
        query, key, value = _prepare("MultiHeadAttention", config, query, key, value, deterministic)
        if config.project:
            layers = (
                self._layer("query", (config.num_heads, config.qk_head_dim), config.qkv_bias),
                self._layer("key", (config.kv_heads, config.qk_head_dim), config.qkv_bias),
                self._layer("value", (config.kv_heads, config.value_head_dim), config.qkv_bias),
            )
            # to initialise, Flax must call its layers
            query, key, value = _project_in(
                layers, (query, key, value), "auto" if self.is_initializing() else kernel, _parameters
            )
        out = _attend(config, query, key, value, mask, bias, kernel)
        if not config.project:
            return out.reshape(*out.shape[:2], config.output_dim)
        layer = self._layer("out", (config.output_dim,), config.out_bias)
        own = _own_linear(kernel)
        if own is None or self.is_initializing():
            return layer(out)
        return _project_by(own, out, *_parameters(layer), 2, self.dtype)

    def _layer(self, name: str, features: tuple[int, ...], use_bias: bool) -> nn.DenseGeneral:
        return nn.DenseGeneral(
            features,
            axis=(-2, -1) if name == "out" else (-1,),
            use_bias=use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision="highest",
            name=name,
        )


def _parameters(layer: nn.DenseGeneral) -> tuple[Array, Array | None]:
    """Kernel and bias (or None) of a bound layer."""
    found = layer.variables["params"]
    return found["kernel"], found.get("bias")


def _merge(module: MultiHeadAttention, deterministic: bool | None) -> bool:
    """The call's `deterministic`, or the module's: where a rate is above 0, one of them must be given."""
    given = module.deterministic if deterministic is None else deterministic
    if given is None:
        raise ValueError(
            "MultiHeadAttention: deterministic must be given, to the module or in the call: a dropout rate is above 0"
        )
    return given


class Attention(nn.Module):
    """The seed module: self-attention with `(1 - mask) * -10000` added to the logits before softmax.

    Arguments as in `maskattn_jax.Attention`, without `rngs`; `deterministic` as in `MultiHeadAttention`.
    """

    dim: int
    num_heads: int = 8
    qkv_bias: bool = False
    qk_scale: float | None = None
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    with_qkv: bool = True
    deterministic: bool | None = None

    def setup(self) -> None:
        """Make the one child, whose parameters are this module's own."""
        self.inner = MultiHeadAttention(
            seed_config(
                self.dim,
                self.num_heads,
                self.qkv_bias,
                self.qk_scale,
                self.attn_drop,
                self.proj_drop,
                self.with_qkv,
            ),
            deterministic=self.deterministic,
        )
        nn.share_scope(self, self.inner)

    def __call__(
        self,
        x: Array,
        attention_mask: Array | None = None,
        *,
        dropout_key: Any = None,
        deterministic: bool | None = None,
        kernel: str = "auto",
    ) -> Array:
        """x [B, N, dim] -> [B, N, dim].

        Args:
            x: the input.
            attention_mask: [B, N], or broadcastable to [B, H, N, N]; 1 = keep, 0 = drop, fractions in between.
            dropout_key, deterministic, kernel: as in `MultiHeadAttention`.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        bias = None if attention_mask is None else soft_mask(attention_mask, x, self.num_heads)
        return self.inner(x, bias=bias, dropout_key=dropout_key, deterministic=deterministic, kernel=kernel)
