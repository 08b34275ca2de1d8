"""Results that are hard to show: huge and missing figures, long names, failures beside what held and did not run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from maskattn.convert.compare import Compared
from maskattn.parity.attention.cases import get
from maskattn.parity.attention.result import CaseOutcome, Result
from maskattn.parity.checkpoint.result import CheckpointResult, Layer
from maskattn.parity.findings import Finding

NAME = "a_mask_whose_name_is_longer_than_anybody_would_like_it_to_be_" + "x" * 30


def of_cases() -> Result:
    """One line as it is, one of huge figures that failed, one that did not run."""
    result = Result("blockwise", ["torch", "torch-compiled", "jax", "jax-eager"])
    for family, held, number in (("Causal", True, 5), (NAME, False, 987_654_321_012)):
        finding = Finding("tier2", "jax", "output", held, "error 4.5", 0.4e-9 if held else 4.5, 1.5e-9)
        case = replace(get("Causal/tall/float32/0"), id=f"{family}/tall", family=family)
        ulps = np.array([0.25, 12, 3.5e30], np.float32)
        outcome = CaseOutcome(case, "jax", "held" if held else "failed", [], [finding], number, number // 2, ulps, 2)
        result.outcomes.append(outcome)
    other = replace(get("Causal/wide/float32/0"), family="Segments")
    result.outcomes.append(CaseOutcome(other, "jax-eager", "unsupported", ["float64 only"]))
    return result


def of_checkpoint() -> CheckpointResult:
    """A layer that held, and one that failed with what is no number."""
    judged = {twin: Compared("reference", 1.2e-6, 3.5e-4, 0.0036) for twin in ("torch", "jax")}
    broken = {twin: replace(one, error=np.nan, share=1.7e308) for twin, one in judged.items()}
    held = Layer("model.layers.0.", judged, 1.5e-7, 0)
    failed = Layer(f"model.layers.{NAME}.", broken, None, 1_769_472, "output: 884736 of 884736 differ")
    given = "a.safetensors", "hf-llama", "float64 oracle", "random, padded"
    return CheckpointResult(*given, (held, failed), ("a note",), "b.npz")
