"""A model between the form it is stored in and the canonical one: layers by their layouts, names by their families."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert._layer import from_canonical, to_canonical
from maskattn.convert._model import Layer, Model
from maskattn.convert.families import GENERIC, Form, Rule
from maskattn.convert.layouts import DTYPES, EXTRAS, Step
from maskattn.convert.lazy import Lazy, Read, stack
from maskattn.typing import NumPyArray, NumPyDType

FLAX = ("flax-linen", "flax-nnx")
"""Layouts of modules that Flax has too."""
ConfigOf = Callable[[str, Layer], AttentionConfig]
"""Gives the sizes of a layer, by its canonical name and as it is stored; ValueError where they cannot be told."""


def read(stored: Model, sizes: ConfigOf) -> Model:
    """``stored`` with its layers in canonical form; why one cannot be read is among its reasons."""
    model = replace(stored, layers={})
    for name, (rule, lazy) in stored.buffers.items():
        model.dropped[name] = "a model computes it when it is built"
        if rule.maker:
            _read_made(model, name, rule.maker, lazy)
        else:
            model.tables.append(name)
    for key, layer in stored.layers.items():
        try:
            model.layers[key] = to_canonical(layer, sizes(key, layer), beside=stored.form.beside)
        except ValueError as error:
            model.reasons += str(error).splitlines()
        else:
            model.note(model.layers[key])
    return model


def made(maker: str, shape: tuple[int, ...], dtype: NumPyDType) -> NumPyArray:
    """A buffer that a converted file lets be made again; ValueError where there is none of that shape and dtype."""
    return _MAKERS[maker](shape, dtype)


def _arange(shape: tuple[int, ...], dtype: NumPyDType) -> NumPyArray:
    """0, 1, 2, ... along the last axis."""
    if not shape or dtype.kind not in "iu":
        raise ValueError(f"expected integers along an axis, got {dtype} {list(shape)}")
    return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape)


def _shifted_windows(shape: tuple[int, ...], dtype: NumPyDType) -> NumPyArray:
    """Swin's mask [windows, positions, positions] of a square image, shifted by half a window: 0, and -100 between
    positions that were no neighbours.
    """
    across, side = (math.isqrt(size) for size in shape[:2]) if len(shape) == 3 else (0, 0)
    if (across**2, side**2, side**2) != shape or not side or dtype not in DTYPES:
        raise ValueError(f"expected a mask of square windows of a square image, got {dtype} {list(shape)}")
    places = np.arange(across * side)
    part = (places >= len(places) - side).astype(int) + (places >= len(places) - side // 2)
    regions = (3 * part[:, None] + part).reshape(across, side, across, side).swapaxes(1, 2).reshape(shape[:2])
    return np.where(regions[:, None] == regions[:, :, None], 0, -100).astype(dtype)


_MAKERS = {"arange": _arange, "shifted-windows": _shifted_windows}
_WORDS = {"arange": "0, 1, 2, ... along its last axis", "shifted-windows": "the mask of windows shifted by half of one"}


def _read_made(model: Model, name: str, maker: str, lazy: Lazy) -> None:
    try:
        expected = made(maker, lazy.shape, lazy.dtype)
    except ValueError as error:
        model.reasons.append(f"{name}: {error}")
        return

    def check(read: Read) -> None:
        if not np.array_equal(read(name), expected):
            raise ValueError(f"{name}: expected {_WORDS[maker]}, got other numbers")

    model.dropped[name] = f"checked to be {_WORDS[maker]}; made again when converted back"
    model.checks.append(check)


def write(model: Model, form: Form) -> dict[str, Lazy]:
    """The tensors of a canonical ``model`` as ``form`` stores them, by their names there.

    What has no place is a fault of the model.
    """
    out: dict[str, Lazy] = {}
    stacks: dict[str, dict[int, Lazy]] = {}
    whole = not model.reasons

    def put(rule: Rule, indices: tuple[int, ...], part: str, lazy: Lazy) -> None:
        name = form.name(rule, indices, part)
        if form.stacked(rule):
            stacks.setdefault(name, {})[indices[-1]] = lazy
        elif name in out:
            model.reasons.append(f"{name}: two tensors would have this name")
        else:
            out[name] = lazy

    for key, lazy in model.tensors.items():
        place = form.place(key, attention=False)
        if place is None and key in form.family.leaves_out:
            step = Step(f"leave out {key}", form.family.leaves_out[key], exact=False)
            model.steps[str(step)] = step
            model.dropped[", ".join(lazy.sources)] = form.family.leaves_out[key]
        elif place is None:
            model.reasons.append(f"{key} ({', '.join(lazy.sources)}): {form.family.name} has no place for it")
        else:
            put(*place, form.from_flax(place[0], place[2], lazy))
    for key, layer in model.layers.items():
        place = form.place(key, attention=True)
        if place is None:
            model.reasons.append(f"{layer.all_of_it}{form.family.name} has no such attention layer")
            continue
        rule, indices, _ = place
        try:
            stored = _stored(layer, rule, form)
        except ValueError as error:
            model.reasons += str(error).splitlines()
            continue
        model.note(stored)
        model.notes += _beyond_flax(stored) if form.layout in FLAX else []
        for local, lazy in stored.tensors.items():
            put(rule, indices, local, lazy)
    for name, parts in stacks.items() if whole else ():
        kinds = {(part.shape, part.dtype) for part in parts.values()}
        if sorted(parts) != list(range(len(parts))) or len(kinds) > 1:
            several = " and ".join(sorted(f"{list(shape)} {dtype}" for shape, dtype in kinds))
            model.reasons.append(f"{name}: the layers cannot be stacked, they have {several}")
        else:
            out[name] = stack([parts[i] for i in range(len(parts))], form.scan_axis)
    return out


def _beyond_flax(layer: Layer) -> list[str]:
    """What Flax's own module would leave out of a layer, or do otherwise."""
    config, notes = layer.config, []
    if config.scale != 1 / math.sqrt(config.head_dim):
        factor = config.scale * math.sqrt(config.head_dim)
        notes.append(
            f"attention has scale {config.scale:.6g}: Flax's own module takes 1 / sqrt({config.head_dim}), and needs "
            f"query kernels times {factor:.6g}"
        )
    names = [name.replace(layer.layout.separator, ".") for name in layer.tensors]
    beside = [name for name in names if name in EXTRAS and name.partition(".")[0] not in ("query_norm", "key_norm")]
    if beside:
        notes.append(f"attention has {', '.join(sorted(set(beside)))}: Flax's own module does not apply them")
    return notes


def _stored(layer: Layer, rule: Rule, form: Form) -> Layer:
    layout = form.layout_of(rule)
    if form.separator != form.family.separator and form.separator in rule.pattern:
        raise ValueError(f"{layer.all_of_it}contains {form.separator!r}, which separates names in {layout.name}")
    return from_canonical(layer, layout, beside=form.beside and form.layout in GENERIC)
