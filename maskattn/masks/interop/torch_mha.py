from __future__ import annotations

import functools
import operator

import numpy as np

from maskattn._arithmetic import negated
from maskattn._fields import Array, to_numpy
from maskattn._problems import Problems
from maskattn.masks._core import And, Full, Mask
from maskattn.masks.dense import Dense
from maskattn.masks.interop._values import as_array, compact, expanded, is_zero, kind_of
from maskattn.masks.key_mask import KeyMask


def from_torch_mha(
    attn_mask: Array | None = None, key_padding_mask: Array | None = None, *, num_heads: int | None = None
) -> Mask:
    """The masks of torch.nn.MultiheadAttention, where True = drop. The result says, as everywhere, True = may attend.

    `attn_mask` is [L, S], or [B * H, L, S], which needs `num_heads`; `key_padding_mask` is [B, S], or [S] for one row.
    Both may be bool (True = drop) or float (added: 0 keeps; -inf and the dtype's minimum drop).

    >>> from maskattn import masks
    >>> masks.from_torch_mha([[False, True], [False, False]], [[False, True]])
    Dense([[True, False], [True, True]]) & KeyMask([[True, False]])

    Raises:
        ValueError: a float mask holds any other value, named with its place, or is traced; or a shape is wrong.
        TypeError: a mask is neither bool nor float.
    """
    problems = Problems("from_torch_mha")
    keep = padding = None
    if attn_mask is not None:
        array = as_array(problems, "attn_mask", attn_mask, ("bool", "float"), {2: "[L, S]", 3: "[B * num_heads, L, S]"})
        if array is not None:
            keep = _kept(problems, "attn_mask", array)
        if keep is not None and len(keep.shape) == 3:
            keep = _by_head(problems, keep, num_heads)
    if key_padding_mask is not None:
        array = as_array(problems, "key_padding_mask", key_padding_mask, ("bool", "float"), {1: "[S]", 2: "[B, S]"})
        if array is not None:
            padding = _kept(problems, "key_padding_mask", array)
            padding = padding[None] if len(padding.shape) == 1 else padding
    problems.raise_if_any()
    mask: Mask = Full() if keep is None else Dense(keep)
    return mask if padding is None else mask & KeyMask(padding)


def to_torch_mha(
    mask: Mask, q_len: int, kv_len: int, batch: int | None = None, heads: int | None = None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(attn_mask, key_padding_mask) for torch.nn.MultiheadAttention: bool, True = drop; None where nothing is dropped.

    Parts that only name keys of a batch row become key_padding_mask [batch, kv_len], all others attn_mask
    [q_len, kv_len], or [batch * heads, q_len, kv_len] where they differ between rows or heads. A row that may attend to
    nothing gives NaN there.

    Raises:
        ValueError: the sizes conflict with the mask's data.
    """
    parts = mask.parts if isinstance(mask, And) else (mask,)
    keys = [part for part in parts if part.depends == {"k"} | (part.depends & {"b"}) and not isinstance(part, Dense)]
    others = [part for part in parts if part not in keys and not isinstance(part, Full)]
    settled = mask.map_data(to_numpy).settle(q_len, kv_len, batch, heads)
    rows, columns = settled["batch"], settled["heads"]
    attn_mask = key_padding_mask = None
    if others:
        keep, _ = compact(functools.reduce(operator.and_, others), q_len, kv_len, rows, columns)
        if keep.shape[:2] == (1, 1):
            attn_mask = ~expanded(keep, (1, 1, q_len, kv_len))[0, 0]
        else:
            attn_mask = ~expanded(keep, (rows, columns, q_len, kv_len)).reshape(rows * columns, q_len, kv_len)
    if keys:
        keep, _ = compact(functools.reduce(operator.and_, keys), q_len, kv_len, rows, columns)
        key_padding_mask = ~expanded(keep[:, :1], (rows, 1, 1, kv_len))[:, 0, 0]
    return attn_mask, key_padding_mask


def _kept(problems: Problems, name: str, array: Array) -> Array:
    return negated(array) if kind_of(array) == "bool" else is_zero(problems, name, array)


def _by_head(problems: Problems, keep: Array, num_heads: int | None) -> Array | None:
    """[B * H, L, S] -> [B, H, L, S]."""
    if num_heads is None:
        problems.type("num_heads must be given with an attn_mask [B * num_heads, L, S]")
        return None
    heads = problems.integer("num_heads", num_heads, minimum=1)
    if problems or keep.shape[0] % heads:
        problems.value(
            f"attn_mask must have a multiple of num_heads {num_heads} as its first axis, got {keep.shape[0]}"
        )
        return None
    return keep.reshape((keep.shape[0] // heads, heads, *keep.shape[1:]))
