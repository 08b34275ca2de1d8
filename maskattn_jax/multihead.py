"""MultiHeadAttention: projections around attention(...), its parameters named as Flax names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from maskattn.biases import Bias
from maskattn.config import AttentionConfig, ConfigOptions
from maskattn.masks import Mask
from maskattn.modules import (
    Leading,
    answered,
    dropout_rates,
    given_config,
    head_shapes,
    module_inputs,
    of_kernel,
    one_batch,
)
from maskattn.modules.run import Asked, Layer
from maskattn.typing import KernelName
from maskattn_jax._layers import attend_heads, begins, check_array, paths, project_by, project_in, project_one
from maskattn_jax._mesh import dot_general
from maskattn_jax._scope import plain
from maskattn_jax.cache import Cache
from maskattn_jax.dropout import drop, module_keys
from maskattn_jax.functional import FRAMEWORK
from maskattn_jax.layer import LAYER
from maskattn_jax.rng import words
from maskattn_jax.types import Answer, Array, DType, Given, Operand, Positions, RandomKey

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nnx.Module):
    """Multi-head attention: `MultiHeadAttention(config)`, or `MultiHeadAttention(embed_dim, num_heads, ...)`.

    Parameters, initialised as `nnx.MultiHeadAttention` initialises (the same numbers from the same `rngs`): `query`,
    `key`, `value` with kernels [E, H or K, D] and biases [H or K, D], `out` with kernel [H, Dv, out] and bias [out].
    With `project=False` there are none of these. With `sinks=True` there is `sinks` [H], zeros. What the parts of the
    configuration learn has the names of layout "flax-nnx": `query_ln`, `key_ln`, `gate`,
    `relative_position_bias.table`, ...

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
        self._hold(rngs)
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

    def _hold(self, rngs: nnx.Rngs) -> None:
        """Make what the parts learn, sinks excepted."""
        known = paths(self.config)
        for name, (path, parameter) in known.items():
            place, last = _within(self, path[:-1]), path[-1]
            if name == "sinks" or (last == "bias" and name.removesuffix("bias") + "kernel" in known):
                continue
            if last == "kernel":
                layer = nnx.Linear(
                    *parameter.shape,
                    use_bias=name.removesuffix("kernel") + "bias" in known,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    precision="highest",
                    rngs=rngs,
                )
                setattr(_within(self, path[:-2]), path[-2], layer)
                continue
            made = begins(parameter)(rngs.params(), parameter.shape, self.param_dtype)
            setattr(place, last, nnx.Param(made))

    def __call__(
        self,
        query: Float[Operand, "B L E"],
        key: Float[Operand, "B S kdim"] | None = None,
        value: Float[Operand, "B S vdim"] | None = None,
        *,
        mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
        bias: Bias | Float[Given, "#B #H #L #S"] | None = None,
        positions: Positions | None = None,
        cache: Cache | None = None,
        valid: Bool[Given, "B L"] | None = None,
        global_tokens: Bool[Given, "#B L"] | None = None,
        relative: Float[Operand, "R E"] | None = None,
        dropout_key: RandomKey | nnx.Rngs | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
        return_weights: bool = False,
        return_lse: bool = False,
    ) -> Answer:
        """query [..., L, embed_dim], key [..., S, kdim], value [..., S, vdim] -> [..., L, out_dim].

        Args:
            query, key, value: key defaults to query, value to key. The axes before the last two are one batch, B, in
                row-major order, for masks too.
            mask: a Mask or a bool array that broadcasts to [B, H, L, S]; True = may attend.
            bias: a Bias or a float array that broadcasts to [B, H, L, S], added to the logits.
            positions: int [L] or [B, L], read by `rotary` and `temperature`; [.., L, axes] of a rotary embedding with
                axes; a pair where queries and keys are not one sequence. None counts from 0, behind what `cache` holds.
                Masks count slots, whatever the positions.
            cache: the keys and values of the tokens before, which those of `key` are added to (`Cache.for_config`); the
                new cache is returned too. `mask` and `bias` are then those of whole sequences.
            valid: bool [B, L], which tokens are added to the cache; the others are padding, which takes no slot and no
                position, and attends to nothing.
            global_tokens: bool [B, L], True = global, where the configuration has `global_tokens`.
            relative: the table of relative positions [2 * span, embed_dim], for `Disentangled`.
            dropout_key: a seed in [0, 2**31), two uint32 words, a `jax.random.key`, or `nnx.Rngs` (whose "dropout"
                stream gives one); None takes one from `self.rngs`. Needed where dropout is on. Weights and output are
                dropped by the two keys that `dropout.module_keys` makes of it, each number by itself. The key that was
                used is sown under `nnx.capture(nnx.Intermediate)`, as `dropout_key`.
            deterministic: True applies no dropout; None means `self.deterministic`, which `train()` and `eval()` set.
            kernel: as in `attention`; "exact" computes the projections exactly too.
            return_weights: also return the attention weights [B, H, L, S], after dropout, which takes as much memory;
                the extra keys of `ExtraKeys` come first.
            return_lse: also return the log-sum-exp of each row, [B, L, H].

        Returns:
            The output, or a tuple of it and what was asked for, in the order weights, lse, cache.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        deterministic = self.deterministic if deterministic is None else deterministic
        config, where = self.config, type(self).__name__
        rate, out_rate = dropout_rates(config, deterministic)
        drawn = self._key(dropout_key) if rate or out_rate else dropout_key
        given: Any = module_inputs(where, config, (query, key, value), check_array, drawn, deterministic)
        leading = Leading(tuple(query.shape[:-2]), LAYER)
        mask, bias = plain(mask), plain(bias)
        if len(leading.axes) != 1:
            given, mask, bias = one_batch(leading, given), leading.aligned(mask, 3), leading.aligned(bias, 3)
        inputs: Any = given
        if config.project:
            inputs = project_in((self.query, self.key, self.value), given, kernel, _parameters)  # type: ignore[attr-defined]
        elif self.dtype is not None:
            inputs = [jnp.asarray(x, self.dtype) for x in given]
        keys: tuple[Array | None, Array | None] = (None, None)
        if drawn is not None and not isinstance(drawn, nnx.Rngs) and (rate or out_rate):
            keys = module_keys(drawn)
        asked = Asked(
            given,
            mask,
            bias,
            positions,
            cache,
            valid,
            global_tokens,
            relative,
            rate,
            keys[0],
            kernel,
            return_weights,
            return_lse,
        )
        attended = attend_heads(self._layer(kernel), inputs, asked)
        out = attended.output
        out = _project(self.out, out, kernel) if config.project else out.reshape(*out.shape[:2], config.out_dim)
        if keys[1] is not None and out_rate:
            out = drop(out, out_rate, keys[1], of_kernel(FRAMEWORK, kernel, "drop"))
        return answered(leading, out, asked, attended)

    def _layer(self, kernel: KernelName) -> Layer[Array]:
        """What lies between the projections; by the kernel's own arithmetic where it brings one."""
        held = {} if self.sinks is None else {"sinks": self.sinks[...]}
        known = paths(self.config) if self.config.has_parts else {}
        for name, (path, _) in known.items():
            held[name] = getattr(_within(self, path[:-1]), path[-1])[...]

        def project(name: str, x: Array) -> Array:
            path = known[f"{name}.kernel"][0][:-1] if f"{name}.kernel" in known else (name,)
            return project_one(_within(self, path), x, kernel, _parameters)

        arithmetic: Any = of_kernel(FRAMEWORK, kernel, "LAYER") or LAYER
        return Layer(type(self).__name__, self.config, FRAMEWORK, arithmetic, held, project)

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


def _within(module: nnx.Module, path: Sequence[str]) -> Any:
    """The module at a path, which is made of empty ones where it is not there."""
    for name in path:
        if not hasattr(module, name):
            setattr(module, name, nnx.Module())
        module = getattr(module, name)
    return module


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
