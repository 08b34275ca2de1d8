"""Data of the host on a GPU: copied once for all the calls of a step, without waiting, and known on the host still."""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from maskattn._fields import peek
from maskattn._lookup import wide
from maskattn.arrays import to_torch
from maskattn.typing import NumPyArray
from maskattn_torch._modes import plain
from maskattn_torch.types import Array, Given

__all__ = ["host_of", "placed"]

#: So many arrays are kept; what was found out on the host is kept of arrays of so many entries.
_MOST, _SMALL = 32, 1 << 16


class _Held(NamedTuple):
    """An array, what it held when it was copied, and the copy."""

    source: weakref.ref[Given]
    values: NumPyArray
    copy: Array


_HELD: OrderedDict[tuple[int, str], _Held] = OrderedDict()
_HOSTS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def placed(array: Given, device: torch.device) -> Array | None:
    """An array of the host on a GPU: the copy made before where it holds the same values. None: it is to be copied
    otherwise (a gradient goes through it, or it is not what it seems).
    """
    if not plain() or isinstance(array, Array) and (array.requires_grad or array.device.type != "cpu"):
        return None
    values = peek(array)
    if values is None:
        return None
    key = (id(array), str(device))
    held = _HELD.get(key)
    if held is None or held.source() is not array or not _same(held.values, values):
        values = np.array(values)  # a copy that nobody changes: the GPU may read it later than this returns
        with torch.inference_mode(False):
            copy = wide(to_torch(values)).to(device, non_blocking=True)
        held = _Held(weakref.ref(array, lambda _: _HELD.pop(key, None)), values, copy)
        if values.size <= _SMALL:
            _HOSTS[copy] = values
        _HELD[key] = held
        while len(_HELD) > _MOST:
            _HELD.popitem(last=False)
    with contextlib.suppress(KeyError):  # another thread has dropped it
        _HELD.move_to_end(key)
    return held.copy


def host_of(array: Array) -> Given | None:
    """A tensor's values where they are known without waiting for a device: itself on the CPU, or what was `placed`."""
    if not plain() or not isinstance(array, Array):
        return None
    if array.device.type != "cpu":
        found: NumPyArray | None = _HOSTS.get(array)
        return found
    return array if type(array) is Array else peek(array)  # which takes 15 us


def _same(one: NumPyArray, other: NumPyArray) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return np.array_equal(one, other) if one.dtype.kind in "biu" else one.tobytes() == other.tobytes()
