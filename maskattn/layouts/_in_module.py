"""Flax's attention in a submodule of a fixed name, where the rest of the block is not attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from maskattn.layouts._base import Extra, Stored
from maskattn.layouts.flax_linen import FlaxLinen


class InModule(FlaxLinen):
    """A layer's prefix is that of its block; of the block, only what lies in ``module`` is owned."""

    aliases = ()
    module: ClassVar[str]
    anchors: ClassVar[tuple[str, ...]]
    extras: ClassVar[tuple[Extra, ...]] = ()

    def match(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """The blocks found among ``names``, and their attention."""
        own = self.module + self.separator
        return {
            prefix: {name: full for name, full in owned.items() if name.startswith(own)}
            for prefix, owned in super().match(names).items()
        }

    def _join(self, role: str, part: str) -> str:
        return self.module + self.separator + super()._join(role, part)


def inside(module: str) -> tuple[Stored, ...]:
    """Flax's kernels and biases in a submodule."""
    return tuple(replace(entry, name=f"{module}/{entry.name}") for entry in FlaxLinen.projections)
