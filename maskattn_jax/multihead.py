"""MultiHeadAttention: projections around attention(...), its parameters named as Flax names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias, TypedDict, Unpack, overload

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.nnx.nn.linear import default_bias_init, default_kernel_init
from jax.lax import PrecisionLike
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
    with_causal,
)
from maskattn.modules.parameters import Parameter
from maskattn.modules.run import Asked, Layer
from maskattn.typing import KernelName, SharedAxis
from maskattn_jax._flax_calls import flat_sharding, flax_names, resolved
from maskattn_jax._layers import (
    Built,
    attend_heads,
    before_dropout,
    begins,
    check_array,
    check_plain,
    paths,
    project_by,
    project_in,
    project_one,
)
from maskattn_jax._mesh import dot_general
from maskattn_jax._scope import plain
from maskattn_jax.cache import Cache
from maskattn_jax.dropout import drop, module_keys
from maskattn_jax.functional import FRAMEWORK
from maskattn_jax.layer import LAYER
from maskattn_jax.rng import words
from maskattn_jax.types import Answer, Array, DType, Given, Initializer, Operand, Positions, RandomKey, Sharding

__all__ = ["MultiHeadAttention"]

#: Where a module has a parameter, and what it is.
Place: TypeAlias = tuple[tuple[str, ...], Parameter]
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Options(TypedDict, total=False):
    """How a module is made, beside its configuration: see `MultiHeadAttention`."""

    dtype: DType | None
    param_dtype: DType
    precision: PrecisionLike
    kernel_init: Initializer
    out_kernel_init: Initializer | None
    bias_init: Initializer
    out_bias_init: Initializer | None
    part_inits: Mapping[str, Initializer] | None
    kernel_metadata: Mapping[str, object]
    out_kernel_metadata: Mapping[str, object]
    bias_metadata: Mapping[str, object]
    out_bias_metadata: Mapping[str, object]
    qkv_promote_dtype: Callable[..., Any]
    out_promote_dtype: Callable[..., Any]
    dropout_broadcast: tuple[SharedAxis, ...]
    deterministic: bool | None
    keep_rngs: bool


class SizedOptions(Options, ConfigOptions, total=False):
    """The same, and the fields of the configuration."""


class MultiHeadAttention(nnx.Module):
    """Multi-head attention: `MultiHeadAttention(config)`, or `MultiHeadAttention(embed_dim, num_heads, ...)`.

    Parameters, initialised as `nnx.MultiHeadAttention` initialises (the same numbers from the same `rngs`): `query`,
    `key`, `value` with kernels [E, H or K, D] and biases [H or K, D], `out` with kernel [H, Dv, out] and bias [out].
    With `project=False` there are none of these. With `sinks=True` there is `sinks` [H], zeros. What the parts of the
    configuration learn has the names of layout "flax-nnx": `query_ln`, `key_ln`, `gate`,
    `relative_position_bias.table`, ...

    `maskattn_jax.flax_nnx.MultiHeadAttention` is the same with the constructor of `nnx.MultiHeadAttention`.

    Args:
        config: an `AttentionConfig`; or embed_dim, with num_heads and its other fields by their names.
        num_heads: H, where no configuration is given.
        dtype: of the computation; None follows inputs and parameters (Flax's promotion).
        param_dtype: of the parameters.
        precision: of all products, a `jax.lax.Precision` or its name; None is JAX's own default.
        kernel_init, bias_init: how kernels and biases begin, those of parts too: (key, shape, dtype) -> array, the
            shape that of a matrix, as Flax's layers ask for them. `nnx.with_partitioning` and `nnx.with_metadata` of
            one say where the parameters lie on a mesh.
        out_kernel_init, out_bias_init: those of the output projection; None takes the others.
        part_inits: by canonical name ("sinks", "query_norm.scale", "gate.kernel"), how other parameters of parts begin.
        kernel_metadata, bias_metadata, out_kernel_metadata, out_bias_metadata: of the four projections' parameters, as
            `sharding_names`; for the output none of the others' are taken.
        qkv_promote_dtype, out_promote_dtype: ((x, kernel, bias), dtype=...) -> the three in one dtype.
        dropout_broadcast: the axes, of "batch" and "heads", that share one draw of the weights' dropout; () draws for
            every weight, ("batch", "heads") is Flax's `broadcast_dropout=True`.
        deterministic: True applies no dropout; None leaves it to each call.
        keep_rngs: whether the "dropout" stream of `rngs` is forked where a rate is above 0.
        rngs: the source of the initial parameters; where a rate is above 0, its "dropout" stream is forked too, as
            Flax's modules do, and gives the keys of calls that are given none.

    Raises:
        TypeError, ValueError: neither a configuration nor sizes, both, or one error that lists every field at fault.
    """

    @overload
    def __init__(self, config: AttentionConfig, *, rngs: nnx.Rngs, **options: Unpack[Options]) -> None: ...
    @overload
    def __init__(self, embed_dim: int, num_heads: int, *, rngs: nnx.Rngs, **options: Unpack[SizedOptions]) -> None: ...
    def __init__(  # type: ignore[misc]
        self,
        config: AttentionConfig | int | None = None,
        num_heads: int | None = None,
        *,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        precision: PrecisionLike = "highest",
        kernel_init: Initializer = default_kernel_init,
        out_kernel_init: Initializer | None = None,
        bias_init: Initializer = default_bias_init,
        out_bias_init: Initializer | None = None,
        part_inits: Mapping[str, Initializer] | None = None,
        kernel_metadata: Mapping[str, object] = _NOTHING,
        out_kernel_metadata: Mapping[str, object] = _NOTHING,
        bias_metadata: Mapping[str, object] = _NOTHING,
        out_bias_metadata: Mapping[str, object] = _NOTHING,
        qkv_promote_dtype: Callable[..., object] = promote_dtype,
        out_promote_dtype: Callable[..., object] = promote_dtype,
        dropout_broadcast: tuple[SharedAxis, ...] = (),
        deterministic: bool | None = False,
        keep_rngs: bool = True,
        rngs: nnx.Rngs,
        **options: object,
    ) -> None:
        where = type(self).__name__
        self.config = config = given_config(where, config, num_heads, options)
        self.built = Built.of(where, config, precision, dropout_broadcast, part_inits)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.deterministic = deterministic
        self.rngs: nnx.RngStream | None = nnx.data(None)
        made: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "precision": precision, "rngs": rngs}
        starts: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        if config.project:
            of_inputs: dict[str, Any] = {"kernel_metadata": kernel_metadata, "bias_metadata": bias_metadata}
            self._project_in(made | starts | of_inputs | {"promote_dtype": qkv_promote_dtype})
        # norms stand before the output projection, as in Flax: the same numbers from the same `rngs`
        known = paths(config)
        norms = {name: held for name, held in known.items() if "_norm." in name}
        self.sinks = nnx.data(None)
        self._hold(norms, rngs, made | starts, part_inits or {})
        if config.project:
            of_output: dict[str, Any] = {
                "kernel_init": out_kernel_init or kernel_init,
                "bias_init": out_bias_init or bias_init,
            }
            of_output |= {"kernel_metadata": out_kernel_metadata, "bias_metadata": out_bias_metadata}
            self._project_out(made | of_output | {"promote_dtype": out_promote_dtype})
        others = {name: held for name, held in known.items() if name not in norms}
        self._hold(others, rngs, made | starts, part_inits or {})
        if keep_rngs and (config.dropout_rate or config.out_dropout_rate):
            stream = _stream(rngs)
            self.rngs = None if stream is None else stream.fork()

    def _project_in(self, given: dict[str, Any]) -> None:
        config = self.config
        widths = {"query": config.embed_dim, "key": config.kdim, "value": config.vdim}
        for (name, width), heads in zip(widths.items(), head_shapes(config), strict=True):
            layer = nnx.LinearGeneral(width, heads, use_bias=config.qkv_bias, dot_general=dot_general, **given)
            setattr(self, name, layer)

    def _project_out(self, given: dict[str, Any]) -> None:
        config = self.config
        heads = (config.num_heads, config.v_head_dim)
        options: dict[str, Any] = {"axis": (-2, -1), "use_bias": config.out_bias, "dot_general": dot_general}
        self.out = nnx.LinearGeneral(heads, config.out_dim, **options, **given)

    def _hold(
        self, known: Mapping[str, Place], rngs: nnx.Rngs, made: dict[str, Any], inits: Mapping[str, Initializer]
    ) -> None:
        """Make parameters of parts."""
        for name, (path, parameter) in known.items():
            place, last = _within(self, path[:-1]), path[-1]
            kernel = name.removesuffix("bias") + "kernel"
            if last == "bias" and kernel in known:
                continue
            if last == "kernel":
                bias = name.removesuffix("kernel") + "bias"
                own = {
                    option: inits[one] for option, one in (("kernel_init", name), ("bias_init", bias)) if one in inits
                }
                layer = nnx.Linear(*parameter.shape, use_bias=bias in known, **{**made, **own})
                setattr(_within(self, path[:-2]), path[-2], layer)
                continue
            start = inits.get(name) or begins(parameter)
            draws = name in inits or parameter.begins is None or "_norm." in name
            key: Any = rngs.params() if draws else None
            number = start(key, parameter.shape, self.param_dtype)
            setattr(place, last, nnx.data(nnx.Param(number)))

    @flax_names("rngs")
    def __call__(
        self,
        query: Float[Operand, "B L E"],
        key: Float[Operand, "B S kdim"] | None = None,
        value: Float[Operand, "B S vdim"] | None = None,
        *,
        mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
        bias: Bias | Float[Given, "#B #H #L #S"] | None = None,
        is_causal: bool = False,
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
        sow_weights: bool = False,
        qkv_sharding: Sharding | None = None,
        out_sharding: Sharding | None = None,
    ) -> Answer:
        """query [..., L, embed_dim], key [..., S, kdim], value [..., S, vdim] -> [..., L, out_dim].

        The names of Flax's modules are taken too: `inputs_q`, `inputs_k`, `inputs_v`, `inputs_kv`, `rngs`.

        Args:
            query, key, value: key defaults to query, value to key. The axes before the last two are one batch, B, in
                row-major order, for masks too.
            mask: a Mask or a bool array that broadcasts to [B, H, L, S]; True = may attend.
            bias: a Bias or a float array that broadcasts to [B, H, L, S], added to the logits.
            is_causal: no query attends to a later key, counted from the start of both: the mask `& Causal()`.
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
            sow_weights: sow the weights before dropout, [B, H, L, S], under `nnx.capture(nnx.Intermediate)`, as
                `attention_weights`.
            qkv_sharding: how queries, keys and values [..., length, heads, width] lie on a mesh with explicit axes.
            out_sharding: how the output [..., L, out_dim] does.

        Returns:
            The output, or a tuple of it and what was asked for, in the order weights, lse, cache.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        config, where = self.config, type(self).__name__
        deterministic = resolved(where, config, self.deterministic, deterministic)
        rate, out_rate = dropout_rates(config, deterministic)
        drawn = self._key(dropout_key) if rate or out_rate else dropout_key
        given: Any = module_inputs(where, config, (query, key, value), check_array, drawn, deterministic)
        leading = Leading(tuple(query.shape[:-2]), LAYER)
        mask, bias = plain(mask), plain(bias)
        if len(leading.axes) != 1:
            given, mask, bias = one_batch(leading, given), leading.aligned(mask, 3), leading.aligned(bias, 3)
        positions, valid, global_tokens = leading.of_tokens(config, positions, valid, global_tokens)
        placed = flat_sharding(where, {"qkv_sharding": qkv_sharding, "out_sharding": out_sharding}, leading, kernel)
        inputs: Any = given
        if config.project:
            layers = self.query, self.key, self.value  # type: ignore[attr-defined]
            check_plain({"query": layers[0], "key": layers[1], "value": layers[2], "out": self.out}, kernel)
            inputs = project_in(layers, given, kernel, _parameters, **placed["qkv_sharding"])
        elif self.dtype is not None:
            inputs = [jnp.asarray(x, self.dtype) for x in given]
        keys: tuple[Array | None, Array | None] = (None, None)
        if drawn is not None and not isinstance(drawn, nnx.Rngs) and (rate or out_rate):
            keys = self._draws(drawn)
        asked = Asked(
            given,
            with_causal(mask, is_causal),
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
        layer = self._layer(kernel)
        attended = attend_heads(layer, inputs, asked)
        if sow_weights:
            self.sow(nnx.Intermediate, "attention_weights", before_dropout(layer, inputs, asked, attended, leading))
        out = attended.output
        if config.project:
            out = _project(self.out, out, kernel, **placed["out_sharding"])
        else:
            out = out.reshape(*out.shape[:2], config.out_dim)
        if keys[1] is not None and out_rate:
            out = drop(out, out_rate, keys[1], of_kernel(FRAMEWORK, kernel, "drop"))
        return answered(leading, out, asked, attended)

    def _draws(self, key: RandomKey) -> tuple[Array | None, Array | None]:
        """The keys of the weights' dropout and of the output's."""
        return module_keys(key)

    def _layer(self, kernel: KernelName) -> Layer[Array]:
        """What lies between the projections; by the kernel's own arithmetic where it brings one."""
        held = {}
        known = paths(self.config) if self.config.has_parts or self.config.sinks else {}
        for name, (path, _) in known.items():
            held[name] = getattr(_within(self, path[:-1]), path[-1])[...]

        def project(name: str, x: Array) -> Array:
            path = known[f"{name}.kernel"][0][:-1] if f"{name}.kernel" in known else (name,)
            layer = _within(self, path)
            check_plain({name: layer}, kernel)
            return project_one(layer, x, kernel, _parameters)

        arithmetic: Any = of_kernel(FRAMEWORK, kernel, "LAYER") or LAYER
        return Layer(type(self).__name__, self.config, FRAMEWORK, arithmetic, held, project, self.built.options)

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


def _project(layer: nnx.LinearGeneral, x: Array, kernel: KernelName, **options: Any) -> Array:
    """The layer applied to x; by the kernel's own `linear` where it brings one."""
    own = of_kernel(FRAMEWORK, kernel, "linear")
    if own is None:
        return layer(x, **options)
    return project_by(own, x, *_parameters(layer), len(layer.in_features), layer.dtype, layer.promote_dtype)
