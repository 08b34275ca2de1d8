"""The Linen faces of multihead.py and seed.py: the same configuration, arguments and parameter names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack, overload

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.linear import default_kernel_init
from jax.lax import PrecisionLike
from jaxtyping import Bool, Float, Num

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
    seed_config,
    with_causal,
)
from maskattn.modules.parameters import Parameter
from maskattn.modules.run import Asked, Layer
from maskattn.typing import KernelName, SharedAxis
from maskattn_jax._flax_calls import flax_names, resolved
from maskattn_jax._layers import (
    Built,
    attend_heads,
    before_dropout,
    begins,
    check_array,
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
from maskattn_jax.seed import soft_mask
from maskattn_jax.types import Answer, Array, DType, Given, Initializer, Operand, Positions, RandomKey

__all__ = ["Attention", "MultiHeadAttention"]


class Options(TypedDict, total=False):
    """How a module is made, beside its configuration: see `MultiHeadAttention`."""

    dtype: DType | None
    param_dtype: DType
    deterministic: bool | None
    precision: PrecisionLike
    kernel_init: Initializer
    out_kernel_init: Initializer | None
    bias_init: Initializer
    out_bias_init: Initializer | None
    part_inits: Mapping[str, Initializer] | None
    dropout_broadcast: tuple[SharedAxis, ...]
    parent: nn.Module | None
    name: str | None


class SizedOptions(Options, ConfigOptions, total=False):
    """The same, and the fields of the configuration."""


class MultiHeadAttention(nn.Module):
    """Multi-head attention: `MultiHeadAttention(config)`, or `MultiHeadAttention(embed_dim, num_heads, ...)`.

    Parameters, initialised as `nn.MultiHeadDotProductAttention` initialises (the same numbers from the same key):
    `query`, `key`, `value` with kernels [E, H or K, D] and biases [H or K, D], and `out` with kernel [H, Dv, out] and
    bias [out]. With `project=False` there are none of these. With `sinks=True` there is `sinks` [H], zeros. What the
    parts of the configuration learn has the names of layout "flax-linen": `query_ln`, `key_ln`, `gate`, ...

    `maskattn_jax.flax_linen.MultiHeadDotProductAttention` is the same with the attributes of Flax's.

    Args:
        config: an `AttentionConfig`; or embed_dim, with num_heads and its other fields by their names.
        dtype: of the computation; None follows inputs and parameters (Flax's promotion).
        param_dtype: of the parameters.
        deterministic: True applies no dropout; to be given here or in the call where a rate is above 0.
        precision: of all products, a `jax.lax.Precision` or its name; None is JAX's own default.
        kernel_init, bias_init: how kernels and biases begin, those of parts too: (key, shape, dtype) -> array, the
            shape that of a matrix, as Flax's layers ask for them. `nn.with_logical_partitioning` and
            `nn.with_partitioning` of one name the axes.
        out_kernel_init, out_bias_init: those of the output projection; None takes the others.
        part_inits: by canonical name ("sinks", "query_norm.scale", "gate.kernel"), how other parameters of parts begin.
        dropout_broadcast: the axes, of "batch" and "heads", that share one draw of the weights' dropout; () draws for
            every weight, ("batch", "heads") is Flax's `broadcast_dropout=True`.
    """

    config: AttentionConfig
    dtype: DType | None = None
    param_dtype: DType = jnp.float32
    deterministic: bool | None = None
    precision: Any = "highest"
    kernel_init: Initializer = default_kernel_init
    out_kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros_init()
    out_bias_init: Initializer | None = None
    part_inits: Mapping[str, Initializer] | None = None
    dropout_broadcast: tuple[SharedAxis, ...] = ()

    if TYPE_CHECKING:

        @overload
        def __init__(self, config: AttentionConfig, **options: Unpack[Options]) -> None: ...
        @overload
        def __init__(self, embed_dim: int, num_heads: int, **options: Unpack[SizedOptions]) -> None: ...
        def __init__(self, *arguments: Any, **options: Any) -> None: ...

    @nn.compact
    @flax_names("dropout_rng")
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
        dropout_key: RandomKey | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
        return_weights: bool = False,
        return_lse: bool = False,
        sow_weights: bool = False,
    ) -> Answer:
        """As the module of NNX. Arguments as in `maskattn_jax.MultiHeadAttention.__call__`, but for these.

        The names of Flax's module are taken too: `inputs_q`, `inputs_k`, `inputs_v`, `inputs_kv`, `dropout_rng`.

        Args:
            dropout_key: a seed in [0, 2**31), two uint32 words, or a `jax.random.key`; None takes
                `make_rng("dropout")`. The key that was used is sown in "intermediates", as `dropout_key`.
            deterministic: True applies no dropout; None means the attribute.
            sow_weights: sow the weights before dropout, [B, H, L, S], in "intermediates", as `attention_weights`.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        config, where = self.config, type(self).__name__
        built = Built.of(where, config, self.precision, self.dropout_broadcast, self.part_inits)
        deterministic = resolved(where, config, self.deterministic, deterministic)
        rate, out_rate = dropout_rates(config, deterministic)
        if (rate or out_rate) and dropout_key is None and self.has_rng("dropout"):
            dropout_key = self.make_rng("dropout")
        given: Any = module_inputs(where, config, (query, key, value), check_array, dropout_key, deterministic)
        leading = Leading(tuple(query.shape[:-2]), LAYER)
        mask, bias = plain(mask), plain(bias)
        if len(leading.axes) != 1:
            given, mask, bias = one_batch(leading, given), leading.aligned(mask, 3), leading.aligned(bias, 3)
        positions, valid, global_tokens = leading.of_tokens(config, positions, valid, global_tokens)
        keys: tuple[Array | None, Array | None] = (None, None)
        if dropout_key is not None and (rate or out_rate):
            keys = self._draws(dropout_key)
            self.sow("intermediates", "dropout_key", words(dropout_key))
        inputs, layers = given, {}
        # to initialise, Flax must call its layers
        own = "auto" if self.is_initializing() else kernel
        if config.project:
            names = zip(("query", "key", "value"), head_shapes(config), strict=True)
            layers = {name: self._layer(name, shape, config.qkv_bias) for name, shape in names}
            inputs = project_in(tuple(layers.values()), given, own, _parameters)
        elif self.dtype is not None:
            inputs = [jnp.asarray(x, self.dtype) for x in given]
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
        layer = self._between(layers, own, kernel, built)
        attended = attend_heads(layer, inputs, asked)
        if sow_weights:
            self.sow("intermediates", "attention_weights", before_dropout(layer, inputs, asked, attended, leading))
        out = attended.output
        out = self._project_out(out, kernel) if config.project else out.reshape(*out.shape[:2], config.out_dim)
        if keys[1] is not None and out_rate:
            out = drop(out, out_rate, keys[1], of_kernel(FRAMEWORK, kernel, "drop"))
        return answered(leading, out, asked, attended)

    def _draws(self, key: RandomKey) -> tuple[Array | None, Array | None]:
        """The keys of the weights' dropout and of the output's."""
        return module_keys(key)

    def _between(
        self, layers: dict[str, nn.DenseGeneral], own: KernelName, kernel: KernelName, built: Built
    ) -> Layer[Array]:
        """What lies between the projections, `layers`; by the kernel's own arithmetic where it brings one."""
        known = paths(self.config)
        inits = self.part_inits or {}
        layers, held = dict(layers), {}
        trees: dict[str, dict[tuple[str, ...], Start]] = {}
        for name, (path, parameter) in known.items():
            if len(path) == 1:
                held[name] = self.param(name, self._start(name, parameter), parameter.shape, self.param_dtype)
            elif path[-1] == "kernel" and len(path) == 2:
                bias = name.removesuffix("kernel") + "bias"
                given = {"kernel_init": inits.get(name), "bias_init": inits.get(bias)}
                layers[path[0]] = self._layer(path[0], parameter.shape[1:], bias in known, **given)
            elif path[0] not in layers:
                trees.setdefault(path[0], {})[path[1:]] = self._start(name, parameter), parameter.shape
        for first, tree in trees.items():
            made = _Tree(tuple(tree.items()), self.param_dtype, name=first)()
            held |= {name: made[path[1:]] for name, (path, _) in known.items() if path[0] == first}

        def project(name: str, x: Array) -> Array:
            return project_one(layers[name], x, own, _parameters)

        arithmetic: Any = of_kernel(FRAMEWORK, kernel, "LAYER") or LAYER
        return Layer(type(self).__name__, self.config, FRAMEWORK, arithmetic, held, project, built.options)

    def _start(self, name: str, parameter: Parameter) -> Initializer:
        """How a parameter begins that no layer of Flax holds."""
        given = (self.part_inits or {}).get(name)
        if given is None and name.endswith(".kernel"):
            return self.kernel_init
        return given or begins(parameter)

    def _project_out(self, out: Array, kernel: KernelName) -> Array:
        layer = self._layer("out", (self.config.out_dim,), self.config.out_bias)
        own = of_kernel(FRAMEWORK, kernel, "linear")
        if own is None or self.is_initializing():
            return layer(out)
        return project_by(own, out, *_parameters(layer), 2, self.dtype)

    def _layer(
        self,
        name: str,
        features: tuple[int, ...],
        use_bias: bool,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
    ) -> nn.DenseGeneral:
        if name == "out":
            kernel_init, bias_init = self.out_kernel_init, self.out_bias_init
        return nn.DenseGeneral(
            features,
            axis=(-2, -1) if name == "out" else (-1,),
            use_bias=use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=kernel_init or self.kernel_init,
            bias_init=bias_init or self.bias_init,
            dot_general=dot_general,
            name=name,
        )


#: How a parameter begins, and its shape.
Start: TypeAlias = tuple[Initializer, tuple[int, ...]]


class _Tree(nn.Module):
    """Parameters at paths, as Flax nests them; called, it gives them by their paths."""

    parameters: tuple[tuple[tuple[str, ...], Start], ...]
    param_dtype: DType

    @nn.compact
    def __call__(self) -> dict[tuple[str, ...], Array]:
        made: dict[tuple[str, ...], Array] = {}
        below: dict[str, dict[tuple[str, ...], Start]] = {}
        for path, (start, shape) in self.parameters:
            if len(path) == 1:
                made[path] = self.param(path[0], start, shape, self.param_dtype)
            else:
                below.setdefault(path[0], {})[path[1:]] = start, shape
        for name, tree in below.items():
            inner = _Tree(tuple(tree.items()), self.param_dtype, name=name)()
            made |= {(name, *path): array for path, array in inner.items()}
        return made


def _taking_sizes(made: Callable[..., None]) -> Callable[..., None]:
    """The constructor that Flax made of the attributes, taking the sizes in place of the first of them too."""

    @functools.wraps(made)
    def __init__(self: Any, config: Any = None, *arguments: Any, **options: Any) -> None:
        if isinstance(config, AttentionConfig) and "num_heads" not in options:
            made(self, config, *arguments, **options)
            return
        attributes = {name: options.pop(name) for name in _ATTRIBUTES if name in options}
        (num_heads,) = arguments or (options.pop("num_heads", None),)
        made(self, given_config("MultiHeadAttention", config, num_heads, options), **attributes)

    return __init__


_ATTRIBUTES = [field.name for field in dataclasses.fields(MultiHeadAttention) if field.init and field.name != "config"]
MultiHeadAttention.__init__ = _taking_sizes(MultiHeadAttention.__init__)  # type: ignore[method-assign]


def _parameters(layer: nn.DenseGeneral) -> tuple[Array, Array | None]:
    """Kernel and bias (or None) of a bound layer."""
    stored = nn.meta.unbox(layer.variables["params"])
    return stored["kernel"], stored.get("bias")


class Attention(nn.Module):
    """The seed module: self-attention with `(1 - mask) * -10000` added to the logits before softmax.

    Arguments as in `maskattn_jax.Attention`, without `rngs`, and

    Args:
        deterministic: as in `MultiHeadAttention`.
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
        x: Float[Array, "B N E"],
        attention_mask: Num[Array, "*shape"] | None = None,
        *,
        dropout_key: RandomKey | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
    ) -> Float[Array, "B N E"]:
        """As the module of NNX: x [B, N, dim] -> [B, N, dim].

        Arguments as in `maskattn_jax.Attention.__call__`; `deterministic`: None means the attribute.
        """
        bias = None if attention_mask is None else soft_mask(attention_mask, x, self.num_heads)
        return self.inner(x, bias=bias, dropout_key=dropout_key, deterministic=deterministic, kernel=kernel)
