"""The argument checks of the losses, written once for both twins: one error names everything wrong with a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from maskattn._fields import dtype_name, peek
from maskattn._problems import Problems, show
from maskattn.typing import Array, NumPyArray, Reduction


def check_classes(
    where: str,
    logits: Array,
    labels: Array,
    weights: Array | None,
    ignore_index: int,
    label_smoothing: object = 0.0,
    reduction: object = "mean",
) -> None:
    """Logits [..., C], labels int [...], weights of the leading axes of labels.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape, or a value that can be read at no cost.
    """
    problems = Problems(where)
    _floats(problems, "logits", logits)
    if _array(problems, "labels", labels) and not dtype_name(labels).startswith(("int", "uint")):
        problems.type(f"labels must be ints, got dtype {dtype_name(labels)}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, np.integer)):
        problems.type(f"ignore_index must be an int, got {show(ignore_index)}")
    smoothing = problems.number("label_smoothing", label_smoothing)
    if smoothing is not None and not 0 <= smoothing <= 1:
        problems.value(f"label_smoothing must be in [0, 1], got {smoothing}")
    problems.choice("reduction", reduction, get_args(Reduction))
    if not problems:
        shape = tuple(logits.shape)
        if not shape or not shape[-1]:
            problems.value(f"logits must have shape [..., classes] with at least one class, got {list(shape)}")
        elif tuple(labels.shape) != shape[:-1]:
            problems.value(
                f"labels must have shape {list(shape[:-1])}, that of logits without classes, got {list(labels.shape)}"
            )
        else:
            _label_values(problems, labels, shape[-1], int(ignore_index))
    if weights is not None and _array(problems, "weights", weights):
        if dtype_name(weights).startswith(("complex", "bool")):
            problems.type(f"weights must be numbers, got dtype {dtype_name(weights)}")
        elif hasattr(labels, "shape"):
            _leading(problems, "weights", weights, labels.shape, "labels")
        values = _read(weights)
        if values is not None and values.size and not float(values.astype(np.float64).min()) >= 0:
            problems.value(f"weights must not be negative (or NaN), got {float(values.astype(np.float64).min())}")
    problems.raise_if_any()


def check_mean(where: str, values: Array, keep: Array, axis: object) -> None:
    """Values [...], keep bool of their leading axes, axis None, an int or several."""
    problems = Problems(where)
    _floats(problems, "values", values)
    _bools(problems, "keep", keep, values, "values")
    axes = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
    rank = len(getattr(values, "shape", ()))
    if not all(isinstance(a, int) and not isinstance(a, bool) for a in axes):
        problems.type(f"axis must be an int, several or None, got {show(axis)}")
    elif not all(-rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes):
        problems.value(f"axis must name axes of values, each once, in [{-rank}, {rank}), got {axis}")
    problems.raise_if_any()


def check_patches(where: str, prediction: Array, target: Array, removed: Array, normalize: object) -> None:
    """Prediction and target [B, N, P], removed bool [B, N]."""
    problems = Problems(where)
    _pair(problems, prediction, target, 3, "[batch, patches, numbers]")
    _bools(problems, "removed", removed, target, "target", rank=2)
    if not isinstance(normalize, bool):
        problems.type(f"normalize must be a bool, got {show(normalize)}")
    elif normalize and not problems and target.shape[2] < 2:
        problems.value(f"normalize needs at least 2 numbers in a patch, got {target.shape[2]}")
    problems.raise_if_any()


def check_images(where: str, prediction: Array, target: Array, removed: Array) -> None:
    """Prediction and target [B, H, W, C], removed bool [B, h, w] of a grid that divides them."""
    problems = Problems(where)
    _pair(problems, prediction, target, 4, "[batch, height, width, channels]")
    if _array(problems, "removed", removed) and dtype_name(removed) != "bool":
        problems.type(f"removed must be bool, True = removed, got dtype {dtype_name(removed)}")
    if not problems:
        grid, sides = tuple(removed.shape), tuple(target.shape)
        if len(grid) != 3 or grid[0] != sides[0] or 0 in grid[1:] or sides[1] % grid[1] or sides[2] % grid[2]:
            problems.value(
                f"removed must have shape [{sides[0]}, rows, columns] that divide the {sides[1]} x {sides[2]} pixels, "
                f"got {list(grid)}"
            )
    problems.raise_if_any()


def check_patchify(images: Array, patch: object) -> None:
    """Images [B, H, W, C], a patch that divides them."""
    problems = Problems("patchify")
    if isinstance(patch, bool) or not isinstance(patch, int):
        problems.type(f"patch must be an int, got {show(patch)}")
    elif patch < 1:
        problems.value(f"patch must be at least 1, got {patch}")
    elif _array(problems, "images", images):
        shape = tuple(images.shape)
        if len(shape) != 4:
            problems.value(f"images must have shape [batch, height, width, channels], got {list(shape)}")
        elif shape[1] % patch or shape[2] % patch:
            problems.value(f"images must have sides that are multiples of patch {patch}, got {shape[1]} x {shape[2]}")
    problems.raise_if_any()


def check_pairs(
    where: str,
    queries: Array,
    keys: Array,
    valid: Array | None,
    temperature: float | Array,
    flags: Mapping[str, object],
) -> None:
    """Queries and keys [B, D], valid bool [B], a positive temperature."""
    problems = Problems(where)
    _floats(problems, "queries", queries)
    _floats(problems, "keys", keys)
    if not problems and (len(queries.shape) != 2 or tuple(queries.shape) != tuple(keys.shape)):
        problems.value(f"queries and keys must have one shape [B, D], got {list(queries.shape)} and {list(keys.shape)}")
    if valid is not None and _array(problems, "valid", valid):
        if dtype_name(valid) != "bool":
            problems.type(f"valid must be bool, True = counts, got dtype {dtype_name(valid)}")
        elif not problems and tuple(valid.shape) != tuple(queries.shape[:1]):
            problems.value(f"valid must have shape [{queries.shape[0]}], got {list(valid.shape)}")
    if not hasattr(temperature, "shape"):
        problems.finite("temperature", problems.number("temperature", temperature), positive=True)
    elif tuple(temperature.shape) != ():
        problems.value(f"temperature must be one number, got shape {list(temperature.shape)}")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            problems.type(f"{name} must be a bool, got {show(flag)}")
    problems.raise_if_any()


def _array(problems: Problems, name: str, value: object) -> bool:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return True
    problems.type(f"{name} must be an array, got {show(value)}")
    return False


def _floats(problems: Problems, name: str, value: Array) -> None:
    if _array(problems, name, value) and not dtype_name(value).startswith(("float", "bfloat")):
        problems.type(f"{name} must be floats, got dtype {dtype_name(value)}")


def _bools(problems: Problems, name: str, value: Array, of: Array, owner: str, rank: int | None = None) -> None:
    if not _array(problems, name, value):
        return
    if dtype_name(value) != "bool":
        problems.type(f"{name} must be bool, got dtype {dtype_name(value)}")
    elif hasattr(of, "shape"):
        if rank is not None and len(of.shape) >= rank and tuple(value.shape) != tuple(of.shape[:rank]):
            problems.value(f"{name} must have shape {list(of.shape[:rank])}, got {list(value.shape)}")
        elif rank is None:
            _leading(problems, name, value, of.shape, owner)


def _leading(problems: Problems, name: str, value: Array, shape: Sequence[int], owner: str) -> None:
    got = tuple(value.shape)
    if len(got) > len(shape) or any(n != 1 and n != m for n, m in zip(got, shape, strict=False)):
        problems.value(f"{name} must have leading axes of {owner} {list(shape)} (or 1 for one), got {list(got)}")


def _pair(problems: Problems, prediction: Array, target: Array, rank: int, axes: str) -> None:
    _floats(problems, "prediction", prediction)
    _floats(problems, "target", target)
    if not problems and (len(target.shape) != rank or tuple(prediction.shape) != tuple(target.shape)):
        shapes = f"{list(prediction.shape)} and {list(target.shape)}"
        problems.value(f"prediction and target must have one shape {axes}, got {shapes}")


def _label_values(problems: Problems, labels: Array, classes: int, ignore_index: int) -> None:
    values = _read(labels)
    if values is None:
        return
    used = values[values != ignore_index]
    if used.size and not 0 <= int(used.min()) <= int(used.max()) < classes:
        labelled = f"{int(used.min())} to {int(used.max())}"
        problems.value(f"labels must be in [0, {classes}) or ignore_index {ignore_index}, got {labelled}")


def _read(array: Array) -> NumPyArray | None:
    """The array in NumPy where reading it waits for no device, else None."""
    device = getattr(array, "device", None)  # of NumPy a str; of a sharded array of JAX no device, and it is not read
    kind = getattr(device, "type", getattr(device, "platform", device))
    return peek(array) if isinstance(kind, str) and kind == "cpu" else None
