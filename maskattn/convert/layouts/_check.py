"""Whether tensors are exactly what a layout and a configuration call for. Nothing is skipped, nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskattn.arrays import BFLOAT16
from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import PROJECTIONS, Layout
from maskattn.convert.layouts._extras import shown
from maskattn.convert.lazy import Lazy

DTYPES = (*(np.dtype(t) for t in (np.float64, np.float32, np.float16)), BFLOAT16)
"""Of parameters."""


def mismatches(layout: Layout, tensors: Mapping[str, object], config: AttentionConfig, prefix: str = "") -> list[str]:
    """Every fault of one layer's ``tensors`` (named without ``prefix``, which the messages add); ``[]`` where none.

    ``layout`` and ``config`` say what it should hold.
    Judges names, shapes and dtypes; values are not read.
    """
    reasons = layout.unsupported(config)
    if reasons:
        return [f"layout {layout.name} cannot hold this config: {reason}" for reason in reasons]
    shapes, buffers = layout.shapes(config), {buffer.name for buffer in layout.buffers}
    needed = {name: f", expected shape {list(shape)}" for name, shape in shapes.items()}
    needed |= {extra.name: f", expected shape {shown(extra.axes, config)}" for extra in layout.extras if extra.required}
    needed |= {buffer.name: "" for buffer in layout.buffers if buffer.build is not None}
    wrong = [f"{prefix}{name}: missing{wanted}" for name, wanted in needed.items() if name not in tensors]
    for name, array in tensors.items():
        extras = [extra for extra in layout.extras if extra.name == name]
        unwanted = not config.sinks and any(extra.canonical == "sinks" for extra in extras)
        if name not in shapes and name not in buffers and (not extras or unwanted):
            reason = layout.refused.get(name, f"no part of layout {layout.name} with this config")
            reason = "the config has sinks=False: AttentionConfig(..., sinks=True)" if unwanted else reason
            wrong.append(f"{prefix}{name}: left over: {reason}")
            continue
        if not isinstance(array, (np.ndarray, Lazy)):
            wrong.append(f"{prefix}{name}: expected a NumPy array, got {type(array).__module__}.{type(array).__name__}")
            continue
        shape = tuple(array.shape)
        if name in shapes and shape != shapes[name]:
            wrong.append(f"{prefix}{name}: expected shape {list(shapes[name])}, got {list(shape)}")
        if extras and not any(extra.fits(shape, config) for extra in extras):
            wanted = " or ".join(shown(extra.axes, config) for extra in extras)
            wrong.append(f"{prefix}{name}: expected shape {wanted}, got {list(shape)}")
        if name not in buffers and array.dtype not in DTYPES:
            wrong.append(f"{prefix}{name}: expected dtype {', '.join(map(str, DTYPES))}, got {array.dtype}")
    return wrong


def mixed_dtypes(canonical: Mapping[str, Any]) -> list[str]:
    """Where query, key and value of ``canonical`` tensors do not share a dtype, part by part, as they must: a layout
    may store them as one array.
    """
    reasons: list[str] = []
    for part in ("kernel", "bias"):
        dtypes = {role: canonical[f"{role}.{part}"].dtype for role in PROJECTIONS if f"{role}.{part}" in canonical}
        if len(set(dtypes.values())) > 1:
            listed = ", ".join(f"{role} {dtype}" for role, dtype in dtypes.items())
            reasons.append(f"expected one dtype for the {part} of query, key and value, got {listed}")
    return reasons
