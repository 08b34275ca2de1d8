"""Mixtures of experts: a router chooses a few MLPs for each token, and only those are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from maskattn.models.leaves import Array, Linear
from maskattn.models.mlp import Gated
from maskattn.models.part import B, Part, Run
from maskattn.typing import Traced


@dataclass(frozen=True)
class Router(Part):
    """Which experts read a token, and what multiplies what each gives.

    Attributes:
        logits: of each expert.
        picked: how many experts read a token; of equal ones the first.
        scores: "softmax" or "sigmoid" of all logits; "picked" is a softmax of those that are chosen, by their logits.
        renormalized: whether factors of a token are divided by their sum.
        scale: what multiplies them then.
        groups, kept: experts lie in groups, of which the best few are kept: by their best expert, or with sigmoid by
            the sum of their two best.
        correction: what is added to scores when experts are chosen, and not to their factors (DeepSeek-V3).
        wide: whether logits are computed in float32.
    """

    logits: Linear
    picked: int
    scores: str = "softmax"
    renormalized: bool = False
    scale: float = 1.0
    groups: int = 1
    kept: int = 1
    correction: Array | None = None
    wide: bool = False

    def apply(self, at: object, x: B, run: Run[B]) -> tuple[B, B]:
        """x [N, E] -> factors, float32 at least, and experts, int, both [N, picked]."""
        use = run.use
        multiply = use.wide_linear if self.wide else use.linear
        scores = multiply(self.logits, run.find(at, self.logits), x)
        if self.scores == "picked":
            chosen = use.top(scores, self.picked)
            return use.softmax(use.pick(scores, chosen)), chosen
        scores = use.softmax(scores) if self.scores == "softmax" else use.activate(scores, "sigmoid")
        by = scores if self.correction is None else use.add(scores, run.array(self.correction, at))
        if self.kept < self.groups:
            by = self._within_groups(by, run)
        chosen = use.top(by, self.picked)
        factors = use.pick(by if self.scores == "softmax" else scores, chosen)
        if self.renormalized:
            whole: Traced = in_order([_column(factors, n) for n in range(self.picked)], run)
            factors = use.divide(factors, whole.clip(1e-20))
        return factors if self.scale == 1.0 else use.scaled(factors, self.scale), chosen

    def _within_groups(self, by: B, run: Run[B]) -> B:
        """Scores [N, experts], the lowest where a group is not kept."""
        use, whole = run.use, by.shape
        grouped: Traced = by.reshape((whole[0], self.groups, -1))
        best = use.pick(grouped, use.top(grouped, 1 if self.scores == "softmax" else 2))
        totals: Traced = in_order([_column(best, n) for n in range(best.shape[-1])], run)
        kept: Traced = use.top(totals[..., 0], self.kept)
        numbers: Traced = use.arange(self.groups, by)
        held = (kept[..., None] == numbers).any(-2)
        lowest = use.as_array(0.0 if self.scores == "softmax" else float("-inf"), by)
        made: Traced = use.where(held[..., None], grouped, lowest)
        return cast(B, made.reshape(whole))


@dataclass(frozen=True)
class Experts(Part):
    """The sum of what the chosen experts give, each an MLP with a gate, and of what an expert gives that reads all.

    Products are of the rows of one expert at a time, and of no expert that was not chosen. What the experts of a token
    give is summed in the order in which the router names them: in float32, rounded once.

    Attributes:
        up: [experts, 2 * F, E], gates first; [experts, E, 2 * F] where `turned`. down: [experts, E, F], or
            [experts, F, E].
        up_bias, down_bias: [experts, 2 * F] and [experts, E].
        limit: where given, gates and the rest lie in turn in `up`, gates are at most so large and the rest is between
            -limit and limit; then (rest + 1) * gate * sigmoid(sharpness * gate) is what `down` reads (gpt-oss).
        shared: the expert that reads all tokens. weighed: a layer whose sigmoid multiplies what it gives.
        jitter_rate: in training each number of x is multiplied by one between 1 - rate and 1 + rate (Fedus et al. 2021,
            Switch Transformers, appendix F).
    """

    inexact: ClassVar[str] = "experts have no exact form: which of them read a token hangs on a softmax"

    router: Router
    up: Array
    down: Array
    activation: str
    turned: bool = False
    up_bias: Array | None = None
    down_bias: Array | None = None
    limit: float | None = None
    sharpness: float = 1.0
    shared: Gated | None = None
    weighed: Linear | None = None
    jitter_rate: float = 0.0

    def apply(self, at: object, x: B, run: Run[B]) -> B:
        """x [B, L, E] -> [B, L, E]."""
        use, width, picked = run.use, x.shape[-1], self.router.picked
        key = run.next_key() if self.jitter_rate else None
        if key is not None:
            drawn: Traced = use.uniform(key, x.shape)
            x = use.cast(use.product(x, drawn * (2 * self.jitter_rate) + (1 - self.jitter_rate)), x)
        flat: Traced = x.reshape((-1, width))
        factors, chosen = self.router.apply(at, flat, run)
        order, back, counts = use.groups(chosen, self.up.shape[0])
        expert = chosen.reshape(-1)[order]
        inner = self._product(at, self.up, self.up_bias, flat[order // picked], expert, counts, run)
        made: Traced = self._product(at, self.down, self.down_bias, self._gated(inner, run), expert, counts, run)
        made = made[back].reshape((-1, picked, width))
        each = [use.product(made[:, n], _column(factors, n)) for n in range(picked)]
        total: Traced = use.cast(in_order(each, run), x)
        total = total.reshape(x.shape)
        if self.shared is None:
            return cast(B, total)
        more = self.shared.apply(at, x, run)
        if self.weighed is not None:
            more = use.product(more, use.activate(run.linear(self.weighed, at, x), "sigmoid"))
        return use.add(total, more)

    def _product(
        self, at: object, weight: Array, bias: Array | None, rows: B, expert: B, counts: Traced, run: Run[B]
    ) -> B:
        """rows [N, in], those of an expert together -> [N, out]."""
        made = run.use.grouped(rows, run.array(weight, at), counts, not self.turned)
        if bias is None:
            return made
        biases: Traced = run.array(bias, at)
        return run.use.add(made, biases[expert])

    def _gated(self, inner: B, run: Run[B]) -> B:
        use, half = run.use, inner.shape[-1] // 2
        whole: Traced = inner
        if self.limit is None:
            return use.product(use.activate(whole[..., :half], self.activation), whole[..., half:])
        gate, rest = whole[..., ::2].clip(max=self.limit), whole[..., 1::2].clip(-self.limit, self.limit)
        gate = use.product(gate, use.activate(use.scaled(gate, self.sharpness), "sigmoid"))
        return use.add(use.product(rest, gate), gate)


def _column(x: Traced, number: int) -> Traced:
    """One column of x [..., columns], which stays an axis."""
    return x[..., number : number + 1]


def in_order(arrays: list[B], run: Run[B]) -> B:
    """Their sum, from the first to the last."""
    total = arrays[0]
    for each in arrays[1:]:
        total = run.use.add(total, each)
    return total
