"""What a run of cases leaves: an outcome of each case and implementation, and findings about the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from maskattn.parity.attention.case import Case
from maskattn.parity.findings import Finding
from maskattn.typing import NumPyArray as Array

#: How one implementation fared on one case. Only "held" is good; "unsupported" and "differs" say why.
Status = Literal["held", "failed", "error", "unsupported", "differs"]


@dataclass
class CaseOutcome:
    """One implementation on one case: its status, why, its findings, and for the report the errors in ulps."""

    case: Case
    subject: str
    status: Status
    reasons: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    elements: int = 0
    differing: int = 0
    ulps: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    equal: int = 0
    beside_plain: dict[tuple[str, str], tuple[float, float, int]] = field(default_factory=dict)
    narrow: tuple[int, int] = (0, 0)  # results in bfloat16 or float16: equal to the rounded oracle, and all

    @property
    def failures(self) -> list[str]:
        """What went wrong, each line with the case's id; [] where nothing did."""
        lines = [f"{self.case.id}: {finding}" for finding in self.findings if not finding.held]
        if self.status == "error":
            lines += [f"{self.case.id}: [{self.subject}] {reason}" for reason in self.reasons]
        return lines


@dataclass
class Result:
    """All outcomes of a run, and findings about the run as a whole."""

    kernel: str
    subjects: list[str]
    outcomes: list[CaseOutcome] = field(default_factory=list)
    overall: list[Finding] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Every failure, a line each."""
        lines = [line for outcome in self.outcomes for line in outcome.failures]
        return lines + [str(finding) for finding in self.overall if not finding.held]

    @property
    def not_run(self) -> list[CaseOutcome]:
        """Outcomes that are neither good nor bad: unsupported, or declared to differ."""
        return [outcome for outcome in self.outcomes if outcome.status in ("unsupported", "differs")]

    @property
    def exit_code(self) -> int:
        """0: every case ran and held. 1: something failed, or nothing ran. 3: nothing failed, some did not run."""
        if self.failures:
            return 1
        return 3 if self.not_run else 0

    @property
    def elements(self) -> int:
        """Numbers of output and gradients compared, counted once a case."""
        counted: dict[str, int] = {}
        for outcome in self.outcomes:
            counted[outcome.case.id] = max(counted.get(outcome.case.id, 0), outcome.elements)
        return sum(counted.values())
