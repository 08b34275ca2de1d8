"""The attention layers of a checkpoint: where they are, their sizes, their tensors in canonical form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from maskattn import checkpoints
from maskattn._problems import Problems
from maskattn.config import AttentionConfig
from maskattn.convert import config_json, layouts, plan
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


class Found(NamedTuple):
    """The attention layers of a checkpoint.

    Attributes:
        kind: the layout of what ``tensors`` gives. configs: by the names of the layers.
        tensors: reads a layer, given its name.
    """

    kind: Layout
    configs: Mapping[str, AttentionConfig]
    tensors: Callable[[str], dict[str, Array]]


def find(
    reader: checkpoints.Reader, layout: str = "auto", num_heads: int | None = None, num_kv_heads: int | None = None
) -> Found:
    """The layers by the names and shapes of a layout, or as ``convert`` finds them in a whole model.

    Raises:
        ValueError: neither finds any, or heads are unknown.
    """
    try:
        kind, layers = layers_of(reader, layout)
        configs = configs_of(reader, kind, layers, num_heads, num_kv_heads)
    except ValueError as error:
        if layout != "auto":
            raise
        return _of_model(reader, num_heads, num_kv_heads, error)
    return Found(kind, configs, lambda layer: {name: reader[full] for name, full in layers[layer].items()})


def of_model(reader: checkpoints.Reader, num_heads: int | None = None, num_kv_heads: int | None = None) -> Found:
    """The layers as ``convert`` finds them, in canonical form, whatever the file calls and stacks; ValueError: none."""
    return _of_model(reader, num_heads, num_kv_heads, None)


def _of_model(
    reader: checkpoints.Reader, num_heads: int | None, num_kv_heads: int | None, before: ValueError | None
) -> Found:
    sizes: dict[str, Any] = {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "config": config_json.beside(reader.path),
    }
    try:
        planned = plan(reader.infos, rest="keep", provenance=reader.provenance, **sizes)
    except ValueError as error:
        raise before or error from None
    if not planned.layers:
        raise before or ValueError(f"{reader.path}: no attention layer among {len(reader)} tensors")

    def tensors(layer: str) -> dict[str, Array]:
        lazy = planned.layers[layer].tensors
        return {name: np.ascontiguousarray(array.evaluate(reader.__getitem__)) for name, array in lazy.items()}

    return Found(CANONICAL, {name: layer.config for name, layer in planned.layers.items()}, tensors)


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
