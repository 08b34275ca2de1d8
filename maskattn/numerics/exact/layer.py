"""The exact functions of a layer, by the names that a layer calls them; each framework applies them its own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from maskattn.numerics.exact import (
    activation as _activation,
    clip,
    cosine,
    embed,
    growth,
    norm,
    products,
    project,
    rotate,
    sums,
    temperature,
)
from maskattn.numerics.exact._ops import Array
from maskattn.numerics.exact.rule import Arrays, Options, Rule

#: What comes of a function: its result, or the gradients of its arrays.
Result = TypeVar("Result")

#: All of them, in the order of their methods.
RULES: tuple[Rule, ...] = (
    norm.NORM,
    growth.GROWTH,
    rotate.ROTATE,
    temperature.TEMPERATURE,
    cosine.COSINE,
    clip.CLIP,
    _activation.GATE,
    _activation.ACTIVATE,
    products.PRODUCTS,
    project.LINEAR,
    sums.ADD,
    sums.MULTIPLY,
    sums.MERGE,
    embed.EMBED,
)


class Layer(Generic[Result]):
    """What stands between the projections and attention, in exact arithmetic.

    Each result has the dtype of ``x``, and its shape where nothing else is said, and is the true value, rounded once.
    Other arrays may be of another floating type; their gradients are of that type.

    Args:
        apply: ``apply(rule, arrays, options)`` in a framework.
    """

    def __init__(self, apply: Callable[[Rule, Arrays, Options], Result]) -> None:
        self._apply = apply

    def norm(
        self,
        x: Array,
        scale: Array | None,
        bias: Array | None,
        *,
        kind: str,
        eps: float,
        over: str = "head",
        plus_one: bool = False,
    ) -> Result:
        """x / sqrt(mean(x^2) + eps) (``kind`` "rms"), or of x less its mean ("layer"), times ``scale``, plus ``bias``.

        ``x`` [..., heads, width]; ``scale`` and ``bias`` [width] or [heads, width], or None. Means are over the last
        axis (``over`` "head") or the last two ("all"); ``plus_one``: 1 + scale multiplies.
        """
        _check("kind", kind, ("rms", "layer"))
        _check("over", over, ("head", "all"))
        return self._apply(norm.NORM, (x, scale, bias), norm.Options(kind, float(eps), over, bool(plus_one)))

    def growth(self, frequencies: Array, length: Array, *, by: float, trained: float) -> Result:
        """Dynamic NTK's ``frequencies`` [width / 2] for a call of ``length`` tokens, int [1].

        Frequency j of n is divided by (1 + by (max(length, trained) / trained - 1))^(j / (n - 1)). No gradient.
        """
        return self._apply(growth.GROWTH, (frequencies, length), growth.Options(float(by), float(trained)))

    def rotate(
        self, x: Array, positions: Array, frequencies: Array, *, pairs: str = "half", factor: float = 1.0
    ) -> Result:
        """Pairs (a, b) of each head's first numbers as (a cos - b sin, b cos + a sin), cos and sin times ``factor``.

        ``x`` [B, L, heads, D]; ``positions`` [B or 1, L], or [B or 1, L, width / 2] where each pair has its own,
        integers or floats; ``frequencies`` [width / 2], of pairs (i, i + width / 2) (``pairs`` "half") or
        (2i, 2i + 1) ("interleaved"). The angle is the float32 product of float32(position) and float32(frequency);
        from 2^31 on results are NaN. What is behind ``width`` stays. Only ``x`` has a gradient.
        """
        _check("pairs", pairs, ("half", "interleaved"))
        if 2 * frequencies.shape[-1] > x.shape[-1]:
            count, width = frequencies.shape[-1], x.shape[-1]
            raise ValueError(f"frequencies must be of at most {width // 2} pairs for heads of {width}, got {count}")
        return self._apply(rotate.ROTATE, (x, positions, frequencies), rotate.Options(pairs, float(factor)))

    def temperature(self, x: Array, positions: Array, *, scale: float, floor: float) -> Result:
        """``x * (1 + scale * ln(1 + floor((p + 1) / floor)))`` for the positions p, int [B or 1, L] and at least -1, of
        ``x`` [B, L, heads, D].
        """
        options = temperature.Options(float(scale), float(floor))
        return self._apply(temperature.TEMPERATURE, (x, positions), options)

    def cosine(self, x: Array, logit_scale: Array | None = None, *, eps: float, most: float = 1.0) -> Result:
        """``x / max(|x|, eps)`` over the last axis of ``x`` [..., heads, D], times e^min(s, ln most) where there is a
        ``logit_scale`` s [heads].
        """
        return self._apply(cosine.COSINE, (x, logit_scale), cosine.Options(float(eps), float(most)))

    def clip(self, x: Array, limit: float) -> Result:
        """``min(max(x, -limit), limit)``; what is beyond has no gradient."""
        return self._apply(clip.CLIP, (x,), clip.Options(float(limit)))

    def gate(self, x: Array, gate: Array, activation: str = "sigmoid") -> Result:
        """``x * activation(gate)``, one of `activation.ACTIVATIONS`; ``gate`` broadcasts to the shape of ``x``, and its
        gradient sums over those axes in order.
        """
        _check("activation", activation, _activation.ACTIVATIONS)
        return self._apply(_activation.GATE, (x, gate), _activation.GateOptions(activation))

    def activate(self, x: Array, activation: str, factor: float = 1.0) -> Result:
        """``factor * activation(x)``, one of `activation.ACTIVATIONS`."""
        _check("activation", activation, _activation.ACTIVATIONS)
        return self._apply(_activation.ACTIVATE, (x,), _activation.ActivateOptions(activation, float(factor)))

    def products(self, x: Array, y: Array, heads: int, scale: float) -> Result:
        """``scale * x . y`` over the last axis: ``x`` [B, L, H or K, D], ``y`` [R, H or K, D] -> [B, H, L, R], where K
        heads serve H // K each.
        """
        for name, side in (("x", x), ("y", y)):
            if heads % side.shape[-2]:
                raise ValueError(f"heads must be a multiple of those of {name}, {side.shape[-2]}, got {heads}")
        return self._apply(products.PRODUCTS, (x, y), products.Options(int(heads), float(scale)))

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Result:
        """``x @ weight + bias``: ``x`` [N, in], ``weight`` [in, out], ``bias`` [out] or None, of one dtype."""
        return self._apply(project.LINEAR, (x, weight, bias), project.Options())

    def add(self, x: Array, y: Array, factor: float = 1.0) -> Result:
        """``x + factor * y``, which broadcast; in the dtype of ``x``."""
        return self._apply(sums.ADD, (x, y), sums.AddOptions(float(factor)))

    def multiply(self, x: Array, y: Array) -> Result:
        """``x * y``, which broadcast; in the dtype of ``x``."""
        return self._apply(sums.MULTIPLY, (x, y), sums.Options())

    def merge(self, x: Array, y: Array) -> Result:
        """``x + y`` of one shape and dtype, as two gradients of one array are added: 0 changes no bit of the other."""
        return self._apply(sums.MERGE, (x, y), sums.Options())

    def embed(self, table: Array, ids: Array) -> Result:
        """``table[ids]``: ``table`` [R, W], integers [...] from 0 to R - 1 -> [..., W] in the table's dtype."""
        return self._apply(embed.EMBED, (table, ids), embed.Options())


def _check(name: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, got {word!r}")
