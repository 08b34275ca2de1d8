"""How many bytes a conversion holds at once: two threads, a tensor in each, as far as a limit allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maskattn.checkpoints import TensorInfo
from maskattn.convert.lazy import Lazy

THREADS = 2
WRITER_BYTES = 128 * 2**20
BUFFERED = 64 * 2**20
"""Bytes that the tensors in hand may take beside two of the largest."""


def needed(array: Lazy, infos: Mapping[str, TensorInfo]) -> int:
    """Bytes held while a tensor is made: its sources, and itself where it is no view of one.

    Of one that is stacked, the sources of one part at a time.
    """
    if array.parts:
        stacked = sum(part.nbytes for part in array.parts)
        changed = 0 if array.dtype == array.parts[0].dtype else array.nbytes
        return stacked + changed + max(needed(part, infos) for part in array.parts)
    views = all(what in ("reshape", "transpose") or what.startswith("take") for what in array.operations)
    return sum(infos[name].nbytes for name in array.sources) + (0 if views else array.nbytes)


def allowed(infos: Mapping[str, TensorInfo]) -> int:
    """The bytes that the tensors in hand may need together: two of the largest, and some more."""
    return 2 * max((info.nbytes for info in infos.values()), default=0) + BUFFERED


def peak(arrays: Iterable[Lazy], infos: Mapping[str, TensorInfo]) -> int:
    """An upper estimate of the bytes held at once: the tensors in hand, and what the writer holds."""
    largest = sorted((needed(array, infos) for array in arrays), reverse=True)
    held = max(largest[0], min(sum(largest[:THREADS]), allowed(infos))) if largest else 0
    return held + WRITER_BYTES
