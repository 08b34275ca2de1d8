"""What proving a checkpoint leaves: a result for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maskattn.convert.compare import Compared


@dataclass(frozen=True)
class Layer:
    """What a layer gives, or a head.

    Attributes:
        name: the path of a block, the prefix of an attention layer, or "hidden", "logits", "pooled", ...
        twins: by the twin's name, how far it is off: of several kernels the one that is nearest to its limit.
        own: how far the judge's float32 run is off from its float64 run, the root mean square; None: it is one.
        differing: of the numbers, how many differ between the twins by a bit, in exact arithmetic; None: not counted.
        wrong: what else is, in words.
    """

    name: str
    twins: Mapping[str, Compared]
    own: float | None = None
    differing: int | None = None
    wrong: str = ""

    @property
    def first_difference(self) -> str | None:
        """The first thing that differs, and how; None where everything held."""
        failed = {twin: each for twin, each in self.twins.items() if not each.held}
        off = (f"{twin} is off by {each.error:.3g}, limit {each.limit:.3g}" for twin, each in failed.items())
        bits = f"{self.differing} numbers differ between the twins, kernel exact" if self.differing else ""
        said = self.wrong or next(off, bits)
        return f"{self.name.rstrip('.')}: {said}" if said else None


@dataclass(frozen=True)
class CheckpointResult:
    """A checkpoint.

    Attributes:
        kind: its model type, or the layout of its attention layers.
        judge: whom the twins are compared with. inputs: what they were given. notes: what is not compared, and why.
        against, against_difference: another checkpoint, and the first tensor in which it differs.
    """

    checkpoint: str
    kind: str
    judge: str
    inputs: str
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()
    against: str | None = None
    against_difference: str | None = None
    kernel: str = "auto"

    @property
    def first_difference(self) -> str | None:
        """The first layer that differs, and how; None where all held."""
        differences = (layer.first_difference for layer in self.layers)
        return self.against_difference or next((difference for difference in differences if difference), None)

    @property
    def exit_code(self) -> int:
        """0 only if there was at least one layer and everything held."""
        return 0 if self.layers and self.first_difference is None else 1
