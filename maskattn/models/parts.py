"""A model's numbers out of a file part by part: each of several devices reads its own."""

from __future__ import annotations

import numpy as np

from maskattn.models.files import Source, checked, is_floating, origin_from
from maskattn.typing import NumPyArray, NumPyDType


class Parts:
    """A model whose tensors are read part by part, as they are asked for; what no model reads, at once.

    Args:
        source: the file. param_dtype: of the parameters; None: as the file has them.

    Attributes:
        table: the model. origin: what it is loaded from.

    Raises:
        ValueError: as `load`.
    """

    def __init__(self, source: Source, param_dtype: NumPyDType | None = None) -> None:
        self._loading, _ = checked(source)
        self._source, self._dtype, self.table = source, param_dtype, self._loading.table
        unread = {file: source[file] for file in self._loading.unread}
        self.origin = origin_from(source, self._loading, unread, param_dtype)

    def dtype(self, name: str) -> NumPyDType:
        """Of a tensor of the model."""
        computed = self._loading.computed.get(name)
        found = self._source.infos[self._loading.where[name][0].file].dtype if computed is None else computed.dtype
        return found if self._dtype is None or not is_floating(found) else self._dtype

    def read(self, name: str, index: tuple[slice, ...]) -> NumPyArray:
        """A part of a tensor, as published, by slices with bounds."""
        if name in self._loading.computed:
            return self._loading.computed[name][index].astype(self.dtype(name))
        out = np.empty([one.stop - one.start for one in index], self.dtype(name))
        for piece in self._loading.where[name]:
            there, here = list(index), [slice(0, size) for size in out.shape]
            if piece.there:
                rows = piece.there[0]
                assert isinstance(rows, slice)
                there[0] = slice(index[0].start + rows.start, index[0].stop + rows.start)
            if piece.here:
                entry, rows = piece.here
                assert isinstance(entry, int) and isinstance(rows, slice)
                first, last = max(rows.start, index[1].start), min(rows.stop, index[1].stop)
                if not index[0].start <= entry < index[0].stop or first >= last:
                    continue
                there = [slice(first - rows.start, last - rows.start), *index[2:]]
                at = entry - index[0].start
                here = [slice(at, at + 1), slice(first - index[1].start, last - index[1].start), *here[2:]]
            part = self._source.part(piece.file, tuple(there))
            out[tuple(here)] = part[None] if piece.here else part
        return out
