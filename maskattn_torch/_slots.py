"""The slots of a cache on the CPU, in eager code: what was found out about them serves every step of one token.

Where such a step takes a tenth of a millisecond, checking it, and choosing how it is done, would double that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor as Array

from maskattn.cache import BROKEN, reach
from maskattn.masks import And, KeyPadding, Mask, Not

__all__ = ["Slots", "slots_of"]

_CPU = torch.device("cpu")


class Slots:
    """The tensors of a cache, contiguous, which the caches of later steps share.

    Attributes:
        stored: as `Cache.stored`. key, value: all slots but the last, tokens first.
        size: as in `Cache`.
        asked, scale: what the last call of attention asked, and the scale by which it was done.
    """

    __slots__ = (
        "_back",
        "_flat",
        "_heads",
        "_places",
        "_shapes",
        "_whole",
        "asked",
        "key",
        "scale",
        "size",
        "stored",
        "value",
    )

    def __init__(self, stored: tuple[Array, Array]) -> None:
        key, value = self.stored = stored
        self.key, self.value = key[:, :, :-1].transpose(1, 2), value[:, :, :-1].transpose(1, 2)
        self.size = key.shape[2] - 1
        self._flat = key.view(-1, key.shape[3]), value.view(-1, value.shape[3])
        self._heads = key.shape[1]
        self._places: Array | None = None
        self._shapes = tuple([torch.Size((x.shape[0], 1, x.shape[1], x.shape[3])) for x in stored])
        self._whole: Mask | None = None
        self._back: int | None = None
        self.asked: object = None
        self.scale: float | None = None

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()  # of tensors that were copied or read from a file it is found out anew

    def take(self, key: object, value: object) -> bool:
        """Whether these are one token of each row, as the slots hold it, that may be written in place: nobody can ask
        for a gradient, and tensors of inference mode are written to only there."""
        first, second = self.stored
        if type(key) is not Array or type(value) is not Array:
            return False
        if key.shape != self._shapes[0] or value.shape != self._shapes[1]:
            return False
        if key.dtype is not first.dtype or value.dtype is not second.dtype:
            return False
        if torch.is_grad_enabled():
            if key.requires_grad or value.requires_grad or first.requires_grad or second.requires_grad:
                return False
        return not first.is_inference() or torch.is_inference_mode_enabled()

    def write(self, key: Array, value: Array, numbers: list[int]) -> None:
        """Put one token of each row, [B, 1, K, D] and [B, 1, K, Dv], where row b has numbers[b] % size so far."""
        first, stored = numbers[0], self.stored
        if len(numbers) == 1 or numbers.count(first) == len(numbers):
            at = first % self.size
            stored[0].select(2, at).copy_(key.select(1, 0))
            stored[1].select(2, at).copy_(value.select(1, 0))
            return
        heads, each = range(self._heads), self.size + 1
        places = [(b * self._heads + h) * each + n % self.size for b, n in enumerate(numbers) for h in heads]
        indices = torch.from_numpy(np.array(places, np.int64))  # in half the time of torch.tensor
        for held, new in zip(self._flat, (key, value), strict=True):
            held.index_copy_(0, indices, new.reshape(-1, new.shape[3]))

    def kept(self, ends: Array, begins: Array | None, low: int, high: int) -> Array:
        """Which of the slots low..high - 1 each row has, where they end and, but for None, begin: bool [B, 1, 1, S]."""
        if self._places is None:
            self._places = torch.arange(self.size, dtype=torch.int32, device=_CPU)
        places = self._places.narrow(0, low, high - low)
        keep = places < ends.view(-1, 1, 1, 1)
        return keep if begins is None else keep & (places >= begins.view(-1, 1, 1, 1))

    def mask(self, whole: Mask, lengths: Array, lost: Array | None) -> Mask | None:
        """The mask of a step of one token, as runs of slots that start and end somewhere; None where it is none, or
        rows have run over.

        Args:
            whole: that of whole sequences.
            lengths, lost: as in `Cache`.
        """
        if self._whole is not whole:
            self._back, self._whole = reach(whole), whole
        back = self._back
        if back is None:
            return None
        numbers = lengths.tolist()
        most = max(numbers)
        if lost is not None:
            if back + 1 != self.size or most >= BROKEN:
                return None
            if lost.tolist() != [n - self.size if n > self.size else 0 for n in numbers]:
                return None  # after a rewind some slot holds nothing
            return self._up_to(lengths if most <= self.size else counts([min(n, self.size) for n in numbers]))
        if most > self.size:
            return None
        ends = self._up_to(lengths)
        if back < 0 or most <= back + 1:
            return ends
        begins = [n - 1 - back if n > back else 0 for n in numbers]
        made = And.__new__(And)
        made.__dict__["parts"] = (ends, Not(KeyPadding(counts(begins))))
        made.__dict__["_slots"] = self
        return made

    def _up_to(self, ends: Array) -> Mask:
        made = KeyPadding.__new__(KeyPadding)
        made.__dict__["lengths"] = ends
        made.__dict__["_slots"] = self
        return made


def slots_of(mask: object) -> Slots | None:
    """The slots that a mask is of one step of; None of other masks."""
    kind = type(mask)
    if (kind is not KeyPadding and kind is not And) or torch.compiler.is_compiling():
        return None
    found: Slots | None = mask.__dict__.get("_slots")
    return found


def counts(numbers: list[int]) -> Array:
    """The numbers as int32 [B]; one number many times takes half as long."""
    if len(numbers) == 1 or numbers.count(numbers[0]) == len(numbers):
        return torch.full((len(numbers),), numbers[0], dtype=torch.int32, device=_CPU)
    return torch.from_numpy(np.array(numbers, np.int32))


def _nothing() -> None:
    return None
