"""Runs cases over implementations and collects what the checks find, as data."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from maskattn import standards
from maskattn.attention import KernelCannot
from maskattn.parity.attention import arrays, checks, textbook
from maskattn.parity.attention.adapters import Adapter
from maskattn.parity.attention.case import Case
from maskattn.parity.attention.cases import fresh
from maskattn.parity.attention.explained import explained
from maskattn.parity.attention.module_checks import module_findings
from maskattn.parity.attention.result import CaseOutcome, Result
from maskattn.parity.findings import Finding, bits_equal
from maskattn.typing import NumPyArray as Array


def run_cases(
    cases: Iterable[Case],
    implementations: Sequence[Adapter],
    *,
    kernel: str = "reference",
    samples: int = 0,
    seconds: float | None = None,
    progress: Callable[[Case, int], None] | None = None,
) -> Result:
    """Every case over every implementation, judged by the oracle and, in `exact`, against one another bit for bit.

    Args:
      kernel: "exact" asks for tier 1, any other name for tier 2.
      samples: keep drawing random cases until so many numbers of output and gradients were compared.
      seconds: after which no other case is begun: those that are left did not run.
      progress: called with each case when it is done, and the count of numbers compared so far.
    """
    result = Result(kernel, [_subject(adapter) for adapter in implementations])
    elements, until = 0, math.inf if seconds is None else time.monotonic() + seconds
    given, drawn = iter(cases), fresh()
    while (case := next(given, None)) is not None or elements < samples:
        late = time.monotonic() > until
        if late and case is None:
            break
        chosen = case or next(drawn)
        outcomes = _late(chosen, implementations, seconds) if late else run_case(chosen, implementations, kernel)
        result.outcomes += outcomes
        compared = max((outcome.elements for outcome in outcomes), default=0)
        elements += compared
        if progress is not None:
            progress(outcomes[0].case, elements)
        if case is None and not compared:
            break  # what cannot run one sample would draw them without end
    result.overall = [_enough(result), *_equal_shares(result), *_no_worse_than_plain(result)]
    return result


def _late(case: Case, implementations: Sequence[Adapter], seconds: float | None) -> list[CaseOutcome]:
    reason = f"not begun: the {seconds:g} seconds were over"
    return [CaseOutcome(case, _subject(adapter), "unsupported", [reason]) for adapter in implementations]


def _subject(adapter: Adapter) -> str:
    usual = {"torch": "eager", "jax": "jit"}.get(adapter.name)
    mode, device = getattr(adapter, "mode", usual), getattr(adapter, "device", "cpu")
    words = [adapter.name, *([] if mode == usual else [mode]), *([] if device == "cpu" else [device])]
    return "-".join(map(str, words))


def run_case(case: Case, implementations: Sequence[Adapter], kernel: str) -> list[CaseOutcome]:
    """One case over every implementation: outcomes in their order. Never raises for what an implementation does."""
    inputs, cotangent = arrays.inputs(case), arrays.cotangent(case)
    weights = arrays.weights(case) if case.config is not None else None
    outcomes, results = [], {}
    if case.config is None and any(adapter.conventions.get("lse") == "none" for adapter in implementations):
        cotangent["lse"] = np.zeros_like(cotangent["lse"])  # so that all are asked for the same gradients
    for adapter in implementations:
        outcome = CaseOutcome(case, _subject(adapter), "held")
        outcomes.append(outcome)
        reasons, differs = _declined(adapter, case)
        if reasons:
            outcome.status, outcome.reasons = "differs" if differs else "unsupported", reasons
            continue
        try:
            got = adapter.run(case, dict(inputs), weights, cotangent)
        except KernelCannot as error:
            outcome.status, outcome.reasons = "unsupported", error.reasons
            continue
        except Exception as error:
            _raised(outcome, error)
            continue
        if case.must_raise:
            message = "a row may attend to nothing and empty_rows='error', yet a result was returned"
            outcome.findings.append(Finding("raises", outcome.subject, "output", False, message))
        else:
            results[outcome.subject] = got
    declared = {_subject(adapter): adapter.conventions for adapter in implementations}
    _judge(case, inputs, cotangent, weights, results, {o.subject: o for o in outcomes}, kernel, declared)
    for outcome in outcomes:
        if outcome.status == "held" and not all(finding.held for finding in outcome.findings):
            outcome.status = "failed"
    return outcomes


def _declined(adapter: Adapter, case: Case) -> tuple[list[str], bool]:
    """Why a case is not run: reasons it gives itself, or a convention in which it declares to differ (then True)."""
    reasons = list(adapter.unsupported(case))
    if reasons:
        return reasons, False
    declared = adapter.conventions
    policy = declared.get("empty_rows", "as asked")
    empty = not case.sinks and not case.allowed.any(axis=-1).all()
    if policy != "as asked" and empty and policy != case.empty_rows:
        reasons.append(f"empty_rows: asked {case.empty_rows!r}, declared {policy!r}")
    if case.plant is not None and not np.isfinite(case.plant) and declared.get("nan_masked", "kept out") != "kept out":
        reasons.append(f"nan_masked: declared {declared['nan_masked']!r}")
    if declared.get("causal_alignment", "start") != "start" and case.family == "Causal":
        if case.shape.q_len != case.shape.kv_len:
            reasons.append(f"causal_alignment: declared {declared['causal_alignment']!r}")
    return reasons, bool(reasons)


def _raised(outcome: CaseOutcome, error: Exception) -> None:
    if outcome.case.must_raise and isinstance(error, ValueError) and "empty_rows" in str(error):
        outcome.findings.append(Finding("raises", outcome.subject, "output", True))
        return
    last = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(last))
    outcome.status = "error"
    outcome.reasons = [f"{type(error).__name__}: {str(error)[:500]} ({where})"]


def _judge(
    case: Case,
    inputs: dict[str, Array],
    cotangent: dict[str, Array],
    weights: dict[str, Array] | None,
    results: dict[str, dict[str, Array]],
    outcomes: dict[str, CaseOutcome],
    kernel: str,
    declared: dict[str, dict[str, str]],
) -> None:
    if not results:
        return
    if weights is not None:
        for subject, got in results.items():
            outcomes[subject].findings += module_findings(case, subject, inputs, cotangent, weights, got)
            outcomes[subject].elements = sum(array.size for array in got.values())
    else:
        fine = kernel == "exact" or case.dtype == "float64"
        verdict = checks.judge(case, inputs, cotangent, np.longdouble if fine else np.float64)
        usual = None if kernel == "exact" else textbook.run(case, inputs, cotangent)
        for subject, got in results.items():
            expected = verdict.without("lse") if declared[subject].get("lse") == "none" else verdict
            inside = declared[subject].get("narrow") == "rounded inside"
            _judge_one(outcomes[subject], inputs, got, expected, usual, kernel, inside)
    first = next(iter(results))
    for subject in list(results)[1:]:
        compared = _compare(first, results[first], subject, results[subject])
        outcomes[subject].differing = sum(finding.differing for finding in compared)
        if kernel == "exact":
            outcomes[subject].findings += compared


def _judge_one(
    outcome: CaseOutcome,
    inputs: dict[str, Array],
    got: dict[str, Array],
    verdict: checks.Verdict,
    usual: dict[str, Array] | None,
    kernel: str,
    rounded_inside: bool,
) -> None:
    case, subject = outcome.case, outcome.subject
    outcome.findings += checks.form(case, subject, got, verdict)
    if any(finding.check == "form" for finding in outcome.findings):
        return
    outcome.findings += checks.tier0(case, subject, got, verdict)
    rounded_inside = rounded_inside and standards.is_narrow(case.dtype)
    if kernel == "exact":
        outcome.findings += checks.tier1(case, subject, got, verdict)
    else:
        outcome.findings += checks.tier2(case, subject, got, verdict, rounded_inside)
    wrong = next((one for one in outcome.findings if one.quantity == "output" and not one.held and one.limit), None)
    if wrong is not None and (why := explained(case, inputs, got["output"], wrong.limit)) is not None:
        outcome.findings.append(Finding("diagnosis", subject, "output", False, why))
    if usual is not None and not rounded_inside:
        outcome.beside_plain = checks.beside_plain(got, verdict, usual)
    for name, right in verdict.right.items():
        outcome.elements += right.size
        with np.errstate(all="ignore"):
            rounded = right.astype(got[name].dtype)
        same = (rounded == got[name]) | (np.isnan(right) & np.isnan(got[name].astype(np.float64)))
        if kernel == "exact" and got[name].dtype == np.float64:
            continue  # exact's own precision: the same bits everywhere, but not half an ulp
        if kernel == "exact" and name == "d_table":
            continue  # a sum of results that are themselves rounded
        outcome.equal += int(same.sum())
        if standards.is_narrow(got[name].dtype) and not rounded_inside:
            outcome.narrow = (outcome.narrow[0] + int(same.sum()), outcome.narrow[1] + same.size)
        apart = checks.ulp_errors(got[name], right, verdict.magnitude[name])
        outcome.ulps = np.concatenate([outcome.ulps, apart.astype(np.float32).ravel()])


def _compare(left: str, first: dict[str, Array], right: str, second: dict[str, Array]) -> list[Finding]:
    subject = f"{left} = {right}"
    names = [name for name in first if name != "mask"]
    findings = [bits_equal("bits", subject, name, first[name], second[name]) for name in names if name in second]
    for name in sorted((set(first) ^ set(second)) - {"mask"}):
        findings.append(Finding("bits", subject, name, False, "only one of the two returned it"))
    return findings


def _enough(result: Result) -> Finding:
    ran = len({outcome.case.id for outcome in result.outcomes if outcome.findings})
    held = ran >= standards.value("suite.cases")
    return Finding("suite", "run", "cases", held, "" if held else "no case ran", ran, standards.value("suite.cases"))


def _equal_shares(result: Result) -> list[Finding]:
    """The share of results equal to the rounded oracle, for the narrow dtypes, over the whole run."""
    findings = []
    for subject in result.subjects:
        for dtype in ("bfloat16", "float16"):
            mine = [o.narrow for o in result.outcomes if o.subject == subject and o.case.dtype == dtype]
            elements = sum(count for _, count in mine)
            if elements < standards.value("suite.equal_elements"):
                continue
            share, limit = sum(same for same, _ in mine) / elements, standards.value(f"tier2.equal.{dtype}")
            message = f"{share:.5f} of {elements} equal the rounded oracle, at least {limit} must"
            findings.append(Finding("equal", subject, dtype, share >= limit, message, share, limit, elements))
    return findings


def _no_worse_than_plain(result: Result) -> list[Finding]:
    """The largest error of each quantity is at most twice that of the plain computation, plus eps A."""
    findings = []
    for subject in result.subjects:
        mine = [outcome for outcome in result.outcomes if outcome.subject == subject]
        for key in dict.fromkeys(key for outcome in mine for key in outcome.beside_plain):
            seen = [outcome.beside_plain[key] for outcome in mine if key in outcome.beside_plain]
            if sum(count for *_, count in seen) < standards.value("suite.plain_numbers"):
                continue
            worst, plain_worst = max(x for x, _, _ in seen), max(x for _, x, _ in seen)
            limit = standards.plain_limit(plain_worst)
            message = f"{worst:.3g} units in {key[1]}, the plain computation {plain_worst:.3g}, limit {limit:.3g}"
            findings.append(Finding("plain", subject, key[0], worst <= limit, message, worst, limit))
    return findings
