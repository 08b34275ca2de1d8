"""A whole multi-head attention in the exact arithmetic of NumPy: the third party to tier 1 for modules."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskattn.numerics import exact, rng
from maskattn.parity.attention.case import Case
from maskattn.typing import NumPyArray as Array

_INPUTS = ("query", "key", "value")


def run(
    case: Case, inputs: dict[str, Array], weights: dict[str, Array], cotangent: dict[str, Array] | None
) -> dict[str, Array]:
    """Output, and with a cotangent the gradients of inputs and weights, by the names that adapters use.

    Where query, key and value are one input, their projections are one linear map, as in the twins: its gradient is
    rounded once.
    """
    config = case.config
    assert config is not None
    shared = inputs["key"] is inputs["query"]
    kernels = {name: weights[f"{name}.kernel"] for name in _INPUTS}
    flat = {name: kernel.reshape(kernel.shape[0], -1) for name, kernel in kernels.items()}
    biases = {name: weights[f"{name}.bias"].reshape(-1) for name in _INPUTS if f"{name}.bias" in weights}
    parts = {}
    for name in _INPUTS:
        projected = exact.linear(inputs[name], flat[name], biases.get(name))
        parts[name] = projected.reshape(*projected.shape[:2], *kernels[name].shape[1:])
    options: dict[str, Any] = {**config.attention_options(), "sinks": weights.get("sinks")}
    options |= {"dropout_rate": config.dropout_rate, "dropout_key": rng.fold_in(case.dropout_key, 0)}
    arrays = (parts["query"], parts["key"], parts["value"], inputs["mask"])
    attended, _ = exact.attention(*arrays, **options)
    joined = attended.reshape(*attended.shape[:2], -1)
    out_kernel = weights["out.kernel"]
    out_flat = out_kernel.reshape(-1, out_kernel.shape[-1])
    output, rate, d_output = exact.linear(joined, out_flat, weights.get("out.bias")), config.out_dropout_rate, None
    if cotangent is not None:
        d_output = cotangent["output"]
    if rate:
        keep = rng.bernoulli(rng.fold_in(case.dropout_key, 1), 1.0 - rate, output.shape)
        output = exact.drop(output, keep, rate)
        d_output = None if d_output is None else exact.drop(d_output, keep, rate)
    results = {"output": output}
    if d_output is None:
        return results

    d_joined, d_out, results["d_out.bias"] = exact.linear_backward(joined, out_flat, d_output)
    results["d_out.kernel"] = d_out.reshape(out_kernel.shape)
    *d_parts, _, d_sinks = exact.attention_backward(*arrays, d_joined.reshape(attended.shape), **options)
    results |= {} if d_sinks is None else {"d_sinks": d_sinks}
    d_flat = {n: d.reshape(*d.shape[:2], -1) for n, d in zip(_INPUTS, d_parts, strict=True)}
    for name in _INPUTS:
        d_input, d_kernel, d_bias = exact.linear_backward(inputs[name], flat[name], d_flat[name])
        results |= {} if shared else {f"d_{name}": d_input}
        results[f"d_{name}.kernel"] = d_kernel.reshape(kernels[name].shape)
        results[f"d_{name}.bias"] = d_bias.reshape(kernels[name].shape[1:])
    if shared:
        together = np.concatenate(list(flat.values()), axis=1), np.concatenate(list(d_flat.values()), axis=2)
        results["d_query"] = exact.linear_backward(inputs["query"], *together)[0]
    return {name: array for name, array in results.items() if "." not in name or name[2:] in weights}
