"""The small parts of a layer: each says what it is, and `modules/run.py` when it comes."""

from __future__ import annotations

from maskattn._declared import Declared, choice, declared, flag, number
from maskattn._problems import Problems

#: Cosine attention: below this a vector counts as of this length, as in PyTorch's `normalize`.
SHORTEST = 1e-12


@declared
class Clip(Declared):
    """Queries, keys and values kept within bounds after their projections, as in OLMo and MPT."""

    limit: float = number(above=0, meaning="c: x becomes min(max(x, -c), c)")


@declared
class Cosine(Declared):
    """Cosine attention with a learned scale per head: Swin v2's (Liu et al. 2022, section 3.2).

    The logits are cos(q, k) * exp(min(logit_scale[h], ln(most))); `logit_scale` [H] begins at ln 10. `scale` of the
    configuration multiplies them too; it is 1 where it is not given.
    """

    most: float = number(above=0, default=100.0, meaning="the largest scale")


@declared
class Temperature(Declared):
    """Queries scaled by their position: Llama 4's, in its layers without rotary embedding.

    The query at position p is multiplied by 1 + scale * ln(1 + floor((p + 1) / floor)).
    """

    scale: float = number(default=0.1, meaning="how strongly")
    floor: float = number(above=0, default=8192.0, meaning="so many tokens share a step")


@declared
class Gate(Declared):
    """The output of attention times an activation of a projection of the query input, before the output projection.

    Qiu et al. 2025, "Gated attention for large language models": sigmoid, one gate per number of the output
    (Qwen3-Next) or one per head. Its projection is `gate.kernel` [E, H * Dv], or [E, H].
    """

    per: str = choice(
        "number", "head", default="number", meaning="one gate for each number of the output, or each head"
    )
    activation: str = choice("sigmoid", "silu", "tanh", default="sigmoid", meaning="of the gate")
    bias: bool = flag(default=False, meaning="whether its projection has a bias")


@declared
class ExtraKeys(Declared):
    """Keys and values that stand behind those of the sequence, and that every query may attend to.

    As `torch.nn.MultiheadAttention` has them: `add_bias_kv` (one learned key and value, `bias_k` [K, D] and `bias_v`
    [K, Dv]), then `add_zero_attn` (one of zeros).
    """

    learned: bool = flag(default=True, meaning="whether there is the learned one")
    zero: bool = flag(default=False, meaning="whether there is the one of zeros")

    def _check(self, problems: Problems) -> None:
        """there is none"""
        if not (self.learned or self.zero):
            problems.value("learned or zero must be True, got neither")

    @property
    def count(self) -> int:
        """How many there are."""
        return self.learned + self.zero


@declared
class GlobalTokens(Declared):
    """Projections of their own for queries that attend to everything: Longformer's (Beltagy et al. 2020, section 3.1).

    A call says which tokens are global, `global_tokens` bool [B, S]. Their queries, and the keys and values that these
    attend to, come from `query_global`, `key_global` and `value_global`; all other queries use the projections that
    every layer has. The mask says who attends to whom, as everywhere: `SlidingWindow(w, w) | Global(tokens)`.
    """

    bias: bool = flag(default=True, meaning="whether these projections have a bias")
