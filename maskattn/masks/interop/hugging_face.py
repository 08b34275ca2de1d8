from __future__ import annotations

import numpy as np

from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks._core import Full, Mask
from maskattn.masks.dense import Dense
from maskattn.masks.interop._values import as_array, as_dtype, compact, expanded, is_one, is_zero, kind_of
from maskattn.masks.interop.additive import filled
from maskattn.masks.key_mask import KeyMask

_KEYS, _PAIRS = "[B, S] of 1 and 0", "[B, 1 or H, L, S]"


def from_hf(attention_mask: Array | None) -> Mask:
    """Hugging Face's `attention_mask` as a mask. True = may attend.

    `attention_mask` [B, S] of 1 (keep) and 0 (padding), of any dtype: a KeyMask, to be combined with the model's own
    causal mask.
    [B, 1 or H, L, S]: bool (True = may attend, what SDPA is given) or float (0 may attend, the dtype's minimum or -inf
    may not), which holds the causal mask already. None: everything.

    >>> from maskattn import masks
    >>> masks.from_hf([[0, 1, 1]]) & masks.Causal()
    KeyMask([[False, True, True]]) & Causal()

    Raises:
        ValueError: any other value (the ids of packed documents, say: `masks.Segments`), named with its place; any
            other rank; or the array is traced, and not bool. TypeError: any other dtype.
    """
    if attention_mask is None:
        return Full()
    problems = Problems("from_hf")
    array = as_array(problems, "attention_mask", attention_mask, ("bool", "int", "float"), {2: _KEYS, 4: _PAIRS})
    mask: Mask = Full()
    if array is not None and len(array.shape) == 2:
        mask = KeyMask(is_one(problems, "attention_mask", array))
    elif array is not None and kind_of(array) == "int":
        problems.type(f"attention_mask {_PAIRS} must be of dtype bool or float, got {array.dtype}")
    elif array is not None:
        mask = Dense(array if kind_of(array) == "bool" else is_zero(problems, "attention_mask", array))
    problems.raise_if_any()
    return mask


def to_hf(
    mask: Mask, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None, *, dtype: object = None
) -> np.ndarray:
    """`attention_mask` for a Hugging Face model.

    int64 [batch, kv_len] of 1 and 0 where the mask only names keys, unless a `dtype` is asked for; else
    [batch, 1 or heads, q_len, kv_len] of `dtype`: bool (True = may attend), or float (the default, float32), where 0
    may attend and the dtype's minimum may not.

    Raises:
        TypeError: dtype is neither bool nor float. ValueError: the sizes conflict with the mask's data.
    """
    keep, sizes = compact(mask, q_len, kv_len, batch, heads)
    if dtype is None and keep.shape[1:3] == (1, 1) and not isinstance(mask, Dense):
        return expanded(keep[:, 0, 0], (sizes[0], kv_len)).astype(np.int64)
    dtype = as_dtype("to_hf", np.float32 if dtype is None else dtype, ("bool", "float"))
    keep = expanded(keep, (sizes[0], keep.shape[1], q_len, kv_len))
    return keep if dtype == np.bool_ else filled(keep, dtype)
