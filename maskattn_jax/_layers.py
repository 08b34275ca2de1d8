"""What the modules of NNX and of Linen share: how layers are applied, by themselves or by a kernel's own `linear`."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import Array
from jax.lax import PrecisionLike

from maskattn._problems import Problems
from maskattn.attention import KernelCannot
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.modules import Leading, attend_heads as _attend_heads, of_kernel
from maskattn.modules.parameters import TABLE_SPREAD, Parameter, parameters
from maskattn.modules.run import Asked, Attended, Layer
from maskattn.numerics.dropout import check_dropout
from maskattn.typing import KernelName, Precision, SharedAxis
from maskattn_jax._precision import own_precision
from maskattn_jax._scope import own_modes
from maskattn_jax.functional import FRAMEWORK
from maskattn_jax.types import DType

__all__ = [
    "Built",
    "attend_heads",
    "before_dropout",
    "begins",
    "check_array",
    "check_plain",
    "paths",
    "project_by",
    "project_in",
    "project_one",
]

_LAYOUT = layouts.get("flax-nnx")
_PLAIN = (nnx.LinearGeneral, nnx.Linear)

attend_heads = own_modes(_attend_heads)


def check_array(where: str, name: str, x: object) -> None:
    """Raise a TypeError unless an input of a module is an array."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{where}: {name} must be an array, got {type(x).__name__}")


def project_in(
    layers: tuple[Any, ...],
    inputs: Sequence[Array],
    kernel: KernelName,
    parameters: Callable[[Any], Any],
    **options: Any,
) -> list[Array]:
    """The layers of query, key and value applied to their inputs; by the kernel's own `linear` where it brings one.

    Where all three read one input, that is one linear map, as in the PyTorch twin: the input's gradient is then one sum
    in one order, rounded once. `options` are of the layers' own call.
    """
    own = of_kernel(FRAMEWORK, kernel, "linear")
    if own is None:
        return [layer(x, **options) for layer, x in zip(layers, inputs, strict=True)]
    options = {"dtype": layers[0].dtype, "promote": _promotion(layers[0])}
    pairs = [parameters(layer) for layer in layers]
    if any(x is not inputs[0] for x in inputs):
        return [project_by(own, x, weight, bias, 1, **options) for x, (weight, bias) in zip(inputs, pairs, strict=True)]
    shapes = [weight.shape[1:] for weight, _ in pairs]
    weight = jnp.concatenate([w.reshape(w.shape[0], -1) for w, _ in pairs], axis=1)
    bias = None if pairs[0][1] is None else jnp.concatenate([b.reshape(-1) for _, b in pairs])
    out = project_by(own, inputs[0], weight, bias, 1, **options)
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    return [
        part.reshape(*part.shape[:-1], *shape)
        for part, shape in zip(jnp.split(out, ends[:-1], axis=-1), shapes, strict=True)
    ]


def project_by(
    linear: Callable[..., Array],
    x: Array,
    kernel: Array,
    bias: Array | None,
    in_axes: int,
    dtype: DType | None,
    promote: Callable[..., Any] = promote_dtype,
) -> Array:
    """The last `in_axes` axes of x contracted with the first of the kernel, by `linear(x [..., in], [in, out], [out])`.

    Returns:
        x's other axes, then the kernel's.
    """
    x, kernel, bias = promote((x, kernel, bias), dtype=dtype)
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
        out = project_by(own, x, weight, bias, 1, layer.dtype, _promotion(layer))
    return out.reshape(*x.shape[:-1], -1)


def _promotion(layer: Any) -> Callable[..., Any]:
    """How a layer brings input, kernel and bias to one dtype; those of Linen do as Flax does by default."""
    if not isinstance(layer, nnx.Module):  # Linen's takes its arguments in another way, and is the same for all
        return promote_dtype
    own: Callable[..., Any] = getattr(layer, "promote_dtype", promote_dtype)
    return own


def check_plain(layers: Mapping[str, object], kernel: KernelName) -> None:
    """Raise KernelCannot where a kernel computes from weights, and a layer of NNX is more than its weight and bias."""
    if of_kernel(FRAMEWORK, kernel, "linear") is None:
        return
    others = {name: type(layer).__name__ for name, layer in layers.items() if type(layer) not in _PLAIN}
    says = "it computes from the layer's weight, so use another kernel, or merge or remove what was added"
    if others:
        raise KernelCannot(
            kernel, [f"{name} must be a plain layer of Flax, got {what}: {says}" for name, what in others.items()]
        )


def before_dropout(
    layer: Layer[Array], inputs: Sequence[Array], asked: Asked[Array], attended: Attended[Array], leading: Leading
) -> Array:
    """The weights of a call before dropout, [..., H, L, S]."""
    found = attended.weights
    if found is None or asked.rate:
        asked = replace(asked, rate=0.0, dropout_key=None, weights=True, lse=False)
        found = attend_heads(layer, inputs, asked).weights
    assert found is not None
    return found if len(leading.axes) == 1 else leading.unflat(found)


@dataclass(frozen=True)
class Built:
    """How a module was made, beside its configuration and its parameters.

    Attributes:
        precision: of the products of attention.
        dropout_broadcast: the axes whose entries share one draw of the weights' dropout.
    """

    precision: Precision = "highest"
    dropout_broadcast: tuple[SharedAxis, ...] = ()

    @classmethod
    def of(
        cls,
        where: str,
        config: AttentionConfig,
        precision: PrecisionLike,
        dropout_broadcast: tuple[SharedAxis, ...],
        inits: Mapping[str, object] | None,
    ) -> Built:
        """As given to a module.

        Raises:
            TypeError, ValueError: lists each argument at fault.
        """
        problems = Problems(where)
        precise = own_precision(problems, precision)
        check_dropout(problems, 0.0, None, dropout_broadcast)
        unknown = [name for name in inits or () if name not in parameters(config)]
        if unknown:
            known = ", ".join(parameters(config)) or "none"
            problems.value(f"part_inits may name what the parts learn ({known}), got {', '.join(map(repr, unknown))}")
        problems.raise_if_any()
        return cls(precise, dropout_broadcast)

    @property
    def options(self) -> dict[str, Any]:
        """As arguments of `attention`."""
        return vars(self)


@functools.lru_cache(maxsize=256)
def paths(config: AttentionConfig) -> Mapping[str, tuple[tuple[str, ...], Parameter]]:
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
