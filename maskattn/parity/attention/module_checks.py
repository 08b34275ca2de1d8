"""Whole modules judged: the output against the module's oracle, every gradient against the oracle's chain rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskattn import standards
from maskattn.numerics import oracle, rng
from maskattn.parity.attention.case import Case
from maskattn.parity.findings import Finding
from maskattn.typing import NumPyArray as Array


def module_findings(
    case: Case,
    subject: str,
    inputs: dict[str, Array],
    cotangent: dict[str, Array],
    weights: dict[str, Array],
    results: dict[str, Array],
) -> list[Finding]:
    """The output within `standards.module_limit`; every gradient there, of its shape and within its own limit."""
    config = case.config
    assert config is not None
    given: dict[str, Any] = {
        "key": inputs["key"],
        "value_input": inputs["value"],
        **config.attention_options(),
        **case.dropped,
    }
    right = standards.module_oracle(inputs["query"], weights, inputs["mask"], case.dtype, **given)
    limit = standards.module_limit(inputs["query"], weights, inputs["mask"], case.dtype, **given)
    right, limit = _dropped_output(case, right), _dropped_output(case, limit) + standards.eps(case.dtype) * abs(right)
    findings = [_within("module", subject, "output", results, right, limit, case)]
    expected, sizes = module_gradients(case, inputs, cotangent, weights)
    for name, gradient in expected.items():
        # First order in each of the roundings between input and gradient: a handful of limits of one product, and for
        # the narrow dtypes the flips of what is rounded in between.
        unit = standards.tier2_limit(case.dtype, 1.0, 1.0, 1)
        if standards.is_narrow(case.dtype):
            unit += standards.value("module.narrow") * standards.eps(case.dtype)
        bound = standards.value("module.gradient") * unit * float(sizes[name].max(initial=0))
        findings.append(_within("module", subject, name, results, gradient, np.full(gradient.shape, bound), case))
    return findings


def _within(
    check: str, subject: str, name: str, results: dict[str, Array], right: Array, limit: Array, case: Case
) -> Finding:
    if name not in results:
        return Finding(check, subject, name, False, f"missing; got {', '.join(results)}")
    got = results[name]
    if got.shape != right.shape or got.dtype != case.numpy_dtype:
        message = f"expected {case.dtype}{list(right.shape)}, got {got.dtype}{list(got.shape)}"
        return Finding(check, subject, name, False, message)
    error = standards.beyond_rounding(np.abs(got.astype(np.float64) - right), right, case.dtype)
    over = ~(error <= limit)
    worst = float(error.max(initial=0))
    message = (
        f"error {worst:.3g}, limit {float(limit.max(initial=0)):.3g}, {int(over.sum())} over" if over.any() else ""
    )
    return Finding(check, subject, name, not over.any(), message, worst, float(limit.max(initial=0)), right.size)


def _dropped_output(case: Case, x: Array) -> Array:
    """A module's output, its limit, or its cotangent [B, L, out], times keep / (1 - rate) of the output's dropout."""
    assert case.config is not None
    rate = case.config.out_dropout_rate
    if not rate:
        return x
    keep = rng.bernoulli(rng.fold_in(case.dropout_key, 1), 1.0 - rate, x.shape)
    return np.where(keep, x / (1.0 - rate), 0.0)


def module_gradients(
    case: Case, inputs: dict[str, Array], cotangent: dict[str, Array], weights: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Float64 gradients of a module's case by the names of an adapter's results, and their magnitudes."""
    right = _gradients(case, inputs, cotangent, weights, sizes=False)
    return right, _gradients(case, inputs, cotangent, weights, sizes=True)


def _gradients(
    case: Case, inputs: dict[str, Array], cotangent: dict[str, Array], weights: dict[str, Array], sizes: bool
) -> dict[str, Array]:
    config = case.config
    assert config is not None
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = {name: inputs[name].astype(np.float64) for name in ("query", "key", "value")}
    d_out = _dropped_output(case, cotangent["output"].astype(np.float64))
    parts = {n: np.einsum("ble,ehd->blhd", x[n], w[f"{n}.kernel"]) + w.get(f"{n}.bias", 0.0) for n in x}
    kept: dict[str, Any] = {**config.attention_options(), **case.dropped, "sinks": w.get("sinks")}
    arrays = (parts["query"], parts["key"], parts["value"], inputs["mask"])
    output = oracle.attention(*arrays, **kept).output
    d_attention = np.einsum("blo,hdo->blhd", d_out, w["out.kernel"])
    if sizes:
        w, x, d_out, output = (
            {n: np.abs(a) for n, a in w.items()},
            {n: np.abs(a) for n, a in x.items()},
            abs(d_out),
            abs(output),
        )
        d_attention = np.einsum("blo,hdo->blhd", d_out, w["out.kernel"])
        grads: Any = oracle.magnitudes(*arrays, d_output=d_attention, **kept)
    else:
        grads = oracle.backward(*arrays, d_output=d_attention, **kept)
    gradients = {} if grads.sinks is None else {"d_sinks": grads.sinks}
    gradients |= {"d_out.kernel": np.einsum("blhd,blo->hdo", output, d_out), "d_out.bias": d_out.sum(axis=(0, 1))}
    inner = {}
    for name in ("query", "key", "value"):
        gradient = getattr(grads, name)
        gradients[f"d_{name}.kernel"] = np.einsum("ble,blhd->ehd", x[name], gradient)
        gradients[f"d_{name}.bias"] = gradient.sum(axis=(0, 1))
        inner[f"d_{name}"] = np.einsum("blhd,ehd->ble", gradient, w[f"{name}.kernel"])
    same = inputs["key"] is inputs["query"]
    gradients |= {"d_query": sum(inner.values())} if same else inner
    return {
        name: gradient
        for name, gradient in gradients.items()
        if name in ("d_query", "d_key", "d_value") or name[2:] in weights
    }
