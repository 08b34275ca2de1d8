"""Which blocks a mask needs, kept for the next call: the layers of a model share one plan in each step."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor as Array

from maskattn.attention import Call
from maskattn.masks import Full, Mask
from maskattn_torch import lower
from maskattn_torch._modes import plain
from maskattn_torch.kernels.blockwise.flex.blocks import Tables, from_bounds, from_mask, from_states
from maskattn_torch.kernels.blockwise.flex.compiled import KERNELS, Kind
from maskattn_torch.kernels.blockwise.flex.rows import Bounds, bounds, reached, reaches_all
from maskattn_torch.kernels.blockwise.flex.scores import structure
from maskattn_torch.kernels.blockwise.flex.traced import plan

__all__ = ["Plan", "kind_of", "planned"]

#: Plans of masks without data, and plans of data, that are kept.
_STILL, _MOVING = 64, 8
#: Masks of at most so many entries are looked at pair by pair; beyond, that is compiled.
_FEW = 1 << 24


class Plan(NamedTuple):
    """What a call needs of its mask. Of a mask that has no rows, `bounds` is None: the mask itself is asked.

    Attributes:
        reached: bool [B or 1, S], the keys that some query attends to; None: all.
    """

    tables: Tables
    reached: Array | None
    bounds: Bounds | None

    def given(self, mask: Mask) -> Bounds | Mask:
        """What is asked in partial blocks."""
        return mask if self.bounds is None else self.bounds


class _Kept(NamedTuple):
    plan: Plan
    data: tuple[weakref.ref[Array], ...]


_KEPT: OrderedDict[Hashable, Plan] = OrderedDict()
_OF_DATA: OrderedDict[Hashable, _Kept] = OrderedDict()


def planned(call: Call[Array]) -> Plan | None:
    """The plan of a prepared call; None where all may attend to all. Nothing is read from the device.

    What was planned serves again for a mask without data, and for one with the same tensors, unchanged in place.
    """
    mask, sizes, device = call.mask, call.sizes, call.query.device
    if mask is None or isinstance(mask, Full):
        return None
    lower.check(mask, *sizes)
    if not plain():
        return _planned(mask, sizes, device)
    sizes = (sizes[0] if "b" in mask.depends else 1, sizes[1] if "h" in mask.depends else 1, *sizes[2:])
    data: list[Array] = []
    mask.map_data(data.append)
    if not data:
        key = (mask, sizes, device)
        if key not in _KEPT:
            _KEPT[key] = _planned(mask, sizes, device)
            _trim(_KEPT, _STILL)
        _KEPT.move_to_end(key)
        return _KEPT[key]
    if any([x.is_inference() for x in data]):  # who changes them in place is not seen
        return _planned(mask, sizes, device)
    versions = tuple([(id(x), x._version) for x in data])
    now = (structure(mask), sizes, device, versions)
    kept = _OF_DATA.get(now)
    if kept is None or any([ref() is not x for ref, x in zip(kept.data, data, strict=True)]):
        kept = _Kept(_planned(mask, sizes, device), tuple([weakref.ref(x) for x in data]))
        _OF_DATA[now] = kept
        _trim(_OF_DATA, _MOVING)
    return kept.plan


def kind_of(mask: Mask | None, found: Plan | None) -> Hashable:
    """All that a compiled kernel knows of a mask."""
    if mask is None or found is None:
        return None
    narrow = tuple(found.tables.kv_indices.shape[axis] == 1 for axis in (0, 1))
    return narrow, structure(mask) if found.bounds is None else found.bounds.kind


def _planned(mask: Mask, sizes: tuple[int, int, int, int], device: torch.device) -> Plan:
    if torch.compiler.is_compiling():
        return _made(mask, sizes, device)
    with torch.inference_mode(False), torch.no_grad():  # training may be next
        return _made(mask, sizes, device)


def _made(mask: Mask, sizes: tuple[int, int, int, int], device: torch.device) -> Plan:
    found = bounds(mask, sizes, device)
    if found is not None:
        some = None if reaches_all(mask, sizes) else reached(found, mask, sizes)
        return Plan(from_bounds(found, sizes[3]), some, found)
    if plain() and not _holds_data(mask):
        tables, known = from_states(mask, sizes, device)
        return Plan(tables, None if known.all() else torch.as_tensor(known).to(device, non_blocking=True), None)
    q, k = (torch.arange(size, device=device) for size in sizes[2:])
    if torch.compiler.is_compiling() or math.prod(sizes) <= _FEW:
        return Plan(*from_mask(mask, sizes, q, k), None)
    kind = Kind("plan", structure(mask), device=str(device), heads=sizes[:2])
    *made, some = KERNELS(kind, plan, (q, k), mask, *sizes[:2])
    return Plan(Tables(*made), some, None)


def _holds_data(mask: Mask) -> bool:
    leaves: list[Array] = []
    mask.map_data(leaves.append)
    return bool(leaves)


def _trim(kept: OrderedDict[Hashable, Plan] | OrderedDict[Hashable, _Kept], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
