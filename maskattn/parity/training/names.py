"""A whole model's parameters, or its moments, between the names of a twin's modules and neutral ones.

Neutral is: attention layers in their canonical form, any other layer as `kernel` [in, out], `bias`, `scale` (layer
norm) and `embedding` [tokens, width], all under the path of the module, which both twins name alike. Only numbers move,
so what holds for parameters holds for the moments of an optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert._tensors import convert_tensors

Array = np.ndarray[Any, Any]

_LAYOUTS = {"torch": "maskattn-torch", "jax": "flax-nnx"}


def to_neutral(tensors: Mapping[str, Array], twin: str, layers: Mapping[str, AttentionConfig]) -> dict[str, Array]:
    """From the names of `twin` ("torch" or "jax"); `layers` are the attention layers by path."""
    rest, found = _split(tensors, layers)
    out: dict[str, Array] = {}
    for path, held in found.items():
        out |= _prefixed(path, convert_tensors(held, source=_LAYOUTS[twin], target="canonical", config=layers[path]))
    for name, array in rest.items():
        path, _, leaf = name.rpartition(".")
        if twin == "torch" and leaf == "weight":
            leaf = "scale" if array.ndim == 1 else "embedding" if path == "embed" else "kernel"
            array = array.T if leaf == "kernel" else array
        out[f"{path}.{leaf}" if path else leaf] = np.ascontiguousarray(array)
    return dict(sorted(out.items()))


def from_neutral(tensors: Mapping[str, Array], twin: str, layers: Mapping[str, AttentionConfig]) -> dict[str, Array]:
    """The inverse of `to_neutral`."""
    rest, found = _split(tensors, layers)
    out: dict[str, Array] = {}
    for path, held in found.items():
        out |= _prefixed(path, convert_tensors(held, source="canonical", target=_LAYOUTS[twin], config=layers[path]))
    for name, array in rest.items():
        path, _, leaf = name.rpartition(".")
        if twin == "torch" and leaf in ("kernel", "scale", "embedding"):
            array = array.T if leaf == "kernel" else array
            leaf = "weight"
        out[f"{path}.{leaf}" if path else leaf] = np.ascontiguousarray(array)
    return out


def _split(
    tensors: Mapping[str, Array], layers: Mapping[str, AttentionConfig]
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """What belongs to no attention layer, and what belongs to each, by its name within the layer."""
    rest: dict[str, Array] = {}
    found: dict[str, dict[str, Array]] = {path: {} for path in layers}
    for name, array in tensors.items():
        path = next((path for path in layers if name.startswith(f"{path}.")), None)
        if path is None:
            rest[name] = array
        else:
            found[path][name.removeprefix(f"{path}.")] = array
    return rest, found


def _prefixed(path: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{path}.{name}": array for name, array in tensors.items()}
