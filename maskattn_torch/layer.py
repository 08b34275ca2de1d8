"""The arithmetic of a layer's parts on PyTorch's tensors: what `maskattn/modules/run.py` asks of a twin.

Everything is computed in float32 at least (float64 for float64 inputs) and rounded once to the dtype of `x`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch.nn import functional as F

from maskattn.layer.norm import Norm
from maskattn.layer.parts import SHORTEST, Temperature
from maskattn.layer.position_bias import ContinuousTable
from maskattn.layer.rotary import DynamicNTK, LongRope, Rotary
from maskattn_torch._devices import beside, gathered, heads_of, mean, of_heads
from maskattn_torch.types import Array, Given

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
            wide = wide - mean(wide, axes)
        made = wide * torch.rsqrt(mean(wide.square(), axes) + norm.eps)
        if scale is not None:
            factor = scale.to(made.dtype)
            made = made * (1 + factor if norm.plus_one else factor)
        if bias is not None:
            made = made + bias.to(made.dtype)
        return made.to(x.dtype)

    def frequencies(
        self, rotary: Rotary, head_dim: int, length: int | None, positions: Int[Array, "B L"]
    ) -> Float[Array, " pairs"]:
        """`rotary.frequencies`; where the length is None it is the largest of `positions` plus one."""
        scaling, device = rotary.scaling, positions.device
        compiling = torch.compiler.is_compiling()  # which may leave a length open
        if scaling is None or not rotary.follows_length or (length is not None and not compiling):
            return _table(rotary, head_dim, 0 if compiling else length or 0).to(device)
        positions = gathered(positions)
        most = positions.max() + 1 if length is None else torch.tensor(length, device=device)
        short = _table(rotary, head_dim, 1).to(device)
        if isinstance(scaling, LongRope):
            return torch.where(most > scaling.trained, _table(rotary, head_dim, scaling.trained + 1).to(device), short)
        assert isinstance(scaling, DynamicNTK)
        growth = scaling.growth(most.clamp(min=scaling.trained).double())
        pairs = short.shape[0]
        return (short.double() * growth ** (torch.arange(pairs, device=device) / -max(pairs - 1, 1)).double()).float()

    def turns(self, rotary: Rotary, positions: Array, frequencies: Float[Array, " pairs"], x: Array) -> Turns:
        """Cosine and sine, times the attention factor, of float32(position) * frequency in float32."""
        where = positions.to(torch.float32)
        if rotary.axes:
            where = torch.cat(
                [where[..., n : n + 1].expand(*where.shape[:-1], m) for n, m in enumerate(rotary.axes)], -1
            )
        else:
            where = where[..., None]
        angles = beside((where * beside(frequencies, where)).to(_wide(x).dtype)[:, :, None], x)
        cos, sin, factor = angles.cos(), angles.sin(), rotary.factor
        return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)

    def rotate(self, x: Float[Array, "B L H D"], turns: Turns, rotary: Rotary) -> Float[Array, "B L H D"]:
        """The pairs of x [B, L, H, D] turned: (a, b) -> (a cos - b sin, b cos + a sin)."""
        cos, sin = turns
        width = 2 * cos.shape[-1]
        wide, rest = _wide(x[..., :width]), x[..., width:]
        if rotary.pairs == "half":
            a, b = wide.chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        else:
            a, b = wide[..., ::2], wide[..., 1::2]
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        turned = turned.to(x.dtype)
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned

    def temperature(
        self, x: Float[Array, "B L H D"], positions: Int[Array, "#B L"], part: Temperature
    ) -> Float[Array, "B L H D"]:
        """x [B, L, H, D] times 1 + scale * ln(1 + floor((p + 1) / floor)), p its positions [B or 1, L]."""
        wide = _wide(x)
        steps = torch.floor((positions.to(wide.dtype) + 1) / part.floor)
        return (wide * beside(torch.log1p(steps) * part.scale + 1, x)[:, :, None, None]).to(x.dtype)

    def cosine(
        self, x: Float[Array, "B L H D"], logit_scale: Float[Array, " H"] | None, most: float
    ) -> Float[Array, "B L H D"]:
        """x [B, L, H, D] as unit vectors, those of head h times exp(min(logit_scale[h], ln(most)))."""
        made = F.normalize(_wide(x), dim=-1, eps=SHORTEST)
        if logit_scale is not None:
            made = made * logit_scale.to(made.dtype).clamp(max=math.log(most)).exp()[:, None]
        return made.to(x.dtype)

    def clip(self, x: Float[Array, "B L H D"], limit: float) -> Float[Array, "B L H D"]:
        """x [B, L, H, D] within [-limit, limit]."""
        return x.clamp(-limit, limit)

    def gate(
        self, x: Float[Array, "B L H Dv"], gate: Float[Array, "B L H #Dv"], activation: str
    ) -> Float[Array, "B L H Dv"]:
        """x [B, L, H, Dv] times the activation of gate [B, L, H, Dv or 1]."""
        return (_wide(x) * _ACTIVATIONS[activation](_wide(gate))).to(x.dtype)

    def continuous(
        self, part: ContinuousTable, hidden: Float[Array, "2 N"], bias: Float[Array, " N"], out: Float[Array, "N H"]
    ) -> Float[Array, "offsets H"]:
        """16 * sigmoid(relu(offsets @ hidden + bias) @ out), [offsets, H] in the dtype of the parameters."""
        offsets = self.as_array(part.offsets(), hidden).to(hidden.dtype)
        return 16 * torch.sigmoid(torch.relu(offsets @ hidden + bias) @ out)

    def products(
        self, x: Float[Array, "B L K D"], y: Float[Array, "R K2 D"], heads: int, scale: float
    ) -> Float[Array, "B H L R"]:
        """scale * x.y, x [B, L, H or K, D], y [R, H or K, D] -> [B, H, L, R]: K heads serve H // K each."""
        x, y = x.repeat_interleave(heads // x.shape[2], 2), y.repeat_interleave(heads // y.shape[1], 1)
        return torch.einsum("blhd,rhd->bhlr", _wide(x), _wide(y)).mul(scale).to(x.dtype)

    def arange(self, length: int, like: Array) -> Int[Array, "1 L"]:
        """0, 1, ... as [1, length], where `like` is."""
        return torch.arange(length, device=like.device)[None]

    def as_array(self, x: Given, like: Array | None) -> Array:
        """A tensor, where `like` is; a DTensor where that is one."""
        made = torch.as_tensor(x, device=None if like is None else like.device)
        return made if like is None else beside(made, like)

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """The arrays one after the other along an axis."""
        return torch.cat(list(arrays), axis)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where the condition holds, else y."""
        return torch.where(condition, x, y)

    def broadcast(self, x: Array, shape: Sequence[int], like: Array) -> Array:
        """x in the dtype of `like`, of a larger shape."""
        return x.to(like.dtype).expand(tuple(shape))

    def zeros(self, shape: Sequence[int], like: Array) -> Array:
        """Zeros of the dtype of `like`, where it is."""
        return like.new_zeros(tuple(shape))

    def identity(self, size: int, like: Array) -> Array:
        """The unit matrix, of the dtype of `like`."""
        return beside(torch.eye(size, dtype=like.dtype, device=like.device), like)

    def held(self, x: Float[Array, "B L K D"]) -> Float[Array, "B L K D"]:
        """Keys or values as a cache takes them: of DTensors those of this device's heads."""
        return heads_of(x)

    def of_cache(self, x: Float[Array, "B S K D"], like: Array) -> Float[Array, "B S K D"]:
        """What a cache holds, as `like` is divided."""
        return of_heads(x, like)


def _wide(x: Array) -> Array:
    """x in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"sigmoid": torch.sigmoid, "silu": F.silu, "tanh": torch.tanh}


@torch.compiler.assume_constant_result
def _table(rotary: Rotary, head_dim: int, length: int) -> Array:
    """`rotary.frequencies`, on the CPU."""
    return torch.tensor(rotary.frequencies(head_dim, length))


LAYER = Parts()
