"""Finding the attention layers of a checkpoint, and comparing two checkpoints through the canonical form."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskattn import checkpoints
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.layouts import CANONICAL, Layout
from maskattn.parity.findings import bits_equal

Array = np.ndarray[Any, Any]
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
    found: list[str] = []
    for prefix, names in layers.items():
        tensors = {name: outline[full] for name, full in names.items()}
        try:
            configs[prefix] = kind.infer(tensors, num_heads, num_kv_heads)
        except ValueError as error:
            found.append(f"layer {prefix!r}: {error}")
        else:
            found += layouts.faults(kind, tensors, configs[prefix], prefix)
    if found:
        raise ValueError("\n  ".join([f"{reader.path} is not what layout {kind.name} calls for:", *found]))
    return configs


def canonical_layer(
    kind: Layout, tensors: Mapping[str, Array], config: AttentionConfig, prefix: str
) -> dict[str, Array]:
    """One layer's tensors in canonical form; ValueError lists everything that is not as the layout calls for."""
    found = layouts.faults(kind, tensors, config, prefix)
    if found:
        raise ValueError("\n  ".join([f"layer {prefix!r} is not what layout {kind.name} calls for:", *found]))
    canonical = kind.to_canonical(tensors, config)
    names = CANONICAL.shapes(config, kind.extras_of(tensors, config))
    return {name: np.ascontiguousarray(canonical[name]) for name in names}


def compare(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    layout: str = "auto",
    against_layout: str = "auto",
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
) -> str | None:
    """The first difference between the attention layers of two checkpoints of any layouts, by layer and tensor.

    None where both hold the same layers and the same canonical tensors, byte for byte. Layers correspond by their
    prefixes, whatever separates names in them.
    """
    with checkpoints.open(path) as left, checkpoints.open(against) as right:
        kind, layers = layers_of(left, layout)
        other_kind, other_layers = layers_of(right, against_layout)
        configs = configs_of(left, kind, layers, num_heads, num_kv_heads)
        other_configs = configs_of(right, other_kind, other_layers, num_heads, num_kv_heads)
        theirs = {_plain(prefix, other_kind): prefix for prefix in other_layers}
        for prefix, names in layers.items():
            if _plain(prefix, kind) not in theirs:
                return f"{prefix}: no such layer in {against}"
            ours = _read(left, kind, names, configs[prefix], prefix)
            other_prefix = theirs.pop(_plain(prefix, kind))
            other = _read(right, other_kind, other_layers[other_prefix], other_configs[other_prefix], other_prefix)
            for name in dict.fromkeys((*ours, *other)):
                if name not in ours or name not in other:
                    return f"{prefix}{name}: only in {path if name in ours else against}"
                finding = bits_equal("weights", f"{path} = {against}", name, ours[name], other[name])
                if not finding.held:
                    return f"{prefix}{name}: {finding.message}"
    return f"{next(iter(theirs))}: no such layer in {path}" if theirs else None


def _read(
    reader: checkpoints.Reader, kind: Layout, names: Mapping[str, str], config: AttentionConfig, prefix: str
) -> dict[str, Array]:
    return canonical_layer(kind, {name: reader[full] for name, full in names.items()}, config, prefix)


def _plain(prefix: str, kind: Layout) -> str:
    return prefix.replace(kind.separator, ".")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key under which ``layer.2`` comes before ``layer.10``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
