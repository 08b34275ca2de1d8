"""The attention layers of a checkpoint: where they are, their sizes, their tensors in canonical form."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from maskattn import checkpoints
from maskattn._problems import Problems
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.layouts import CANONICAL, Layout
from maskattn.typing import NumPyArray as Array

Layers = dict[str, dict[str, str]]


def layers_of(reader: checkpoints.Reader, layout: str) -> tuple[Layout, Layers]:
    """The layout of an open checkpoint and its layers, ``{prefix: {name without prefix: full name}}``, 2 before 10.

    Reads shapes and dtypes, no tensor. ValueError where the layout cannot be told, or no layer is found.
    """
    if layout == "auto":
        try:
            layout = layouts.detect(reader.outline()).layout
        except ValueError as error:
            raise ValueError(f"{reader.path}: {error}") from None
    kind = layouts.get(layout)
    layers = kind.match(reader)
    if not layers:
        raise ValueError(f"{reader.path}: no attention layer of layout {kind.name} found among {len(reader)} tensors")
    return kind, {prefix: layers[prefix] for prefix in sorted(layers, key=_natural)}


def configs_of(
    reader: checkpoints.Reader, kind: Layout, layers: Layers, num_heads: int | None, num_kv_heads: int | None
) -> dict[str, AttentionConfig]:
    """The configuration of each layer. Reads no tensor; one ValueError lists all that is wrong with all layers."""
    outline = reader.outline()
    configs: dict[str, AttentionConfig] = {}
    reasons: list[str] = []
    for prefix, names in layers.items():
        tensors = {name: outline[full] for name, full in names.items()}
        try:
            configs[prefix] = kind.infer(tensors, num_heads, num_kv_heads)
        except ValueError as error:
            reasons.append(f"layer {prefix!r}: {error}")
        else:
            reasons += layouts.mismatches(kind, tensors, configs[prefix], prefix)
    Problems(f"{reader.path} is not what layout {kind.name} calls for", reasons).raise_if_any()
    return configs


def canonical_layer(
    kind: Layout, tensors: Mapping[str, Array], config: AttentionConfig, prefix: str
) -> dict[str, Array]:
    """One layer's tensors in canonical form; ValueError lists everything that is not as the layout calls for."""
    reasons = layouts.mismatches(kind, tensors, config, prefix)
    Problems(f"layer {prefix!r} is not what layout {kind.name} calls for", reasons).raise_if_any()
    canonical = kind.to_canonical(tensors, config)
    names = CANONICAL.shapes(config, kind.extras_of(tensors, config))
    return {name: np.ascontiguousarray(canonical[name]) for name in names}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key under which ``layer.2`` comes before ``layer.10``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
