"""The arithmetic of a layer's parts on PyTorch's tensors: what `maskattn/modules/run.py` asks of a twin.

Everything is computed in float32 at least (float64 for float64 inputs) and rounded once to the dtype of `x`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch.nn import functional as F

from maskattn.layer.norm import Norm
from maskattn.layer.parts import SHORTEST, Temperature
from maskattn.layer.position_bias import ContinuousTable
from maskattn.layer.rotary import DynamicNTK, LongRope, Rotary
from maskattn_torch._devices import beside, gathered, heads_of, mean, of_heads
from maskattn_torch._modes import plain
from maskattn_torch.types import Array, DType, Given

__all__ = ["LAYER", "Parts", "Turns"]

#: Of every angle, each [B or 1, L, 1, ..]: of half-split pairs the cosines twice, and the sines twice, first negated,
#: [.., width]; of interleaved pairs cosine and sine [.., width / 2], or one array of both as complex numbers.
Turns: TypeAlias = tuple[Array, ...]

_WHOLE = (torch.Tensor, torch.nn.Parameter)
#: So many numbers of one embedding are kept.
_MOST = 1 << 21


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
            return _table(rotary, head_dim, 0 if compiling else length or 0).to(device, non_blocking=True)
        positions = gathered(positions)
        most = positions.max() + 1 if length is None else torch.full((), length, device=device)
        short = _table(rotary, head_dim, 1).to(device, non_blocking=True)
        if isinstance(scaling, LongRope):
            return torch.where(
                most > scaling.trained,
                _table(rotary, head_dim, scaling.trained + 1).to(device, non_blocking=True),
                short,
            )
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
        if factor != 1.0:
            cos, sin = cos * factor, sin * factor
        if rotary.pairs == "half":
            return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        # a compiler has no complex numbers of its own, and fuses what is done without them
        return (torch.complex(cos, sin),) if type(x) in _WHOLE and x.is_cpu and plain() else (cos, sin)

    def counted(self, rotary: Rotary, head_dim: int, first: int, count: int, x: Array) -> Turns | None:
        """`turns` of the positions first, first + 1, ...: on the CPU they are kept from call to call. None: these are
        not."""
        end = first + count
        if rotary.axes or rotary.follows_length or end * rotary.turned(head_dim) > _MOST:
            return None
        if type(x) not in _WHOLE or not x.is_cpu or not plain():
            return None
        tables = _kept(rotary, head_dim, dtype := torch.float64 if x.dtype == torch.float64 else torch.float32)
        held = tuple(tables)
        if not held or held[0].shape[1] < end:
            with torch.inference_mode(False), torch.no_grad():
                positions = torch.arange(max(256, 1 << (end - 1).bit_length()), device=x.device)[None]
                frequencies = self.frequencies(rotary, head_dim, None, positions)
                held = self.turns(rotary, positions, frequencies, torch.empty(0, dtype=dtype, device=x.device))
            tables[:] = held
        return tuple([each.narrow(1, first, count) for each in held])

    def rotate(self, x: Float[Array, "B L H D"], turns: Turns, rotary: Rotary) -> Float[Array, "B L H D"]:
        """The pairs of x [B, L, H, D] turned: (a, b) -> (a cos - b sin, b cos + a sin)."""
        cos, sin = turns[0], turns[-1]
        width = cos.shape[-1] if rotary.pairs == "half" else 2 * cos.shape[-1]
        whole = width == x.shape[-1]
        wide = _wide(x if whole else x[..., :width])
        if rotary.pairs == "half":
            turned = torch.addcmul(wide * cos, wide.roll(width // 2, -1), sin)
        elif len(turns) == 1:
            turned = torch.view_as_real(_complex(wide) * cos).flatten(-2)
        else:
            a, b = wide[..., ::2], wide[..., 1::2]
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        turned = turned.to(x.dtype)
        return turned if whole else torch.cat([turned, x[..., width:]], -1)

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
        made = torch.as_tensor(x)
        made = made if like is None else made.to(like.device, non_blocking=True)
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
    return x if x.dtype == torch.float32 or x.dtype == torch.float64 else x.float()


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"sigmoid": torch.sigmoid, "silu": F.silu, "tanh": torch.tanh}


def _complex(x: Array) -> Array:
    """x [..., width] as complex numbers [..., width / 2]."""
    pairs = x.unflatten(-1, (-1, 2))
    if pairs.storage_offset() % 2 or any([n % 2 for n in pairs.stride()[:-1]]) or pairs.stride(-1) != 1:
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(pairs)


@lru_cache(maxsize=8)
def _kept(rotary: Rotary, head_dim: int, dtype: DType) -> list[Array]:
    """The turns of the first positions, as many as were asked for so far: a list to be filled."""
    return []


def _table(rotary: Rotary, head_dim: int, length: int) -> Array:
    """`rotary.frequencies`, on the CPU."""
    if not torch.compiler.is_compiling():
        return torch.tensor(rotary.frequencies(head_dim, length), device="cpu")
    numbers = [float(number) for number in _numbers(rotary, head_dim, length).split()]
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")


@torch.compiler.assume_constant_result
def _numbers(rotary: Rotary, head_dim: int, length: int) -> str:
    """The same as a text: of two tensors that are constants of a function a compiler takes only one."""
    return " ".join(map(repr, rotary.frequencies(head_dim, length).tolist()))


LAYER = Parts()
