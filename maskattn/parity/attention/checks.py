"""The checks: plain functions from arrays to findings. Every limit comes from `standards`.

The judge of tier 1 is the oracle in longdouble: 0.51 ulp leaves a hundredth of an ulp of float32 for the judge's own
error, and where a result cancels (a gradient near 0) float64 rounding errors of the terms can exceed that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskattn import standards
from maskattn.numerics import oracle
from maskattn.parity.attention.arrays import bias_rows, bias_values
from maskattn.parity.attention.case import Case
from maskattn.parity.findings import Finding, bits_equal
from maskattn.typing import NumPyArray as Array

#: Results of an adapter, in order, and the fields of the oracle that judge them.
GRADIENTS = {"d_query": "query", "d_key": "key", "d_value": "value", "d_bias": "bias", "d_sinks": "sinks"}


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of a case: the right results, their magnitudes A (one number each) and Lambda."""

    right: dict[str, Array]
    magnitude: dict[str, float]
    logit: float
    length: int
    allowed: Array

    def without(self, name: str) -> Verdict:
        """The verdict on an implementation that does not return this quantity."""
        return replace(self, right={key: array for key, array in self.right.items() if key != name})


def options(case: Case, inputs: dict[str, Array]) -> dict[str, Any]:
    """The keyword arguments of attention that a case sets, NumPy arrays; `bias` at its full precision."""
    bias = inputs.get("bias") if isinstance(case.bias, str) else None
    if case.bias is not None and not isinstance(case.bias, str):
        bias = bias_values(case.bias, case.shape)
    policy = "zero" if case.empty_rows == "error" else case.empty_rows
    given = {"bias": bias, "scale": case.scale, "softcap": case.softcap, "sinks": inputs.get("sinks")}
    return {**given, "empty_rows": policy}


def judge(case: Case, inputs: dict[str, Array], cotangent: dict[str, Array], dtype: Any = np.float64) -> Verdict:
    """The oracle's verdict on an attention case, computed in `dtype` (float64 or longdouble)."""
    arrays = (inputs["query"], inputs["key"], inputs["value"], inputs["mask"])
    kept = {**options(case, inputs), **case.dropped}
    forward = oracle.attention(*arrays, **kept, dtype=dtype)
    grads = oracle.backward(*arrays, d_output=cotangent["output"], d_lse=cotangent["lse"], **kept, dtype=dtype)
    sizes = oracle.magnitudes(*arrays, d_output=cotangent["output"], d_lse=cotangent["lse"], **kept)
    right = {"output": forward.output, "lse": forward.lse}
    magnitude = {"output": sizes.output, "lse": sizes.lse}
    for name, of in GRADIENTS.items():
        if of == "bias" and not isinstance(case.bias, str):
            continue
        if getattr(grads, of) is not None:
            right[name], magnitude[name] = getattr(grads, of), getattr(sizes, of)
    if case.table is not None:
        assert grads.bias is not None and sizes.bias is not None
        right["d_table"], magnitude["d_table"] = table_sums(case, grads.bias), table_sums(case, sizes.bias)
    largest = {name: float(np.nan_to_num(np.asarray(a, np.float64)).max(initial=0)) for name, a in magnitude.items()}
    allowed = inputs["mask"]
    if kept["bias"] is not None:
        allowed = allowed & (np.asarray(kept["bias"]) != -np.inf)
    return Verdict(right, largest, sizes.logit, max(case.shape.q_len, case.shape.kv_len), allowed)


def table_sums(case: Case, d_values: Array) -> Array:
    """The gradient of a bias's table from that of its values, summed in their dtype: [rows, H]."""
    assert case.table is not None
    values, count = np.moveaxis(np.asarray(d_values), 1, -1), case.table.shape[0]
    sums = np.zeros((count, values.shape[-1]), values.dtype)
    np.add.at(sums, bias_rows(case.bias, case.shape)[:, 0], values)
    return sums


def form(case: Case, subject: str, results: dict[str, Array], verdict: Verdict) -> list[Finding]:
    """Every quantity is there, in the right shape and dtype, and not a number exactly where the oracle has none. The
    mask as the implementation lowers it, where it returns one, is the dense mask bit for bit."""
    findings = []
    if "mask" in results:
        dense = bits_equal("mask", subject, "mask", results["mask"], case.allowed)
        findings += [] if dense.held else [dense]
    for name, right in verdict.right.items():
        if name not in results:
            findings.append(Finding("form", subject, name, False, f"missing; got {', '.join(results)}"))
            continue
        got, dtype = results[name], case.lse_dtype if name == "lse" else case.numpy_dtype
        if got.shape != right.shape or got.dtype != dtype:
            message = f"expected {dtype}{list(right.shape)}, got {got.dtype}{list(got.shape)}"
            findings.append(Finding("form", subject, name, False, message))
        elif (np.isnan(got.astype(np.float64)) != np.isnan(right)).any():
            count = int((np.isnan(got.astype(np.float64)) != np.isnan(right)).sum())
            findings.append(
                Finding("form", subject, name, False, f"NaN in {count} places where the oracle has none, or not")
            )
    return findings


def errors(got: Array, right: Array) -> Array:
    """|got - right|, 0 where both are the same infinity, both NaN or round to the same number."""
    wide = got.astype(right.dtype)
    with np.errstate(all="ignore"):
        same = (
            (wide == right) | (np.isnan(wide) & np.isnan(right)) | (right.astype(got.dtype) == got) & ~np.isfinite(wide)
        )
        return np.asarray(np.where(same, 0, np.abs(wide - right)))


