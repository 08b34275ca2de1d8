"""The Linen faces of multihead.py and seed.py: the same configuration, arguments and parameter names."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from maskattn.config import AttentionConfig
from maskattn.modules import check_config
from maskattn_jax.dropout import drop, module_keys
from maskattn_jax.multihead import _attend, _own, _prepare, _project_by, _project_in, _rates
from maskattn_jax.rng import words
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
            dropout_key: a seed in [0, 2**31), two uint32 words, or a `jax.random.key`; None takes
                `make_rng("dropout")`. Needed where dropout is on. Weights and output are dropped by the two keys that
                `dropout.module_keys` makes of it, each number by itself. The key that was used is sown in
                "intermediates", as `dropout_key`.
            deterministic: True applies no dropout; None means the attribute.
            kernel: as in `attention`; "exact" computes the projections exactly too.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        check_config("MultiHeadAttention", self.config)
        config = self.config
        deterministic = True if not (config.dropout_rate or config.out_dropout_rate) else _merge(self, deterministic)
        rates = _rates(config, deterministic)
        if any(rates) and dropout_key is None and self.has_rng("dropout"):
            dropout_key = self.make_rng("dropout")
        query, key, value = _prepare("MultiHeadAttention", config, query, key, value, dropout_key, deterministic)
        weights_key, out_key = module_keys(dropout_key) if any(rates) else (None, None)
        if any(rates):
            self.sow("intermediates", "dropout_key", words(dropout_key))
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
        out = _attend(config, query, key, value, mask, bias, rates[0], weights_key, kernel)
        out = self._project_out(out, kernel) if config.project else out.reshape(*out.shape[:2], config.output_dim)
        return drop(out, rates[1], out_key, _own(kernel, "drop")) if rates[1] else out

    def _project_out(self, out: Array, kernel: str) -> Array:
        layer, own = self._layer("out", (self.config.output_dim,), self.config.out_bias), _own(kernel, "linear")
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
