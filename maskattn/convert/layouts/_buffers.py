"""Buffers that models compute when they are built: what they must hold, and how to build those that can be."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from maskattn.biases.relative_table import RelativeTable
from maskattn.config import AttentionConfig
from maskattn.convert.layouts._base import Array, Buffer, Tensors

_TABLE = "relative_position_bias.table"
# A float32 table goes through a division, a logarithm and a division; 64 units in the last place are ample.
_CLOSE = 64 * 2.0**-23


def position_index(height: int, width: int) -> Array:
    """The row of Swin's table for each pair of places of a window, int64 [height * width, height * width]."""
    place = np.arange(height * width, dtype=np.int64)
    table = np.zeros(((2 * height - 1) * (2 * width - 1), 1))
    rows: Array = RelativeTable(table, window=(height, width)).rows(0, place[:, None], place)
    return rows.astype(np.int64)


def _windows(places: int) -> list[tuple[int, int]]:
    return [(h, places // h) for h in range(1, places + 1) if places % h == 0]


def _check_index(array: Array, tensors: Mapping[str, Array], config: AttentionConfig) -> str | None:
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.dtype != np.int64:
        return f"expected int64 of one square shape, got {array.dtype} {list(array.shape)}"
    rows = tensors[_TABLE].shape[0] if _TABLE in tensors else None
    for height, width in _windows(array.shape[0]):
        fits = rows is None or rows == (2 * height - 1) * (2 * width - 1)
        if fits and np.array_equal(array, position_index(height, width)):
            return None
    return "not the index of any window" + ("" if rows is None else f" whose table has {rows} rows")


def _check_square(array: Array, tensors: Mapping[str, Array], config: AttentionConfig) -> str | None:
    built = _build_index(tensors, config).get("relative_position_index")
    if built is None or (array.dtype == built.dtype and np.array_equal(array, built)):
        return None
    return f"not the index of a square window, int64 {list(built.shape)}, which is the only one that could be rebuilt"


def _build_index(tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
    if _TABLE not in tensors:
        return {}
    rows = tensors[_TABLE].shape[0]
    side = (math.isqrt(rows) + 1) // 2
    if (2 * side - 1) ** 2 != rows:
        raise ValueError(f"relative_position_index: a table of {rows} rows is not that of a square window")
    return {"relative_position_index": position_index(side, side)}


def _check_coords(array: Array, tensors: Mapping[str, Array], config: AttentionConfig) -> str | None:
    """sign(offset) log2(1 + 8 abs(offset) / (window - 1)) / log2(8), per axis (Swin v2, arXiv 2111.09883, its code)."""
    shape = array.shape
    if len(shape) != 4 or (shape[0], shape[1] % 2, shape[2] % 2, shape[3]) != (1, 1, 1, 2):
        return f"expected shape [1, 2 * height - 1, 2 * width - 1, 2], got {list(shape)}"
    table = array.astype(np.float64)
    coarse = max(_CLOSE, 2 * float(np.finfo(np.float16).eps)) if array.dtype.itemsize < 4 else _CLOSE
    for axis in (1, 2):
        line = np.moveaxis(table[0, ..., axis - 1], axis - 1, 0)  # [offsets of this axis, the other axis]
        reach = line.shape[0] // 2
        offsets = np.arange(-reach, reach + 1)
        largest = line[-1, 0] if reach else 0.0
        step = (2.0 ** (3 * largest) - 1) / reach if reach else 0.0  # 8 / (window - 1) of the pretraining
        wanted = np.sign(offsets) * np.log2(1 + step * np.abs(offsets)) / 3
        if not (np.abs(line - wanted[:, None]) <= coarse * np.maximum(np.abs(largest), 1)).all():
            return "not the logarithmic offsets of a window"
    return None


def _check_causal(array: Array, tensors: Mapping[str, Array], config: AttentionConfig) -> str | None:
    if array.ndim != 4 or array.shape[:2] != (1, 1) or array.shape[2] != array.shape[3]:
        return f"expected shape [1, 1, positions, positions], got {list(array.shape)}"
    allowed = np.tril(np.ones(array.shape[2:], bool))
    if np.array_equal(array[0, 0].astype(bool), allowed) and (array[0, 0] == allowed).all():
        return None
    return "not the causal mask"


def _check_fill(array: Array, tensors: Mapping[str, Array], config: AttentionConfig) -> str | None:
    if array.size == 1 and float(array.reshape(-1)[0]) <= -1e4:
        return None
    return "expected one number, -1e4 or less"


def _check_frequencies(array: Array, tensors: Mapping[str, Array], config: AttentionConfig) -> str | None:
    """theta ** (-2 i / d): the first is 1, each the one before times the same factor."""
    frequencies = array.astype(np.float64)
    if array.ndim == 1 and len(frequencies) and frequencies[0] == 1 and (frequencies > 0).all():
        ratio = frequencies[-1] ** (1 / max(len(frequencies) - 1, 1))
        wanted = ratio ** np.arange(len(frequencies))
        close = 2.0**-7 if array.dtype.itemsize < 4 else _CLOSE * 16
        if (np.abs(frequencies / wanted - 1) <= close).all():
            return None
    return "not the powers of one base: the frequencies were scaled, which the model's configuration must say"


def swin_index(name: str) -> Buffer:
    """Which row of the table belongs to each pair of places."""
    return Buffer(name, _check_index)


SWIN_INDEX = Buffer("relative_position_index", _check_square, _build_index)
"""The same where the layout stores it: a square window is all that the rows of a table tell."""


def swin_coords(name: str) -> Buffer:
    """Swin v2's offsets, from which its bias is computed; the window of the pretraining is not stored."""
    return Buffer(name, _check_coords)


CAUSAL = (Buffer("bias", _check_causal), Buffer("masked_bias", _check_fill))
"""The causal mask, and what it fills with, of GPT-2 and GPT-NeoX."""


def inv_freq(name: str) -> Buffer:
    """Rotary frequencies."""
    return Buffer(name, _check_frequencies)
