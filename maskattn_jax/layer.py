"""The arithmetic of a layer's parts on JAX's arrays: what `maskattn/modules/run.py` asks of a twin.

Everything is computed in float32 at least (float64 for float64 inputs) and rounded once to the dtype of `x`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from maskattn.layer.norm import Norm
from maskattn.layer.parts import SHORTEST, Temperature
from maskattn.layer.position_bias import ContinuousTable
from maskattn.layer.rotary import DynamicNTK, LongRope, Rotary
from maskattn_jax._mesh import alike
from maskattn_jax.types import Array, Given

__all__ = ["LAYER", "Parts", "Turns"]

#: Cosine and sine of every angle, each [B or 1, L, 1, width / 2].
Turns: TypeAlias = tuple[Array, Array]


class Parts:
    """See `maskattn.modules.run.Arithmetic`."""

    def norm(
        self, x: Float[Array, "B L H D"], scale: Array | None, bias: Array | None, norm: Norm
    ) -> Float[Array, "B L H D"]:
        """x [B, L, H, D] normed over its last axis, or its last two; scale and bias None, [D] or [H, D]."""
        wide = _wide(x)
        axes = (-2, -1) if norm.over == "all" else (-1,)
        if norm.kind == "layer":
            wide = wide - wide.mean(axes, keepdims=True)
        made = wide * jax.lax.rsqrt(jnp.square(wide).mean(axes, keepdims=True) + norm.eps)
        if scale is not None:
            factor = scale.astype(made.dtype)
            made = made * (1 + factor if norm.plus_one else factor)
        if bias is not None:
            made = made + bias.astype(made.dtype)
        return made.astype(x.dtype)

    def frequencies(
        self, rotary: Rotary, head_dim: int, length: int | None, positions: Int[Array, "B L"]
    ) -> Float[Array, " pairs"]:
        """`rotary.frequencies`; where the length is None it is the largest of `positions` plus one."""
        scaling = rotary.scaling
        if scaling is None or not rotary.follows_length or isinstance(length, int):
            return jnp.asarray(rotary.frequencies(head_dim, length or 0))
        most = positions.max() + 1 if length is None else jnp.asarray(length)
        short = jnp.asarray(rotary.frequencies(head_dim, 1))
        if isinstance(scaling, LongRope):
            return jnp.where(most > scaling.trained, rotary.frequencies(head_dim, scaling.trained + 1), short)
        assert isinstance(scaling, DynamicNTK)
        growth = scaling.growth(jnp.maximum(most, scaling.trained).astype(jnp.float32))
        pairs = short.shape[0]
        return short * growth ** (jnp.arange(pairs) / -max(pairs - 1, 1)).astype(jnp.float32)

    def turns(self, rotary: Rotary, positions: Array, frequencies: Float[Array, " pairs"], x: Array) -> Turns:
        """Cosine and sine, times the attention factor, of float32(position) * frequency in float32."""
        where = positions.astype(jnp.float32)
        if rotary.axes:
            shape = where.shape[:-1]
            parts = [jnp.broadcast_to(where[..., n : n + 1], (*shape, m)) for n, m in enumerate(rotary.axes)]
            where = jnp.concatenate(parts, -1)
        else:
            where = where[..., None]
        # the product is rounded before the angle is used: a compiler may not fuse it with what follows
        angles = jax.lax.optimization_barrier(where * frequencies).astype(_wide(x).dtype)[:, :, None]
        return jnp.cos(angles) * rotary.factor, jnp.sin(angles) * rotary.factor

    def counted(self, rotary: Rotary, head_dim: int, first: int, count: int, x: Array) -> Turns | None:
        """None: no turns are kept from call to call, a compiled call makes its own."""
        return None

    def rotate(self, x: Float[Array, "B L H D"], turns: Turns, rotary: Rotary) -> Float[Array, "B L H D"]:
        """The pairs of x [B, L, H, D] turned: (a, b) -> (a cos - b sin, b cos + a sin)."""
        cos, sin = turns
        width = 2 * cos.shape[-1]
        wide, rest = _wide(x[..., :width]), x[..., width:]
        if rotary.pairs == "half":
            a, b = jnp.split(wide, 2, -1)
            turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        else:
            a, b = wide[..., ::2], wide[..., 1::2]
            turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(wide.shape)
        turned = turned.astype(x.dtype)
        return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned

    def temperature(
        self, x: Float[Array, "B L H D"], positions: Int[Array, "#B L"], part: Temperature
    ) -> Float[Array, "B L H D"]:
        """x [B, L, H, D] times 1 + scale * ln(1 + floor((p + 1) / floor)), p its positions [B or 1, L]."""
        wide = _wide(x)
        steps = jnp.floor((positions.astype(wide.dtype) + 1) / part.floor)
        return (wide * (jnp.log1p(steps) * part.scale + 1)[:, :, None, None]).astype(x.dtype)

    def cosine(
        self, x: Float[Array, "B L H D"], logit_scale: Float[Array, " H"] | None, most: float
    ) -> Float[Array, "B L H D"]:
        """x [B, L, H, D] as unit vectors, those of head h times exp(min(logit_scale[h], ln(most)))."""
        wide = _wide(x)
        squares = jnp.square(wide).sum(-1, keepdims=True)
        made = wide / jnp.where(squares > SHORTEST**2, jnp.sqrt(jnp.maximum(squares, SHORTEST**2)), SHORTEST)
        if logit_scale is not None:
            made = made * jnp.exp(jnp.minimum(logit_scale.astype(made.dtype), math.log(most)))[:, None]
        return made.astype(x.dtype)

    def clip(self, x: Float[Array, "B L H D"], limit: float) -> Float[Array, "B L H D"]:
        """x [B, L, H, D] within [-limit, limit]."""
        return jnp.clip(x, -limit, limit)

    def gate(
        self, x: Float[Array, "B L H Dv"], gate: Float[Array, "B L H #Dv"], activation: str
    ) -> Float[Array, "B L H Dv"]:
        """x [B, L, H, Dv] times the activation of gate [B, L, H, Dv or 1]."""
        return (_wide(x) * _ACTIVATIONS[activation](_wide(gate))).astype(x.dtype)

    def continuous(
        self, part: ContinuousTable, hidden: Float[Array, "2 N"], bias: Float[Array, " N"], out: Float[Array, "N H"]
    ) -> Float[Array, "offsets H"]:
        """16 * sigmoid(relu(offsets @ hidden + bias) @ out), [offsets, H] in the dtype of the parameters."""
        offsets = jnp.asarray(part.offsets(), hidden.dtype)
        inner = jax.nn.relu(jnp.matmul(offsets, hidden, precision="highest") + bias)
        return 16 * jax.nn.sigmoid(jnp.matmul(inner, out, precision="highest"))

    def products(
        self, x: Float[Array, "B L K D"], y: Float[Array, "R K2 D"], heads: int, scale: float
    ) -> Float[Array, "B H L R"]:
        """scale * x.y, x [B, L, H or K, D], y [R, H or K, D] -> [B, H, L, R]: K heads serve H // K each."""
        x, y = _shared(x, heads), _shared(y, heads)
        made = jnp.einsum("blhd,rhd->bhlr", _wide(x), _wide(y), precision="highest")
        return (made * scale).astype(x.dtype)

    def arange(self, length: int, like: Array) -> Int[Array, "1 L"]:
        """0, 1, ... as [1, length]."""
        return jnp.arange(length)[None]

    def as_array(self, x: Given, like: Array | None) -> Array:
        """An array of JAX."""
        return jnp.asarray(x)

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """The arrays one after the other along an axis."""
        return jnp.concatenate(alike(arrays, axis), axis)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where the condition holds, else y."""
        return jnp.where(condition, x, y)

    def broadcast(self, x: Array, shape: Sequence[int], like: Array) -> Array:
        """x in the dtype of `like`, of a larger shape."""
        return jnp.broadcast_to(x.astype(like.dtype), tuple(shape))

    def zeros(self, shape: Sequence[int], like: Array) -> Array:
        """Zeros of the dtype of `like`."""
        return jnp.zeros(tuple(shape), like.dtype)

    def identity(self, size: int, like: Array) -> Array:
        """The unit matrix, of the dtype of `like`."""
        return jnp.eye(size, dtype=like.dtype)

    def held(self, x: Float[Array, "B L K D"]) -> Float[Array, "B L K D"]:
        """Keys or values as a cache takes them."""
        return x

    def of_cache(self, x: Float[Array, "B S K D"], like: Array) -> Float[Array, "B S K D"]:
        """What a cache holds."""
        return x


def _shared(x: Array, heads: int) -> Array:
    """x [..., K, D] as [..., heads, D]: each of its heads for heads // K."""
    *leading, few, width = x.shape
    if few == heads:
        return x
    return jnp.broadcast_to(x[..., None, :], (*leading, few, heads // few, width)).reshape(*leading, heads, width)


def _wide(x: Array) -> Array:
    """x in float32 at least."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}

LAYER = Parts()
