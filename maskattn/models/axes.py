"""Logical axes of a model's parameters, and which axes of a mesh divide them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from maskattn.models.model import WholeModel

#: What divides a logical axis: an axis of a mesh, several, or none.
Over: TypeAlias = str | tuple[str, ...] | None
#: Logical axis -> what divides it.
Rules: TypeAlias = Mapping[str, Over]

#: Logical axes of parameters.
AXES = ("vocab", "embed", "heads", "kv_heads", "mlp", "experts")
#: Names of mesh axes by which layers are divided; by which all parameters are, whose parts are gathered to be used; and
#: by which the batch is.
_LAYERS, _GATHERED = ("model", "tensor", "tp", "mp"), ("fsdp",)
_BATCH = ("data", "batch", "dp", "replica")


def settled(sizes: Mapping[str, int], table: WholeModel, rules: Rules | None = None) -> dict[str, Over]:
    """What divides each logical axis of a model's parameters; heads stay whole.

    Args:
        sizes: of a mesh's axes, by their names. table: the model.
        rules: as they are asked for; None: axes named model, tensor, tp or mp divide layers (vocab, heads, mlp), one
            named fsdp the width of the blocks (embed), and those of the batch nothing.

    Raises:
        ValueError: names that are not known.
    """
    given = _default(tuple(sizes)) if rules is None else dict(rules)
    for name, over in given.items():
        if name not in AXES or any(axis not in sizes for axis in names_of(over)):
            raise ValueError(
                f"rules: logical axes are {', '.join(AXES)} and this mesh has {', '.join(sizes)}, "
                f"got {name!r}: {over!r}"
            )
    configs = [block.attention.config for stack in table.stacks() for block in stack.blocks]
    counts = {"heads": [one.num_heads for one in configs], "kv_heads": [one.num_kv_heads for one in configs]}
    for name, numbers in counts.items():
        size = math.prod(sizes[axis] for axis in names_of(given.get(name)))
        if any(number % size for number in numbers):
            given[name] = None
    return {name: given.get(name) for name in AXES}


def names_of(over: Over | Sequence[str]) -> tuple[str, ...]:
    """The axes of a mesh that divide a logical axis."""
    return () if over is None else (over,) if isinstance(over, str) else tuple(over)


def _default(names: tuple[str, ...]) -> dict[str, Over]:
    layers = [name for name in names if name in _LAYERS]
    unknown = [name for name in names if name not in (*_LAYERS, *_GATHERED, *_BATCH)]
    if unknown or len(layers) > 1:
        known = ", ".join((*_LAYERS, *_GATHERED, *_BATCH))
        raise ValueError(f"rules must be given for a mesh of {', '.join(names)}: the names known are {known}")
    over, gathered = layers[0] if layers else None, next((name for name in names if name in _GATHERED), None)
    return {"vocab": over, "heads": over, "kv_heads": over, "mlp": over, "embed": gathered}
