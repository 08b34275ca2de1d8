"""MultiHeadAttention: projections around attention(...), its parameters named as Flax names them."""

from __future__ import annotations

from typing import Any, Unpack, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from maskattn.biases import Bias
from maskattn.config import AttentionConfig, ConfigOptions
from maskattn.masks import Mask
from maskattn.modules import dropout_rates, given_config, head_shapes, module_inputs, of_kernel
from maskattn.typing import KernelName
from maskattn_jax._layers import attend_heads, check_array, project_by, project_in
from maskattn_jax._mesh import dot_general
from maskattn_jax._scope import plain
from maskattn_jax.dropout import drop, module_keys
from maskattn_jax.functional import FRAMEWORK
from maskattn_jax.rng import words
from maskattn_jax.types import Array, DType, Given, Operand, RandomKey

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nnx.Module):
    """Multi-head attention: `MultiHeadAttention(config)`, or `MultiHeadAttention(embed_dim, num_heads, ...)`.

    Parameters, initialised as `nnx.MultiHeadAttention` initialises (the same numbers from the same `rngs`): `query`,
    `key`, `value` with kernels [E, H or K, D] and biases [H or K, D], `out` with kernel [H, Dv, out] and bias [out].
    With `project=False` there are none of these. With `sinks=True` there is `sinks` [H], zeros.

    Args:
        config: an `AttentionConfig`; or embed_dim, with num_heads and its other fields by their names.
        num_heads: H, where no configuration is given.
        dtype: of the computation; None follows inputs and parameters (Flax's promotion).
        param_dtype: of the parameters.
        rngs: the source of the initial parameters; where a rate is above 0, its "dropout" stream is forked too, as
            Flax's modules do, and gives the keys of calls that are given none.

    Raises:
        TypeError, ValueError: neither a configuration nor sizes, both, or one error that lists every field at fault.
    """

    @overload
    def __init__(
        self, config: AttentionConfig, *, dtype: DType | None = None, param_dtype: DType = jnp.float32, rngs: nnx.Rngs
    ) -> None: ...
    @overload
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
        **options: Unpack[ConfigOptions],
    ) -> None: ...
    def __init__(  # type: ignore[misc]
        self,
        config: AttentionConfig | int | None = None,
        num_heads: int | None = None,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
        **options: object,
    ) -> None:
        self.config = config = given_config(type(self).__name__, config, num_heads, options)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.deterministic = False
        self.rngs: nnx.RngStream | None = nnx.data(None)
        self.sinks = nnx.data(nnx.Param(jnp.zeros(config.num_heads, param_dtype)) if config.sinks else None)
        if config.project:
            self._make_layers(rngs)
        if config.dropout_rate or config.out_dropout_rate:
            stream = _stream(rngs)
            self.rngs = None if stream is None else stream.fork()

    def _make_layers(self, rngs: nnx.Rngs) -> None:
        config, dtype, param_dtype = self.config, self.dtype, self.param_dtype
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "precision": "highest", "rngs": rngs}
        options["dot_general"] = dot_general
        widths = {"query": config.embed_dim, "key": config.kdim, "value": config.vdim}
        for (name, width), heads in zip(widths.items(), head_shapes(config), strict=True):
            setattr(self, name, nnx.LinearGeneral(width, heads, use_bias=config.qkv_bias, **options))
        heads = (config.num_heads, config.v_head_dim)
        self.out = nnx.LinearGeneral(heads, config.out_dim, axis=(-2, -1), use_bias=config.out_bias, **options)

    def __call__(
        self,
        query: Float[Operand, "B L E"],
        key: Float[Operand, "B S kdim"] | None = None,
        value: Float[Operand, "B S vdim"] | None = None,
        *,
        mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
        bias: Bias | Float[Given, "#B #H #L #S"] | None = None,
        dropout_key: RandomKey | nnx.Rngs | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
    ) -> Float[Array, "B L out_dim"]:
        """query [B, L, embed_dim], key [B, S, kdim], value [B, S, vdim] -> [B, L, out_dim].

        Args:
            query, key, value: key defaults to query, value to key.
            mask: a Mask or a bool array that broadcasts to [B, H, L, S]; True = may attend.
            bias: a Bias or a float array that broadcasts to [B, H, L, S], added to the logits.
            dropout_key: a seed in [0, 2**31), two uint32 words, a `jax.random.key`, or `nnx.Rngs` (whose "dropout"
                stream gives one); None takes one from `self.rngs`. Needed where dropout is on. Weights and output are
                dropped by the two keys that `dropout.module_keys` makes of it, each number by itself. The key that was
                used is sown under `nnx.capture(nnx.Intermediate)`, as `dropout_key`.
            deterministic: True applies no dropout; None means `self.deterministic`, which `train()` and `eval()` set.
            kernel: as in `attention`; "exact" computes the projections exactly too.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        deterministic = self.deterministic if deterministic is None else deterministic
        config, where = self.config, type(self).__name__
        rate, out_rate = dropout_rates(config, deterministic)
        drawn = self._key(dropout_key) if rate or out_rate else dropout_key
        inputs: Any = module_inputs(where, config, (query, key, value), check_array, drawn, deterministic)
        if config.project:
            inputs = project_in((self.query, self.key, self.value), inputs, kernel, _parameters)  # type: ignore[attr-defined]
        elif self.dtype is not None:
            inputs = [jnp.asarray(x, self.dtype) for x in inputs]
        keys: tuple[Array | None, Array | None] = (None, None)
        if drawn is not None and not isinstance(drawn, nnx.Rngs) and (rate or out_rate):
            keys = module_keys(drawn)
        sinks = None if self.sinks is None else self.sinks[...]
        out = attend_heads(config, FRAMEWORK, inputs, plain(mask), plain(bias), sinks, rate, keys[0], kernel)
        out = _project(self.out, out, kernel) if config.project else out.reshape(*out.shape[:2], config.out_dim)
        if keys[1] is None or not out_rate:
            return out
        return drop(out, out_rate, keys[1], of_kernel(FRAMEWORK, kernel, "drop"))

    def _key(self, given: RandomKey | nnx.Rngs | nnx.RngStream | None) -> RandomKey | None:
        """The key of a call: the one given, or the next of the streams; sown where intermediates are captured."""
        if isinstance(given, nnx.Rngs):
            given = _stream(given)
        given = self.rngs if given is None else given
        given = given() if isinstance(given, nnx.RngStream) else given
        if given is not None and hasattr(self, "__captures__"):
            self.sow(nnx.Intermediate, "dropout_key", words(given))
        return given

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` calls.

        Args:
            deterministic: True applies no dropout.
        """
        if deterministic is not None:
            self.deterministic = deterministic


def _stream(rngs: nnx.Rngs) -> nnx.RngStream | None:
    """The stream that dropout draws keys from: "dropout", or "default"; None where there is neither."""
    return rngs.dropout if "dropout" in rngs or "default" in rngs else None


def _parameters(layer: nnx.LinearGeneral) -> tuple[Array, Array | None]:
    """Kernel and bias (or None) of a layer."""
    return layer.kernel[...], None if layer.bias is None else layer.bias[...]


def _project(layer: nnx.LinearGeneral, x: Array, kernel: KernelName) -> Array:
    """The layer applied to x; by the kernel's own `linear` where it brings one."""
    own = of_kernel(FRAMEWORK, kernel, "linear")
    if own is None:
        return layer(x)
    return project_by(own, x, *_parameters(layer), len(layer.in_features), layer.dtype)
