"""What the suite's checks find wrong with a kernel's results: forms, tiers 0 and 2."""

import numpy as np

from maskattn.parity.attention import cases, checks

NAMES = ("output", "lse", "d_query", "d_key", "d_value")


def failures(case, run, cotangent_of_lse=True):
    """`run(inputs, cotangent)` gives the results of `NAMES`, by name or in order, of NumPy arrays by name."""
    inputs, cotangent = cases.inputs(case), cases.cotangent(case)
    if not cotangent_of_lse:
        cotangent["lse"] = np.zeros_like(cotangent["lse"])
    got = run(inputs, cotangent)
    got = got if isinstance(got, dict) else dict(zip(NAMES, map(np.asarray, got), strict=True))
    verdict = checks.judge(case, inputs, cotangent)
    found = checks.form(case, "kernel", got, verdict)
    if not any(finding.check == "form" for finding in found):
        found += checks.tier0(case, "kernel", got, verdict) + checks.tier2(case, "kernel", got, verdict)
    return [f"{case.id}: {finding}" for finding in found if not finding.held]
