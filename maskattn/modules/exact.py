"""The parts of a layer in exact arithmetic: `Arithmetic` by the functions of `numerics/exact`, in any framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from maskattn.layer.norm import Norm
from maskattn.layer.parts import SHORTEST, Temperature
from maskattn.layer.position_bias import ContinuousTable
from maskattn.layer.rotary import DynamicNTK, Rotary
from maskattn.modules.run import Arithmetic
from maskattn.numerics.exact.layer import Layer
from maskattn.typing import Traced as Array

__all__ = ["ExactParts", "Turns"]

#: Positions of each pair, or of all together, [B or 1, L, pairs or 1]; and frequencies [pairs].
Turns: TypeAlias = tuple[Array, Array]


class ExactParts:
    """See `maskattn.modules.run.Arithmetic`. Each formula is the true value, rounded once to the dtype of `x`.

    Attributes:
        exact: the functions of `numerics/exact` in a framework.
        linear: its exact `x @ weight + bias`, of x [..., in].
        plain: its other arithmetic, of which what does not round is taken.
    """

    def __init__(self, exact: Layer[Array], linear: Callable[..., Array], plain: Arithmetic[Array]) -> None:
        self.exact, self.linear, self.plain = exact, linear, plain

    def __getattr__(self, name: str) -> Callable[..., Array]:
        made: Callable[..., Array] = getattr(self.__dict__["plain"], name)
        return made

    def norm(self, x: Array, scale: Array | None, bias: Array | None, norm: Norm) -> Array:
        """x [B, L, heads, width]; scale and bias None, [width] or [heads, width]."""
        return self.exact.norm(x, scale, bias, kind=norm.kind, eps=norm.eps, over=norm.over, plus_one=norm.plus_one)

    def frequencies(self, rotary: Rotary, head_dim: int, length: int | None, positions: Array) -> Array:
        """`rotary.frequencies`; those of a theta that grows are made of the float32 ones, whatever is known when."""
        scaling = rotary.scaling
        if not isinstance(scaling, DynamicNTK):
            return self.plain.frequencies(rotary, head_dim, length, positions)
        usual = self.plain.as_array(rotary.frequencies(head_dim).copy(), positions)  # PyTorch warns of read-only ones
        reach = positions.max() + 1 if length is None else self.plain.zeros((1,), positions) + length
        return self.exact.growth(usual, reach.reshape((1,)), by=scaling.by, trained=scaling.trained)

    def turns(self, rotary: Rotary, positions: Array, frequencies: Array, x: Array) -> Turns:
        """What `rotate` reads: cosine and sine are made there, of angles in float32, and are never rounded."""
        if not rotary.axes:
            return positions[..., None], frequencies
        shape, axes = positions.shape[:-1], enumerate(rotary.axes)
        parts = [self.plain.broadcast(positions[..., n : n + 1], (*shape, m), positions) for n, m in axes]
        return self.plain.concatenate(parts, -1), frequencies

    def counted(self, rotary: Rotary, head_dim: int, first: int, count: int, x: Array) -> None:
        """None: no turns are kept from call to call."""

    def rotate(self, x: Array, turns: Turns, rotary: Rotary) -> Array:
        """x [B, L, heads, D] with its first numbers turned."""
        return self.exact.rotate(x, *turns, pairs=rotary.pairs, factor=rotary.factor)

    def temperature(self, x: Array, positions: Array, part: Temperature) -> Array:
        """x [B, L, heads, D] scaled by its positions [B or 1, L]."""
        return self.exact.temperature(x, positions, scale=part.scale, floor=part.floor)

    def cosine(self, x: Array, logit_scale: Array | None, most: float) -> Array:
        """x [B, L, heads, D] as unit vectors, those of head h times exp(min(logit_scale[h], ln(most)))."""
        return self.exact.cosine(x, logit_scale, eps=SHORTEST, most=most)

    def clip(self, x: Array, limit: float) -> Array:
        """x within [-limit, limit]."""
        return self.exact.clip(x, limit)

    def gate(self, x: Array, gate: Array, activation: str) -> Array:
        """x [B, L, H, Dv] times the activation of gate [B, L, H, Dv or 1]."""
        return self.exact.gate(x, gate, activation)

    def continuous(self, part: ContinuousTable, hidden: Array, bias: Array, out: Array) -> Array:
        """The table [offsets, H] of the network's kernels [2, hidden] and [hidden, H] and its bias [hidden]: each layer
        rounded to their dtype."""
        wide = "float64" in str(hidden.dtype)
        offsets = self.plain.as_array(part.offsets().astype(np.float64 if wide else np.float32), hidden)
        offsets = self.plain.broadcast(offsets, offsets.shape, hidden)
        inner = self.exact.activate(self.linear(offsets, hidden, bias), "relu")
        return self.exact.activate(self.linear(inner, out), "sigmoid", 16.0)

    def products(self, x: Array, y: Array, heads: int, scale: float) -> Array:
        """scale * x.y over the last axes: x [B, L, H or K, D], y [R, H or K, D] -> [B, H, L, R]."""
        return self.exact.products(x, y, heads, scale)
