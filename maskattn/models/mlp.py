"""What stands beside attention in a block."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.models.leaves import Linear
from maskattn.models.part import B, Part, Run


@dataclass(frozen=True)
class Plain(Part):
    """down(activation(up(x)))."""

    up: Linear
    down: Linear
    activation: str
    dropout_rate: float = 0.0

    def apply(self, at: object, x: B, run: Run[B]) -> B:
        """x [B, L, E] -> [B, L, E]."""
        inner = run.use.activate(run.linear(self.up, at, x), self.activation)
        return run.linear(self.down, at, run.drop(inner, self.dropout_rate))


@dataclass(frozen=True)
class Gated(Part):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, equation 6)."""

    gate: Linear
    up: Linear
    down: Linear
    activation: str
    dropout_rate: float = 0.0

    def apply(self, at: object, x: B, run: Run[B]) -> B:
        """x [B, L, E] -> [B, L, E]."""
        gate = run.use.activate(run.linear(self.gate, at, x), self.activation)
        inner = run.use.product(gate, run.linear(self.up, at, x))
        return run.linear(self.down, at, run.drop(inner, self.dropout_rate))


@dataclass(frozen=True)
class Halves(Part):
    """`Gated`, of one layer whose first half of columns is the gate."""

    both: Linear
    down: Linear
    activation: str
    dropout_rate: float = 0.0

    def apply(self, at: object, x: B, run: Run[B]) -> B:
        """x [B, L, E] -> [B, L, E]."""
        half = self.both.outputs // 2
        gate, up = run.use.split(run.linear(self.both, at, x), (half, half), -1)
        inner = run.use.product(run.use.activate(gate, self.activation), up)
        return run.linear(self.down, at, run.drop(inner, self.dropout_rate))
