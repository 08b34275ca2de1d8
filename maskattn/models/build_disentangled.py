"""A row's `relative` and `local`: what DeBERTa has beside its blocks."""

from __future__ import annotations

from typing import Protocol

from maskattn._hf_config import Value
from maskattn.models.disentangled import Local, Relative
from maskattn.models.leaves import Conv, Embedding, Norm


class _Builder(Protocol):
    @property
    def prefix(self) -> str: ...
    @property
    def width(self) -> int: ...
    def get(self, name: str, default: Value = None) -> Value: ...
    def norm(self, name: str | None, width: int | None = None) -> Norm | None: ...
    def activation_of(self, found: str) -> str: ...


def relative_of(builder: _Builder) -> Relative | None:
    """The table of relative positions that blocks share."""
    given = builder.get("relative")
    if given is None:
        return None
    table = Embedding(builder.prefix + given["table"], int(given["rows"]), builder.width, (None, "embed"))
    return Relative(table, builder.norm(builder.prefix + given["norm"]) if "norm" in given else None)


def local_of(builder: _Builder) -> Local | None:
    """The convolution behind the first block."""
    given, width = builder.get("local"), builder.width
    if given is None:
        return None
    size = int(given["size"])
    conv = Conv(builder.prefix + given["conv"], width, width, (size,), (1,), (size - 1) // 2, int(given["groups"]))
    norm = builder.norm(builder.prefix + given["norm"])
    assert norm is not None
    return Local(conv, norm, builder.activation_of(given["activation"]), float(builder.get("dropout", 0.0)))
