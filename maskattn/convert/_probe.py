"""Settling a layout by what the layer computes, where names and shapes admit several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from maskattn import standards
from maskattn._problems import Problems
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.layouts import Candidate, Detection, Layout
from maskattn.typing import NumPyArray as Array

_INPUTS = ("query", "key", "value", "mask", "bias")


def probe(
    tensors: Mapping[str, object],
    candidates: Iterable[str],
    config: AttentionConfig,
    *,
    inputs: Mapping[str, object],
    output: object,
) -> Detection:
    """Which of ``candidates`` the tensors of one layer are in, told by what the layer computes.

    The float64 oracle runs the layer under every candidate. One fits where its output is within the limits for another
    library's module (``maskattn.standards``) everywhere. The answer's ``layout`` is the name of the only one
    that fits, and raises ValueError where none does or more than one.

    Args:
        tensors: names to arrays; one layer under every candidate. candidates: names of layouts, for example those
            that ``detect`` lists. config: the layer's sizes and scale.
        inputs: ``query`` [B, L, E]; ``key`` and ``value`` where they differ from it; ``mask``, bool, broadcastable to
            [B, H, L, S], True = may attend; ``bias`` broadcastable to the same, added to the scores.
        output: what the layer gave for them, [B, L, out], without what is not attention: no rotary embedding, no norm.

    Raises:
        ValueError: inputs that do not fit ``config``; an unknown layout. TypeError: inputs are no mapping.
    """
    given = _checked(inputs, output, config)
    wanted = np.asarray(output)
    fitting: list[Candidate] = []
    rejected: list[Candidate] = []
    for layout in [layouts.get(name) for name in candidates]:
        prefix, objections, share = _judge(layout, tensors, config, given, wanted)
        if objections:
            rejected.append(Candidate(layout.name, prefix, ("probed",), tuple(objections)))
            continue
        text = f"the output's error is {share:.3g} of its limit"
        if share <= 1:
            fitting.append(Candidate(layout.name, prefix, ("probed", text)))
        else:
            rejected.append(Candidate(layout.name, prefix, ("probed",), (text,)))
    return Detection(tuple(fitting), tuple(rejected))


def _judge(
    layout: Layout, tensors: Mapping[str, Any], config: AttentionConfig, given: Mapping[str, Array], wanted: Array
) -> tuple[tuple[str, ...], list[str], float]:
    layers = layout.match(tensors)
    if len(layers) != 1:
        return tuple(layers), [f"expected the tensors of one layer, found {len(layers)}"], 0.0
    ((prefix, names),) = layers.items()
    layer = {name: tensors[full] for name, full in names.items()}
    objections = layouts.mismatches(layout, layer, config, prefix)
    if objections:
        return (prefix,), objections, 0.0
    extras = layout.extras_of(layer, config)
    if extras:
        return (prefix,), [f"{name}: not part of plain attention, which is what is computed" for name in extras], 0.0
    canonical = layout.to_canonical(layer, config)
    objections = [f"{prefix}: {reason}" for reason in layouts.mixed_dtypes(canonical)]
    if objections:
        return (prefix,), objections, 0.0
    dtype = canonical["query.kernel"].dtype
    allowed = given.get("mask", np.ones((1, 1, 1, 1), bool))
    shape = (*given["query"].shape[:2], given.get("key", given["query"]).shape[1])
    allowed = np.broadcast_to(allowed, (shape[0], max(allowed.shape[1], 1), *shape[1:]))
    options: dict[str, Any] = {"key": given.get("key"), "value_input": given.get("value"), "bias": given.get("bias")}
    options |= config.attention_options()
    right = standards.module_oracle(given["query"], canonical, allowed, dtype.name, **options)
    limit = standards.module_limit(given["query"], canonical, allowed, dtype.name, **options)
    if wanted.shape != right.shape:
        return (prefix,), [f"output: expected shape {list(right.shape)}, got {list(wanted.shape)}"], 0.0
    limit = standards.value("module.peer") * limit
    if standards.is_narrow(dtype):
        limit = limit + standards.value("tier2.half_ulp") * standards.ulp(right, dtype)
    error = np.abs(wanted.astype(np.float64) - right)
    return (prefix,), [], float(standards.share(error, limit).max(initial=0))


def _checked(inputs: Mapping[str, object], output: object, config: AttentionConfig) -> dict[str, Array]:
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must be a mapping of {', '.join(_INPUTS)} to arrays, got {type(inputs).__name__}")
    given = {name: np.asarray(array) for name, array in inputs.items()}
    reasons = [f"inputs: unknown name {name!r}, expected {', '.join(_INPUTS)}" for name in given if name not in _INPUTS]
    if "query" not in given:
        reasons.append("inputs: query [batch, length, embed_dim] is missing")
    widths = {"query": config.embed_dim, "key": config.kdim, "value": config.vdim}
    for name in widths:
        if name in given and (given[name].ndim != 3 or given[name].shape[2] != widths[name]):
            shape = f"[batch, length, {widths[name]}]"
            reasons.append(f"inputs: {name}: expected shape {shape}, got {list(given[name].shape)}")
    if "mask" in given and (given["mask"].dtype != bool or given["mask"].ndim != 4):
        mask = given["mask"]
        reasons.append(
            f"inputs: mask: expected bool [batch, heads, q_len, kv_len], True = may attend, got {mask.dtype} "
            f"{list(mask.shape)}"
        )
    if np.asarray(output).size == 0:
        reasons.append("output: nothing to compare with")
    Problems("a layer cannot be probed with these", reasons).raise_if_any()
    return given