def ulp_errors(got: Array, right: Array, magnitude: float) -> Array:
    """The error of each result in ulps of its dtype; results below floor * A are measured in ulps of floor * A."""
    floor = standards.value("tier1.floor") * magnitude
    finite = np.where(np.isfinite(right), right, 0)
    return np.asarray(errors(got, right) / standards.ulp(np.maximum(np.abs(finite), floor), got.dtype))


def tier1(case: Case, subject: str, results: dict[str, Array], verdict: Verdict) -> list[Finding]:
    """`exact` is right: at most 0.51 ulp from the oracle (in longdouble), and 0 where the oracle is 0."""
    findings, limit = [], standards.value("tier1.ulp")
    for name, right in verdict.right.items():
        got = results[name]
        if got.dtype == np.float64 or name == "d_table":  # a sum of results that are themselves rounded
            findings.append(_tier2_one("tier1", subject, name, got, verdict))
            continue
        apart = ulp_errors(got, right, verdict.magnitude[name])
        worst = float(apart.max(initial=0))
        nonzero = int(((right == 0) & (got != 0)).sum())
        message = f"{worst:.4f} ulp, limit {limit}" if worst > limit else ""
        if nonzero:
            message += f"; {nonzero} not 0 where the oracle is 0"
        findings.append(Finding("tier1", subject, name, not message, message, worst, limit, got.size))
    return findings


def tier2(
    case: Case, subject: str, results: dict[str, Array], verdict: Verdict, rounded_inside: bool = False
) -> list[Finding]:
    """The fast kernels: error <= (16 + Lambda/2) eps A, with eps of float32 plus half an ulp for the narrow dtypes;
    with their own eps where an implementation declares that it rounds to them inside."""
    return [_tier2_one("tier2", subject, name, results[name], verdict, rounded_inside) for name in verdict.right]


def _tier2_one(
    check: str, subject: str, name: str, got: Array, verdict: Verdict, rounded_inside: bool = False
) -> Finding:
    right, magnitude = verdict.right[name], verdict.magnitude[name]
    limit = standards.tier2_limit(got.dtype, magnitude, verdict.logit, verdict.length, rounded_inside)
    # An infinity is what a number too large for the dtype rounds to: its error is 0 already.
    error = standards.beyond_rounding(errors(got, right), right, got.dtype)
    worst = float(error.max(initial=0))
    held = bool(worst <= limit)
    at = np.unravel_index(int(np.argmax(np.nan_to_num(error, nan=np.inf))), error.shape) if error.size else ()
    where = f"error {worst:.3g}, limit {limit:.3g}, at {[int(i) for i in at]}"
    return Finding(check, subject, name, held, "" if held else where, worst, limit, got.size)


def beside_plain(
    results: dict[str, Array], verdict: Verdict, plain: dict[str, Array]
) -> dict[tuple[str, str], tuple[float, float, int]]:
    """By quantity and dtype: the largest error of the results and of the plain computation, in units of eps A, and of
    how many numbers. They are compared over a whole run (`run`): the largest of a few errors is chance. The unit
    grows with the logits as tier 2's limit does, so that one case of huge logits does not hide all others."""
    measured = {}
    for name, right in verdict.right.items():
        dtype = str(results[name].dtype)
        growth = 1 + standards.value("tier2.slope") / standards.value("tier2.base") * verdict.logit
        unit = standards.eps(dtype) * verdict.magnitude[name] * growth
        if unit:
            mine, theirs = (float(errors(x[name], right).max(initial=0)) / unit for x in (results, plain))
            measured[name, dtype] = (mine, theirs, right.size)
    return measured


def tier0(case: Case, subject: str, results: dict[str, Array], verdict: Verdict) -> list[Finding]:
    """What is exactly 0 in every kernel: the output (+0) and dQ of an empty row under "zero", and the gradients of
    keys, values and biases that nothing may attend to."""
    s, findings = case.shape, []
    allowed: Any = np.broadcast_to(verdict.allowed, s.scores)
    reached = allowed.any(axis=2).reshape(s.batch, s.kv_heads, -1, s.kv_len).any(axis=2).transpose(0, 2, 1)
    empty = ~allowed.any(axis=3).transpose(0, 2, 1)
    averages = case.empty_rows == "mean" and "sinks" not in verdict.right and not case.sinks
    if averages:  # an average reads every key: its values receive gradients
        reached_by_mean = empty.any(axis=1).reshape(s.batch, s.kv_heads, -1).any(axis=2)[:, None]
    zero = {"d_query": empty, "d_key": ~reached}
    zero["d_value"] = ~reached & ~reached_by_mean if averages else ~reached
    if case.empty_rows in ("zero", "error") or case.sinks:
        zero["output"] = empty
    for name, where in zero.items():
        entries = results[name][where]
        signed = entries.astype(np.float64)
        wrong = int(((signed != 0) | (np.signbit(signed) if name in ("output", "d_query") else False)).sum())
        message = f"{wrong} of {entries.size} entries that must be exactly 0 are not" if wrong else ""
        findings.append(Finding("tier0", subject, name, not wrong, message, wrong, 0, entries.size, wrong))
    if "d_bias" in results and results["d_bias"].shape == s.scores:
        wrong = int((results["d_bias"][~allowed].astype(np.float64) != 0).sum())
        message = f"{wrong} masked entries are not 0" if wrong else ""
        findings.append(Finding("tier0", subject, "d_bias", not wrong, message, wrong, 0, int((~allowed).sum()), wrong))
    return findings
