"""What the modules of NNX and of Linen share: how layers are applied, by themselves or by a kernel's own `linear`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.nnx.nn.dtypes import promote_dtype
from jax import Array

from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.modules import attend_heads as _attend_heads, of_kernel
from maskattn.modules.parameters import TABLE_SPREAD, Parameter, parameters
from maskattn.typing import KernelName
from maskattn_jax._scope import own_modes
from maskattn_jax.functional import FRAMEWORK
from maskattn_jax.types import DType

__all__ = ["attend_heads", "begins", "check_array", "paths", "project_by", "project_in", "project_one"]

_LAYOUT = layouts.get("flax-nnx")

attend_heads = own_modes(_attend_heads)


def check_array(where: str, name: str, x: object) -> None:
    """Raise a TypeError unless an input of a module is an array."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{where}: {name} must be an array, got {type(x).__name__}")


def project_in(
    layers: tuple[Any, ...], inputs: Sequence[Array], kernel: KernelName, parameters: Callable[[Any], Any]
) -> list[Array]:
    """The layers of query, key and value applied to their inputs; by the kernel's own `linear` where it brings one.

    Where all three read one input, that is one linear map, as in the PyTorch twin: the input's gradient is then one sum
    in one order, rounded once.
    """
    own = of_kernel(FRAMEWORK, kernel, "linear")
    if own is None:
        return [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    dtype = layers[0].dtype
    pairs = [parameters(layer) for layer in layers]
    if any(x is not inputs[0] for x in inputs):
        return [project_by(own, x, weight, bias, 1, dtype) for x, (weight, bias) in zip(inputs, pairs, strict=True)]
    shapes = [weight.shape[1:] for weight, _ in pairs]
    weight = jnp.concatenate([w.reshape(w.shape[0], -1) for w, _ in pairs], axis=1)
    bias = None if pairs[0][1] is None else jnp.concatenate([b.reshape(-1) for _, b in pairs])
    out = project_by(own, inputs[0], weight, bias, 1, dtype)
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    return [
        part.reshape(*part.shape[:-1], *shape)
        for part, shape in zip(jnp.split(out, ends[:-1], axis=-1), shapes, strict=True)
    ]


def project_by(
    linear: Callable[..., Array], x: Array, kernel: Array, bias: Array | None, in_axes: int, dtype: DType | None
) -> Array:
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


def project_one(layer: Any, x: Array, kernel: KernelName, parameters: Callable[[Any], Any]) -> Array:
    """One layer applied to x [..., in], by the kernel's own `linear` where it brings one: [..., all that it makes]."""
    own = of_kernel(FRAMEWORK, kernel, "linear")
    if own is None:
        out: Array = layer(x)
    else:
        weight, bias = parameters(layer)
        out = project_by(own, x, weight, bias, 1, layer.dtype)
    return out.reshape(*x.shape[:-1], -1)


def paths(config: AttentionConfig) -> dict[str, tuple[tuple[str, ...], Parameter]]:
    """What the parts of a configuration learn: canonical name -> (where a module has it, what it is)."""
    found = {}
    for name, parameter in parameters(config).items():
        extra = _LAYOUT.place(name, parameter.shape, config)
        assert extra is not None, name
        found[name] = tuple(extra.name.split(".")), parameter
    return found


def begins(parameter: Parameter) -> Callable[..., Array]:
    """How a parameter that is no matrix of a layer begins: (key, shape, dtype) -> array."""
    if parameter.begins is None:
        return jax.nn.initializers.normal(TABLE_SPREAD)
    return jax.nn.initializers.constant(parameter.begins)
