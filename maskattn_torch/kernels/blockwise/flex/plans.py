"""Which blocks a mask needs, kept for the next call: the layers of a model share one plan in each step."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor as Array
from torch.utils.weak import WeakIdKeyDictionary

from maskattn.attention import Call
from maskattn.masks import Full, Mask
from maskattn_torch import lower
from maskattn_torch._modes import plain
from maskattn_torch.kernels.blockwise.flex.blocks import Tables, from_bounds, from_mask, from_states
from maskattn_torch.kernels.blockwise.flex.compiled import KERNELS, Kind
from maskattn_torch.kernels.blockwise.flex.rows import Bounds, bounds, reached, reaches_all
from maskattn_torch.kernels.blockwise.flex.scores import structure
from maskattn_torch.kernels.blockwise.flex.traced import plan as compiled_plan

__all__ = ["Plan", "planned"]

#: Plans of masks without data, and plans of data, that are kept.
_STILL, _MOVING = 64, 8
#: Masks of at most so many entries are looked at pair by pair; beyond, that is compiled.
_FEW = 1 << 24


class Plan(NamedTuple):
    """What a call needs of its mask. Of a mask that has no rows, `bounds` is None: the mask itself is asked.

    Attributes:
        reached: bool [B or 1, S], the keys that some query attends to; None: all.
        kind: all that a compiled kernel knows of the mask.
    """

    tables: Tables
    reached: Array | None
    bounds: Bounds | None
    kind: Hashable

    def given(self, mask: Mask) -> Bounds | Mask:
        """What is asked in partial blocks."""
        return mask if self.bounds is None else self.bounds


class _Kept(NamedTuple):
    plan: Plan
    data: tuple[weakref.ref[Array], ...]


class _Seen(NamedTuple):
    """For what a mask, this very object, was planned."""

    sizes: tuple[int, int, int, int]
    device: torch.device
    data: list[Array]
    versions: list[int]
    plan: Plan


_SEEN = WeakIdKeyDictionary()
_KEPT: OrderedDict[Hashable, Plan] = OrderedDict()
_OF_DATA: OrderedDict[Hashable, _Kept] = OrderedDict()


def planned(call: Call[Array]) -> Plan | None:
    """The plan of a prepared call; None where all may attend to all. Nothing is read from the device.

    What was planned serves again for a mask without data, and for one with the same tensors, unchanged in place.
    """
    mask, sizes, device = call.mask, call.sizes, call.query.device
    if mask is None or isinstance(mask, Full):
        return None
    if not plain():
        lower.check(mask, *sizes)
        return _planned(mask, sizes, device)
    seen: _Seen | None = _SEEN.get(mask)
    if seen is not None and seen.sizes == sizes and seen.device == device:
        if [x._version for x in seen.data] == seen.versions:
            return seen.plan
    lower.check(mask, *sizes)
    data: list[Array] = []
    mask.map_data(data.append)
    if any([x.is_inference() for x in data]):  # who changes them in place is not seen
        return _planned(mask, sizes, device)
    plan = _shared(mask, sizes, device, data)
    if _frozen(mask):
        _SEEN[mask] = _Seen(sizes, device, data, [x._version for x in data], plan)
    return plan


def _shared(mask: Mask, sizes: tuple[int, int, int, int], device: torch.device, data: list[Array]) -> Plan:
    """The plan of another object that is the same mask, if one is kept."""
    sizes = (sizes[0] if "b" in mask.depends else 1, sizes[1] if "h" in mask.depends else 1, *sizes[2:])
    if not data:
        key = (mask, sizes, device)
        found = _KEPT.get(key)
        if found is None:
            found = _KEPT[key] = _planned(mask, sizes, device)
            _trim(_KEPT, _STILL)
        return found
    versions = tuple([(id(x), x._version) for x in data])
    now = (structure(mask), sizes, device, versions)
    kept = _OF_DATA.get(now)
    if kept is None or any([ref() is not x for ref, x in zip(kept.data, data, strict=True)]):
        gone = [weakref.ref(x, lambda _: _OF_DATA.pop(now, None)) for x in data]
        kept = _Kept(_planned(mask, sizes, device), tuple(gone))
        _OF_DATA[now] = kept
        _trim(_OF_DATA, _MOVING)
    return kept.plan


def _planned(mask: Mask, sizes: tuple[int, int, int, int], device: torch.device) -> Plan:
    if torch.compiler.is_compiling():
        return _made(mask, sizes, device)
    with torch.inference_mode(False), torch.no_grad():  # training may be next
        return _made(mask, sizes, device)


def _made(mask: Mask, sizes: tuple[int, int, int, int], device: torch.device) -> Plan:
    found = bounds(mask, sizes, device)
    if found is not None:
        some = None if reaches_all(mask, sizes) else reached(found, mask, sizes)
        tables = from_bounds(found, sizes[3])
        return Plan(tables, some, found, (_ones(tables), found.kind))
    tables, some = _unbounded(mask, sizes, device)
    return Plan(tables, some, None, (_ones(tables), structure(mask)))


def _unbounded(mask: Mask, sizes: tuple[int, int, int, int], device: torch.device) -> tuple[Tables, Array | None]:
    """The blocks of a mask without rows, and the keys that some query attends to."""
    if plain() and not _holds_data(mask):
        tables, known = from_states(mask, sizes, device)
        return tables, None if known.all() else torch.as_tensor(known).to(device, non_blocking=True)
    q, k = (torch.arange(size, device=device) for size in sizes[2:])
    if torch.compiler.is_compiling() or math.prod(sizes) <= _FEW:
        return from_mask(mask, sizes, q, k)
    kind = Kind("plan", structure(mask), device=str(device), heads=sizes[:2])
    *made, some = KERNELS(kind, compiled_plan, (q, k), mask, *sizes[:2])
    return Tables(*made), some


def _frozen(mask: Mask) -> bool:
    """Whether this object stays the same mask, as all of this library do: who writes one may let its fields change."""
    frozen: bool = type(mask).__dataclass_params__.frozen  # type: ignore[attr-defined]
    return frozen and all(_frozen(part) for part in mask.children())


def _ones(tables: Tables) -> tuple[bool, ...]:
    return tuple([size == 1 for size in tables.kv_indices.shape[:2]])


def _holds_data(mask: Mask) -> bool:
    leaves: list[Array] = []
    mask.map_data(leaves.append)
    return bool(leaves)


def _trim(kept: OrderedDict[Hashable, Plan] | OrderedDict[Hashable, _Kept], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
