"""What a peer, a drop-in or a twin gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from maskattn.typing import NumPyArray as Array

#: Something of another library, or one of its arguments.
Theirs: TypeAlias = Any


@dataclass
class Answer:
    """Output [B, L, out]; gradients of the inputs and of the canonical tensors; weights [B, L, S] or [B, H, L, S]."""

    output: Array
    gradients: dict[str, Array] = field(default_factory=dict)
    weights: Array | None = None
