"""Moving the weights of attention layers from one layout to another: source -> canonical -> target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.layouts._base import Layout
from maskattn.convert.layouts._check import mixed_dtypes, problems

Array = np.ndarray[Any, Any]
OTHERS = ("error", "keep", "drop")


def convert_tensors(
    tensors: Mapping[str, Any],
    *,
    source: str,
    target: str,
    config: AttentionConfig,
    others: str = "error",
) -> dict[str, Array]:
    """Converts every attention layer among ``tensors``; numbers are moved, and changed only by the named steps that
    ``layouts.steps`` lists.

    Layers are told apart by the prefix of their names (``encoder.layer.0.attention.``), which is kept; separators
    within it become the target's. Each layer must have the sizes of ``config``.

    Args:
        tensors: names to NumPy arrays (float64, float32, float16 or bfloat16), or a nested tree of them; left
        untouched. source: the layout of ``tensors``, or ``"auto"`` where exactly one fits. target: the layout wanted.
        config: the sizes and biases of the layers. others: what happens to tensors that lie outside every attention
        layer: ``"error"``, ``"keep"`` (copied under their
            own names) or ``"drop"``. A tensor inside a layer that the layout does not know is an error in any case.

    Returns:
        Names to new C-contiguous arrays of the same dtypes, layer by layer in the order found.

    Raises:
        ValueError: one error that lists every tensor missing, left over, of the wrong shape or dtype, or not an array,
            and every reason a layout cannot hold ``config``; an unknown layout; an ambiguous ``"auto"``.
        TypeError: arguments of the wrong type.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping of names to arrays, got {type(tensors).__name__}")
    if not isinstance(config, AttentionConfig):
        raise TypeError(f"config must be an AttentionConfig, got {type(config).__name__}")
    if others not in OTHERS:
        raise ValueError(f"others must be one of {OTHERS}, got {others!r}")
    to = layouts.get(target)
    flat = _flat(tensors, "/" if source == "auto" else layouts.get(source).separator)
    origin = layouts.get(layouts.detect(flat, config).layout if source == "auto" else source)

    found = [
        f"layout {layout.name} cannot hold this config: {reason}"
        for layout in dict.fromkeys((origin, to))
        for reason in layout.unsupported(config)
    ]
    if found:
        raise _error(found, origin, to)
    layers = origin.match(flat)
    if not layers and config.project:
        wanted = " or ".join(origin.anchors)
        found.append(f"no layer found: expected names ending in {wanted}, got {_some(flat)}")
    out: dict[str, Array] = {}
    for prefix, owned in layers.items():
        found += _convert_layer(out, {name: flat[full] for name, full in owned.items()}, prefix, origin, to, config)
    claimed = {full for owned in layers.values() for full in owned.values()}
    for name, array in flat.items():
        if name not in claimed and others != "drop":
            found += _keep(out, name, array, others)
    if found:
        raise _error(found, origin, to)
    return out


def _convert_layer(
    out: dict[str, Array],
    layer: Mapping[str, Any],
    prefix: str,
    origin: Layout,
    to: Layout,
    config: AttentionConfig,
) -> list[str]:
    found = problems(origin, layer, config, prefix)
    if origin.separator != to.separator and to.separator in prefix:
        found.append(f"{prefix}: contains {to.separator!r}, which separates names in {to.name}")
    if found:
        return found
    found = [prefix + reason for reason in to.misfits(origin.extras_of(layer, config), config)]
    try:
        canonical = origin.to_canonical(layer, config)
        found += mixed_dtypes(canonical, prefix)
        converted = {} if found else to.from_canonical(canonical, config)
    except ValueError as error:
        return [*found, *(prefix + line.strip() for line in str(error).splitlines())]
    new_prefix = prefix.replace(origin.separator, to.separator)
    for name, array in converted.items():
        out[new_prefix + name] = np.array(array, order="C", copy=True)
    return found


def _keep(out: dict[str, Array], name: str, array: Any, others: str) -> list[str]:
    if others == "error":
        return [f"{name}: left over: it lies outside every attention layer"]
    if not isinstance(array, np.ndarray):
        return [f"{name}: expected a NumPy array, got {type(array).__module__}.{type(array).__name__}"]
    if name in out:
        return [f"{name}: the name of a tensor that is kept is also the name of a converted one"]
    out[name] = np.array(array, order="C", copy=True)
    return []


def _flat(tensors: Mapping[str, Any], separator: str) -> dict[str, Any]:
    flat = dict(tensors.items())
    if any(isinstance(value, Mapping) for value in flat.values()):
        return layouts.flatten(flat, separator)
    if not all(isinstance(name, str) for name in flat):
        raise TypeError(f"names must be str, got {[name for name in flat if not isinstance(name, str)]}")
    return flat


def _some(names: Mapping[str, Any]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more if listed else "no tensors"


def _error(found: list[str], origin: Layout, to: Layout) -> ValueError:
    return ValueError("\n  ".join([f"tensors cannot be converted from {origin.name} to {to.name}:", *found]))
