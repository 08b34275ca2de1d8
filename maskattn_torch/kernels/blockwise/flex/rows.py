"""The rows of a mask as tensors: which keys each query may attend to, as data of one kernel for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor as Array

from maskattn._pairs import grid
from maskattn.masks import And, BlockCausal, Causal, Chunked, Full, Mask, PrefixLM, Segments, SlidingWindow
from maskattn.masks.rows import NO_KEY
from maskattn_torch._symbolic import known

__all__ = ["Bounds", "bounds", "mask_mod", "reached", "reaches_all"]

#: The masks that allow each token itself, where queries and keys are the same tokens (Causal with an offset from 0 on).
_OF_ITSELF = (BlockCausal, Causal, Chunked, Full, PrefixLM, SlidingWindow)


class Bounds(NamedTuple):
    """low <= k < high, and q_tag == k_tag where there are tags: int32 [*axes, L] (k_tag: [*axes, S]), contiguous,
    and no views, which a compiler would tell apart.

    Tags are int64 where ids are, since these may be any number.

    Attributes:
        axes: which of "b" and "h" the tensors have before the last axis: "", "b", "h" or "bh".
    """

    low: Array
    high: Array
    q_tag: Array | None
    k_tag: Array | None
    axes: str

    @property
    def kind(self) -> tuple[str, str]:
        """All that a compiled kernel knows of them."""
        return self.axes, "" if self.q_tag is None else str(self.q_tag.dtype)


def bounds(mask: Mask, sizes: tuple[int, int, int, int], device: torch.device) -> Bounds | None:
    """The rows of a bound mask at [B, H, L, S]; None where it has none. Nothing is read from the device."""
    at = grid(mask.depends, sizes, lambda size: torch.arange(size, device=device))
    found = mask.rows(*at)
    if found is None:
        return None
    batch = sizes[0] if "b" in mask.depends else 1
    heads = sizes[1] if "h" in mask.depends else 1
    axes = ("b" if not known(batch == 1) else "") + ("h" if not known(heads == 1) else "")
    lengths = ((batch, heads, sizes[2], 1), (batch, heads, 1, sizes[3]))

    def shaped(x: Array | int, of_keys: bool, dtype: torch.dtype) -> Array:
        wide = _tensor(x, device).to(dtype).expand(lengths[of_keys]).squeeze(2 if of_keys else 3)
        wide = wide if "h" in axes else wide[:, 0]
        return (wide if "b" in axes else wide[0]).clone(memory_format=torch.contiguous_format)

    def bound(x: Array | int | None, otherwise: int) -> Array:
        return shaped(_tensor(otherwise if x is None else x, device).clamp(0, sizes[3]), False, torch.int32)

    low, high = bound(found.low, 0), bound(found.high, sizes[3])
    if found.q_tag is None or found.k_tag is None:
        return Bounds(low, high, None, None, axes)
    leaves: list[Array] = []
    mask.map_data(leaves.append)
    tag = torch.int64 if any(leaf.dtype == torch.int64 for leaf in leaves) else torch.int32
    return Bounds(low, high, shaped(found.q_tag, False, tag), shaped(found.k_tag, True, tag), axes)


def _tensor(x: Array | int, device: torch.device) -> Array:
    return x if isinstance(x, Array) else torch.full((1, 1, 1, 1), x, device=device)


def mask_mod(given: Bounds | Mask) -> Callable[[Array, Array, Array, Array], Array]:
    """What FlexAttention asks about a pair: these bounds, or the mask itself."""
    if isinstance(given, Mask):
        return lambda b, h, q, k: given.allowed(b, h, q, k)
    low, high, q_tag, k_tag, axes = given

    def at(x: Array, b: Array, h: Array, i: Array) -> Array:
        # every index is a tensor: an int among them is another function to FlexAttention's gradients
        if axes == "":
            return x[i]
        return x[b, h, i] if axes == "bh" else x[b if axes == "b" else h, i]

    def interval(b: Array, h: Array, q: Array, k: Array) -> Array:
        return (k >= at(low, b, h, q)) & (k < at(high, b, h, q))

    if q_tag is None or k_tag is None:
        return interval
    return lambda b, h, q, k: interval(b, h, q, k) & (at(q_tag, b, h, q) == at(k_tag, b, h, k))


def reaches_all(mask: Mask, sizes: tuple[int, int, int, int]) -> bool:
    """Whether it follows from the kind of mask alone that some query attends to each key: each token to itself."""
    if isinstance(mask, And):
        return all(reaches_all(part, sizes) for part in mask.parts)
    if isinstance(mask, Causal) and not known(mask.offset >= 0):
        return False
    return isinstance(mask, _OF_ITSELF) and known(sizes[2] == sizes[3])


def reached(found: Bounds, mask: Mask, sizes: tuple[int, int, int, int]) -> Array:
    """Which keys lie in some query's interval and, where there are tags, have one that some query has: bool
    [B or 1, S].

    A key may be called reached that is not: where no one query has both.
    """
    kv_len = sizes[3]
    low, high = (_by_row(x, found.axes) for x in found[:2])
    rows = low.shape[0]
    some = (low < high).to(torch.int32).flatten()
    first = torch.arange(0, rows * (kv_len + 1), kv_len + 1, device=low.device)[:, None]
    steps = torch.zeros(rows * (kv_len + 1), dtype=torch.int32, device=low.device)
    steps = steps.index_add(0, (first + low).flatten(), some).index_add(0, (first + high).flatten(), -some)
    covered = steps.view(rows, kv_len + 1).cumsum(1, dtype=torch.int32)[:, :kv_len] > 0
    if found.q_tag is None or found.k_tag is None:
        return covered
    k_tag = _by_row(found.k_tag, found.axes).view(rows, -1, kv_len)
    if "h" in found.axes or _of_one(mask):
        return covered & (k_tag != NO_KEY).any(1)
    tags = _by_row(found.q_tag, found.axes).sort(1).values
    k_tag = k_tag[:, 0]
    place = torch.searchsorted(tags, k_tag).clamp(max=tags.shape[1] - 1)
    return covered & (tags.gather(1, place) == k_tag)


def _of_one(mask: Mask) -> bool:
    """Whether queries and keys have their tags of one array: then each that a key has, its query has too."""
    if isinstance(mask, And):
        return all(_of_one(part) for part in mask.parts)
    return not mask.children() and not (isinstance(mask, Segments) and mask.k_ids is not None)


def _by_row(x: Array, axes: str) -> Array:
    """[*axes, N] -> [B or 1, N of all heads]."""
    return x.flatten(1) if axes == "bh" else x if axes == "b" else x.reshape(1, -1)
