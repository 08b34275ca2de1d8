"""Norms of queries and keys."""

from __future__ import annotations

from maskattn._declared import Declared, choice, declared, flag, number
from maskattn._problems import Problems


@declared
class Norm(Declared):
    """A norm of each query head and each key head.

    RMS: x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019, equation 4); layer: (x - mean(x)) / sqrt(var(x) + eps)
    (Ba et al. 2016, equation 4). Then times the scale, plus the bias.
    """

    kind: str = choice("rms", "layer", default="rms", meaning="root mean square, or layer norm")
    eps: float = number(minimum=0, default=1e-6, meaning="what is added below the root")
    over: str = choice("head", "all", default="head", meaning="one head at a time, or all heads of a token together")
    scale: str = choice(
        "shared",
        "per_head",
        "none",
        default="shared",
        meaning="the learned scale: [D], the same for every head; [H, D] (of keys [K, D]); or none",
    )
    plus_one: bool = flag(default=False, meaning="whether 1 + scale multiplies, as in Gemma")
    bias: bool = flag(default=False, meaning="whether a learned bias is added, of the shape of the scale")
    after_rotary: bool = flag(default=False, meaning="whether it comes after the rotary embedding, as in Llama 4")

    def _check(self, problems: Problems) -> None:
        """a norm over all heads has one scale for each, or a norm without scale has a bias or adds one to it"""
        if self.over == "all" and self.scale == "shared":
            problems.value('scale must be "per_head" or "none" where the norm is over all heads, got "shared"')
        if self.scale == "none" and (self.bias or self.plus_one):
            problems.value('bias and plus_one must be False where scale is "none"')
