"""MultiHeadAttention: projections around attention(...), its parameters named as Flax names them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype

from maskattn.config import AttentionConfig
from maskattn.modules import check_config, check_inputs, complete_inputs
from maskattn_jax.dropout import drop, module_keys
from maskattn_jax.functional import attention
from maskattn_jax.kernels import KERNELS
from maskattn_jax.rng import words

Array = Any

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nnx.Module):
    """Multi-head attention built from an `AttentionConfig`.

    Parameters, initialised as `nnx.MultiHeadAttention` initialises (the same numbers from the same `rngs`): `query`,
    `key`, `value` with kernels [E, H or K, D] and biases [H or K, D], `out` with kernel [H, Dv, out] and bias [out].
    With `project=False` there are none.

    Args:
        config: the sizes and options.
        dtype: of the computation; None follows inputs and parameters (Flax's promotion).
        param_dtype: of the parameters.
        rngs: the source of the initial parameters; where a rate is above 0, its "dropout" stream is forked too, as
            Flax's modules do, and gives the keys of calls that are given none.
    """

    def __init__(
        self, config: AttentionConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        check_config(type(self).__name__, config)
        self.config = config
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.deterministic = False
        self.rngs: nnx.RngStream | None = nnx.data(None)
        if config.project:
            self._make_layers(rngs)
        if config.dropout_rate or config.out_dropout_rate:
            stream = _stream(rngs)
            self.rngs = None if stream is None else stream.fork()

    def _make_layers(self, rngs: nnx.Rngs) -> None:
        config, dtype, param_dtype = self.config, self.dtype, self.param_dtype
        options = {"dtype": dtype, "param_dtype": param_dtype, "precision": "highest", "rngs": rngs}
        widths = {
            "query": (config.embed_dim, (config.num_heads, config.qk_head_dim)),
            "key": (config.key_dim, (config.kv_heads, config.qk_head_dim)),
            "value": (config.value_dim, (config.kv_heads, config.value_head_dim)),
        }
        for name, (width, heads) in widths.items():
            setattr(self, name, nnx.LinearGeneral(width, heads, use_bias=config.qkv_bias, **options))
        heads = (config.num_heads, config.value_head_dim)
        self.out = nnx.LinearGeneral(heads, config.output_dim, axis=(-2, -1), use_bias=config.out_bias, **options)

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
        rates = _rates(self.config, deterministic)
        dropout_key = self._key(dropout_key) if any(rates) else dropout_key
        query, key, value = _prepare(type(self).__name__, self.config, query, key, value, dropout_key, deterministic)
        if self.config.project:
            layers = (self.query, self.key, self.value)
            query, key, value = _project_in(layers, (query, key, value), kernel, _parameters)
        weights_key, out_key = module_keys(dropout_key) if any(rates) else (None, None)
        out = _attend(self.config, query, key, value, mask, bias, rates[0], weights_key, kernel)
        if self.config.project:
            out = _project(self.out, out, kernel)
        else:
            out = out.reshape(*out.shape[:2], self.config.output_dim)
        return drop(out, rates[1], out_key, _own(kernel, "drop")) if rates[1] else out

    def _key(self, given: Any) -> Any:
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


def _rates(config: AttentionConfig, deterministic: bool) -> tuple[float, float]:
    """The dropout rates of weights and output in a call."""
    return (0.0, 0.0) if deterministic else (config.dropout_rate, config.out_dropout_rate)


def _prepare(
    where: str, config: AttentionConfig, query: Array, key: Array, value: Array, dropout_key: Any, deterministic: bool
) -> tuple[Array, Array, Array]:
    """The three inputs of a module, completed and checked; split into heads where nothing projects them."""
    query, key, value = complete_inputs(where, query, key, value)
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise TypeError(f"{where}: {name} must be an array, got {type(x).__name__}")
    shapes = {"query": tuple(query.shape), "key": tuple(key.shape), "value": tuple(value.shape)}
    check_inputs(where, config, shapes, dropout_key, deterministic)
    if config.project:
        return query, key, value
    return (
        query.reshape(*query.shape[:2], config.num_heads, config.qk_head_dim),
        key.reshape(*key.shape[:2], config.kv_heads, config.qk_head_dim),
        value.reshape(*value.shape[:2], config.kv_heads, config.value_head_dim),
    )


def _attend(
    config: AttentionConfig,
    query: Array,
    key: Array,
    value: Array,
    mask: Any,
    bias: Any,
    dropout_rate: float,
    dropout_key: Any,
    kernel: str,
) -> Array:
    """attention(...) with a configuration's options."""
    return attention(
        query,
        key,
        value,
        mask,
        bias=bias,
        scale=config.scale,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        empty_rows=config.empty_rows,
        kernel=kernel,
    )


def _parameters(layer: Any) -> tuple[Array, Array | None]:
    """Kernel and bias (or None) of a layer."""
    return layer.kernel[...], None if layer.bias is None else layer.bias[...]


def _project(layer: Any, x: Array, kernel: str) -> Array:
    """The layer applied to x; by the kernel's own `linear` where it brings one."""
    own = _own(kernel, "linear")
    if own is None:
        return layer(x)
    return _project_by(own, x, *_parameters(layer), len(layer.in_features), layer.dtype)


def _project_in(
    layers: tuple[Any, ...], inputs: tuple[Array, ...], kernel: str, parameters: Callable[[Any], Any]
) -> list[Array]:
    """The layers of query, key and value applied to their inputs; by the kernel's own `linear` where it brings one.

    Where all three read one input, that is one linear map, as in the PyTorch twin: the input's gradient is then one sum
    in one order, rounded once.
    """
    own = _own(kernel, "linear")
    if own is None:
        return [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    dtype = layers[0].dtype
    found = [parameters(layer) for layer in layers]
    if any(x is not inputs[0] for x in inputs):
        return [_project_by(own, x, weight, bias, 1, dtype) for x, (weight, bias) in zip(inputs, found, strict=True)]
    shapes = [weight.shape[1:] for weight, _ in found]
    weight = jnp.concatenate([w.reshape(w.shape[0], -1) for w, _ in found], axis=1)
    bias = None if found[0][1] is None else jnp.concatenate([b.reshape(-1) for _, b in found])
    out = _project_by(own, inputs[0], weight, bias, 1, dtype)
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    return [
        part.reshape(*part.shape[:-1], *shape)
        for part, shape in zip(jnp.split(out, ends[:-1], axis=-1), shapes, strict=True)
    ]


def _own(kernel: str, name: str) -> Any:
    """The `linear` or `drop` that a kernel brings, or None: what is around its attention is then as exact as that."""
    return getattr(KERNELS.get(kernel), name, None)


def _project_by(linear: Any, x: Array, kernel: Array, bias: Array | None, in_axes: int, dtype: Any) -> Array:
    """The last `in_axes` axes of x contracted with the first of the kernel, by `linear(x [..., in], [in, out], [out])`.

    Returns:
        x's other axes, then the kernel's.
    """
    x, kernel, bias = promote_dtype((x, kernel, bias), dtype=dtype)
    width = math.prod(kernel.shape[:in_axes])
    out = linear(
        x.reshape(*x.shape[: x.ndim - in_axes], width),
        kernel.reshape(width, math.prod(kernel.shape[in_axes:])),
        None if bias is None else bias.reshape(math.prod(bias.shape)),
    )
    return out.reshape(*out.shape[:-1], *kernel.shape[in_axes:])
