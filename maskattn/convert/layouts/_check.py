"""Whether tensors are exactly what a layout and a configuration call for. Nothing is skipped, nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import PROJECTIONS, Layout
from maskattn.convert.layouts._extras import shown

DTYPES = tuple(np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))


def problems(layout: Layout, tensors: Mapping[str, Any], config: AttentionConfig, prefix: str = "") -> list[str]:
    """Every fault of one layer's ``tensors`` (named without ``prefix``, which the messages add); ``[]`` where none.

    Judges names, shapes and dtypes; values are not read.
    """
    unsupported = layout.unsupported(config)
    if unsupported:
        return [f"layout {layout.name} cannot hold this config: {reason}" for reason in unsupported]
    found: list[str] = []
    shapes = layout.shapes(config)
    for name, shape in shapes.items():
        if name not in tensors:
            found.append(f"{prefix}{name}: missing, expected shape {list(shape)}")
    for extra in layout.extras:
        if extra.required and extra.name not in tensors:
            found.append(f"{prefix}{extra.name}: missing, expected shape {shown(extra.axes, config)}")
    buffers = {buffer.name for buffer in layout.buffers}
    for buffer in layout.buffers:
        if buffer.build is not None and buffer.name not in tensors:
            found.append(f"{prefix}{buffer.name}: missing")
    for name, array in tensors.items():
        extras = [extra for extra in layout.extras if extra.name == name]
        if name not in shapes and name not in buffers and not extras:
            found.append(f"{prefix}{name}: {leftover(layout, name)}")
            continue
        if not isinstance(array, np.ndarray):
            found.append(f"{prefix}{name}: expected a NumPy array, got {type(array).__module__}.{type(array).__name__}")
            continue
        shape = tuple(array.shape)
        if name in shapes and shape != shapes[name]:
            found.append(f"{prefix}{name}: expected shape {list(shapes[name])}, got {list(shape)}")
        if extras and not any(extra.fits(shape, config) for extra in extras):
            wanted = " or ".join(shown(extra.axes, config) for extra in extras)
            found.append(f"{prefix}{name}: expected shape {wanted}, got {list(shape)}")
        if name not in buffers and array.dtype not in DTYPES:
            found.append(f"{prefix}{name}: expected dtype {', '.join(map(str, DTYPES))}, got {array.dtype}")
    return found


def leftover(layout: Layout, name: str) -> str:
    """Why a tensor that a layer does not call for is refused."""
    reason = layout.refused.get(name, f"no part of layout {layout.name} with this config")
    return f"left over: {reason}"


def mixed_dtypes(canonical: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Query, key and value must share a dtype, part by part: a layout may store them as one array."""
    found: list[str] = []
    for part in ("kernel", "bias"):
        dtypes = {role: canonical[f"{role}.{part}"].dtype for role in PROJECTIONS if f"{role}.{part}" in canonical}
        if len(set(dtypes.values())) > 1:
            listed = ", ".join(f"{role} {dtype}" for role, dtype in dtypes.items())
            found.append(f"{prefix}: expected one dtype for the {part} of query, key and value, got {listed}")
    return found
