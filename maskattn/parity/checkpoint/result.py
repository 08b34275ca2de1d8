"""What verifying a checkpoint leaves: a result for each layer."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.convert import twins
from maskattn.parity.findings import Finding


@dataclass(frozen=True)
class Judged(twins.WithinLimits):
    """One twin's output under one kernel: its largest error, the limit at that place, and the largest error / limit."""

    twin: str
    kernel: str
    error: float
    limit: float
    share: float


@dataclass(frozen=True)
class LayerResult:
    """One attention layer.

    Attributes:
      layer: its prefix in the checkpoint.
      weights: a finding per twin and canonical tensor: what the live module holds against what the file holds.
      twins: the twins' outputs against each other, exact kernel, bit for bit.
      judged: each twin and kernel against the judge.
      alone: per twin, each sequence by itself without padding against its rows in the padded batch, exact kernel.
    """

    layer: str
    weights: tuple[Finding, ...]
    twins: Finding
    judged: tuple[Judged, ...]
    alone: tuple[Finding, ...]

    @property
    def first_difference(self) -> str | None:
        """The first tensor that differs, by its full name, and how; None where everything held."""
        for finding in (*self.weights, self.twins, *self.alone):
            if not finding.held:
                return f"{self.layer}{finding.quantity}: {finding.message} ({finding.subject})"
        for judged in self.judged:
            if not judged.held:
                return (
                    f"{self.layer}output: {judged.twin} with kernel {judged.kernel} is off by {judged.error:.3g}, "
                    f"limit {judged.limit:.3g}"
                )
        return None


@dataclass(frozen=True)
class CheckpointResult:
    """A checkpoint's layers and what judged them; where another checkpoint was given, the first difference from it."""

    checkpoint: str
    layout: str
    judge: str
    inputs: str
    layers: tuple[LayerResult, ...]
    against: str | None = None
    against_difference: str | None = None

    @property
    def first_difference(self) -> str | None:
        """The first layer and tensor that differ, in the order of the layers."""
        differences = (layer.first_difference for layer in self.layers)
        return self.against_difference or next((difference for difference in differences if difference), None)

    @property
    def exit_code(self) -> int:
        """0 only if there was at least one layer and everything held."""
        return 0 if self.layers and self.first_difference is None else 1
