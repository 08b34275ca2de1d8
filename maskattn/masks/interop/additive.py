from __future__ import annotations

import ml_dtypes
import numpy as np

from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Mask
from maskattn.masks.dense import Dense
from maskattn.masks.interop._values import as_array, as_dtype, compact, expanded, is_zero

_RANKS = dict.fromkeys(range(5), "broadcastable to [B, H, L, S]")


def from_additive(bias: Array, drop_at: float | None = None) -> Mask:
    """An additive mask as a mask: 0 may attend; -inf, the dtype's minimum and `drop_at` may not.

    `bias` is a float array broadcastable to [B, H, L, S]. A finite number that is added forbids nothing for certain
    (with -100 or -10000 a row whose keys are all dropped attends as if none were): name it as `drop_at` to turn it into
    a mask, or keep it as a bias (`biases.DenseBias`, `biases.Additive`).

    >>> from maskattn import masks
    >>> masks.from_additive([[0.0, -10000.0]], drop_at=-10000.0)
    Dense([[True, False]])

    Raises:
        ValueError: any other value, with its place; or the array is traced. TypeError: it is not of floats.
    """
    problems = Problems("from_additive")
    array = as_array(problems, "bias", bias, ("float",), _RANKS)
    if drop_at is not None:
        drop_at = problems.number("drop_at", drop_at)
    keep = None if array is None else is_zero(problems, "bias", array, drop_at)
    problems.raise_if_any()
    return Dense(keep)


def to_additive(
    mask: Mask,
    dtype: object,
    q_len: int,
    kv_len: int,
    batch: int | None = None,
    heads: int | None = None,
    *,
    drop_at: float | None = None,
) -> np.ndarray:
    """0 where the mask allows; where it forbids the dtype's minimum, or `drop_at`: [batch, heads, q_len, kv_len].

    The twins' `lower.to_additive` gives the same in their own arrays.

    Raises:
        TypeError: the dtype is not a float. ValueError: the sizes conflict with the mask's data.
    """
    dtype = as_dtype("to_additive", dtype, ("float",))
    keep, sizes = compact(mask, q_len, kv_len, batch, heads)
    return filled(expanded(keep, tuple(sizes)), dtype, drop_at)


def filled(keep: np.ndarray, dtype: np.dtype, drop_at: float | None = None) -> np.ndarray:
    """0 where `keep`, else the dtype's minimum or `drop_at`."""
    lowest = ml_dtypes.finfo(dtype).min if drop_at is None else drop_at
    return np.where(keep, np.zeros((), dtype), np.asarray(lowest).astype(dtype))
