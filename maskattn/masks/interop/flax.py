from __future__ import annotations

import numpy as np

from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Full, Mask
from maskattn.masks.dense import Dense
from maskattn.masks.interop._values import as_array, as_dtype, compact, is_one


def from_flax(mask: Array | None) -> Mask:
    """A mask of Flax (`make_attention_mask`, `make_causal_mask`, `combine_masks`): 1 or True = may attend.

    `mask` is bool, or 0 and 1 of any dtype (float32 by default there), broadcastable to [B, H, L, S]. None:
    everything.

    >>> from maskattn import masks
    >>> masks.from_flax([[1.0, 0.0], [1.0, 1.0]])
    Dense([[True, False], [True, True]])

    Raises:
        ValueError: any other value, named with its place; more than four axes; or the array is traced, and not bool.
    """
    if mask is None:
        return Full()
    problems = Problems("from_flax")
    ranks = dict.fromkeys(range(5), "broadcastable to [B, H, L, S]")
    array = as_array(problems, "mask", mask, ("bool", "int", "float"), ranks)
    keep = None if array is None else is_one(problems, "mask", array)
    problems.raise_if_any()
    return Dense(keep)


def to_flax(
    mask: Mask, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None, *, dtype: object = bool
) -> np.ndarray:
    """A mask for Flax: 1 or True = may attend, [batch, heads, q_len, kv_len], size 1 on axes that are not read.

    Raises:
        TypeError: dtype is not a bool, int or float dtype. ValueError: the sizes conflict with the mask's data.
    """
    dtype = as_dtype("to_flax", dtype, ("bool", "int", "float"))
    return compact(mask, q_len, kv_len, batch, heads)[0].astype(dtype)
