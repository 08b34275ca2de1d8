"""Parts of a model's tensors are those of the whole, wherever they lie in a file, and no more is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maskattn.checkpoints import TensorInfo
from maskattn.models.forms import Piece
from maskattn.models.parts import Parts

pytestmark = pytest.mark.hurried

WHOLE = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
#: Where the tensor lies: whole; rows of a larger one; each entry by itself, in two pieces.
PLACES = {
    "whole": ((Piece("a"),), {"a": WHOLE}),
    "rows": ((Piece("a", (slice(3, 6),)),), {"a": np.concatenate([WHOLE - 100, WHOLE])}),
    "entries": (
        tuple(Piece(f"{n}.{half}", (), (n, slice(2 * half, 2 * half + 2))) for n in range(3) for half in (0, 1)),
        {f"{n}.{half}": WHOLE[n, 2 * half : 2 * half + 2] for n in range(3) for half in (0, 1)},
    ),
}


@pytest.mark.parametrize("where", PLACES)
def test_parts_are_those_of_the_whole(where: str) -> None:
    pieces, held = PLACES[where]
    read: list[int] = []

    def part(file: str, index: Any) -> Any:
        read.append(held[file][index].size)
        return held[file][index]

    parts: Any = Parts.__new__(Parts)
    infos = {file: TensorInfo(x.shape, x.dtype) for file, x in held.items()}
    parts._source, parts._dtype = SimpleNamespace(infos=infos, part=part), np.dtype(np.float16)
    parts._loading = SimpleNamespace(where={"x": pieces}, computed={})
    for index in (np.s_[0:3, 0:4, 0:5], np.s_[1:3, 0:4, 0:5], np.s_[0:3, 1:3, 0:5], np.s_[2:3, 3:4, 1:4]):
        read.clear()
        found = parts.read("x", index)
        assert found.dtype == np.float16 and (found == WHOLE[index]).all()
        assert sum(read) == WHOLE[index].size
