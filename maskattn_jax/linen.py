"""The Linen faces of multihead.py and seed.py: the same configuration, arguments and parameter names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

import flax.linen as nn
import jax.numpy as jnp
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
)
from maskattn.modules.parameters import Parameter
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
from maskattn_jax.seed import soft_mask
from maskattn_jax.types import Answer, Array, DType, Given, Operand, Positions, RandomKey

__all__ = ["Attention", "MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    """Multi-head attention: `MultiHeadAttention(config)`, or `MultiHeadAttention(embed_dim, num_heads, ...)`.

    Parameters, initialised as `nn.MultiHeadDotProductAttention` initialises (the same numbers from the same key):
    `query`, `key`, `value` with kernels [E, H or K, D] and biases [H or K, D], and `out` with kernel [H, Dv, out] and
    bias [out]. With `project=False` there are none of these. With `sinks=True` there is `sinks` [H], zeros. What the
    parts of the configuration learn has the names of layout "flax-linen": `query_ln`, `key_ln`, `gate`, ...

    Args:
        config: an `AttentionConfig`; or embed_dim, with num_heads and its other fields by their names.
        dtype: of the computation; None follows inputs and parameters (Flax's promotion).
        param_dtype: of the parameters.
        deterministic: True applies no dropout; to be given here or in the call where a rate is above 0.
    """

    config: AttentionConfig
    dtype: DType | None = None
    param_dtype: DType = jnp.float32
    deterministic: bool | None = None

    if TYPE_CHECKING:

        @overload
        def __init__(
            self,
            config: AttentionConfig,
            dtype: DType | None = None,
            param_dtype: DType = jnp.float32,
            deterministic: bool | None = None,
            *,
            parent: nn.Module | None = None,
            name: str | None = None,
        ) -> None: ...
        @overload
        def __init__(
            self,
            embed_dim: int,
            num_heads: int,
            *,
            dtype: DType | None = None,
            param_dtype: DType = jnp.float32,
            deterministic: bool | None = None,
            parent: nn.Module | None = None,
            name: str | None = None,
            **options: Unpack[ConfigOptions],
        ) -> None: ...
        def __init__(self, *arguments: Any, **options: Any) -> None: ...

    @nn.compact
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
        dropout_key: RandomKey | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
        return_weights: bool = False,
        return_lse: bool = False,
    ) -> Answer:
        """As the module of NNX. Arguments as in `maskattn_jax.MultiHeadAttention.__call__`, but for these.

        Args:
            dropout_key: a seed in [0, 2**31), two uint32 words, or a `jax.random.key`; None takes
                `make_rng("dropout")`. The key that was used is sown in "intermediates", as `dropout_key`.
            deterministic: True applies no dropout; None means the attribute.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        config, where = self.config, "MultiHeadAttention"
        deterministic = True if not (config.dropout_rate or config.out_dropout_rate) else _merge(self, deterministic)
        rate, out_rate = dropout_rates(config, deterministic)
        if (rate or out_rate) and dropout_key is None and self.has_rng("dropout"):
            dropout_key = self.make_rng("dropout")
        given: Any = module_inputs(where, config, (query, key, value), check_array, dropout_key, deterministic)
        leading = Leading(tuple(query.shape[:-2]), LAYER)
        mask, bias = plain(mask), plain(bias)
        if len(leading.axes) != 1:
            given, mask, bias = one_batch(leading, given), leading.aligned(mask, 3), leading.aligned(bias, 3)
        keys: tuple[Array | None, Array | None] = (None, None)
        if dropout_key is not None and (rate or out_rate):
            keys = module_keys(dropout_key)
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
        attended = attend_heads(self._between(layers, own, kernel), inputs, asked)
        out = attended.output
        out = self._project_out(out, kernel) if config.project else out.reshape(*out.shape[:2], config.out_dim)
        if keys[1] is not None and out_rate:
            out = drop(out, out_rate, keys[1], of_kernel(FRAMEWORK, kernel, "drop"))
        return answered(leading, out, asked, attended)

    def _between(self, layers: dict[str, nn.DenseGeneral], own: KernelName, kernel: KernelName) -> Layer[Array]:
        """What lies between the projections, `layers`; by the kernel's own arithmetic where it brings one."""
        known = paths(self.config)
        layers, held = dict(layers), {}
        trees: dict[str, dict[tuple[str, ...], Parameter]] = {}
        for name, (path, parameter) in known.items():
            if len(path) == 1:
                held[name] = self.param(name, begins(parameter), parameter.shape, self.param_dtype)
            elif path[-1] == "kernel" and len(path) == 2:
                use_bias = name.removesuffix("kernel") + "bias" in known
                layers[path[0]] = self._layer(path[0], parameter.shape[1:], use_bias)
            elif path[0] not in layers:
                trees.setdefault(path[0], {})[path[1:]] = parameter
        for first, tree in trees.items():
            made = _Tree(tuple(tree.items()), self.param_dtype, name=first)()
            held |= {name: made[path[1:]] for name, (path, _) in known.items() if path[0] == first}

        def project(name: str, x: Array) -> Array:
            return project_one(layers[name], x, own, _parameters)

        arithmetic: Any = of_kernel(FRAMEWORK, kernel, "LAYER") or LAYER
        return Layer(type(self).__name__, self.config, FRAMEWORK, arithmetic, held, project)

    def _project_out(self, out: Array, kernel: KernelName) -> Array:
        layer = self._layer("out", (self.config.out_dim,), self.config.out_bias)
        own = of_kernel(FRAMEWORK, kernel, "linear")
        if own is None or self.is_initializing():
            return layer(out)
        return project_by(own, out, *_parameters(layer), 2, self.dtype)

    def _layer(self, name: str, features: tuple[int, ...], use_bias: bool) -> nn.DenseGeneral:
        return nn.DenseGeneral(
            features,
            axis=(-2, -1) if name == "out" else (-1,),
            use_bias=use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision="highest",
            dot_general=dot_general,
            name=name,
        )


class _Tree(nn.Module):
    """Parameters at paths, as Flax nests them; called, it gives them by their paths."""

    parameters: tuple[tuple[tuple[str, ...], Parameter], ...]
    param_dtype: DType

    @nn.compact
    def __call__(self) -> dict[tuple[str, ...], Array]:
        made: dict[tuple[str, ...], Array] = {}
        below: dict[str, dict[tuple[str, ...], Parameter]] = {}
        for path, parameter in self.parameters:
            if len(path) == 1:
                start = nn.initializers.lecun_normal() if path[0] == "kernel" else begins(parameter)
                made[path] = self.param(path[0], start, parameter.shape, self.param_dtype)
            else:
                below.setdefault(path[0], {})[path[1:]] = parameter
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
    stored = layer.variables["params"]
    return stored["kernel"], stored.get("bias")


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
        out = self.inner(x, bias=bias, dropout_key=dropout_key, deterministic=deterministic, kernel=kernel)
        return cast(Array, out)
