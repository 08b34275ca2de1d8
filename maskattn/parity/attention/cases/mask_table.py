"""The masks that cases are made of: whatever `examples` of each mask of the library gives for a shape.

A mask is therefore one file and one export: its cases, the compositions it takes part in, its line of the report and
its picture follow.
"""

from __future__ import annotations

import functools
import operator

from maskattn import masks
from maskattn.masks import library_classes
from maskattn.parity.attention.case import Shape
from maskattn.parity.draws import Draws


def families() -> dict[str, type[masks.Mask]]:
    """Every mask of the library that gives examples, by class name, in alphabetical order."""
    return {name: cls for name, cls in sorted(library_classes().items()) if _gives_examples(cls)}


def _gives_examples(cls: type[masks.Mask]) -> bool:
    return any("examples" in vars(base) for base in cls.__mro__ if base is not masks.Mask)


def compose(shape: Shape, draws: Draws, depth: int) -> masks.Mask:
    """A random expression of the masks of the library, of the given depth."""
    if depth == 0:
        return _leaf(shape, draws)
    kind = draws.integer(0, 8)
    if kind == 0:
        return ~compose(shape, draws, depth - 1)
    if kind == 1:
        moved = compose(shape, draws, depth - 1)
        return moved.at(q_offset=draws.integer(-2, 3), k_offset=draws.integer(-1, 2))
    parts = [compose(shape, draws, depth - 1) for _ in range(2 + (kind == 2))]
    return functools.reduce(operator.or_ if kind < 5 else operator.and_, parts)


def _leaf(shape: Shape, draws: Draws) -> masks.Mask:
    classes = list(families().values())
    while True:
        examples = classes[draws.integer(0, len(classes))].examples(shape, draws)
        if examples:
            return examples[draws.integer(0, len(examples))]


def holed(shape: Shape, draws: Draws) -> masks.Mask:
    """Random, with row 0 empty everywhere and key 0 reached by nobody."""
    keep = draws.booleans(shape.scores, 0.7)
    keep[:, :, 0, :] = False
    keep[:, :, :, 0] = False
    keep[:, :, 1:, -1] = True
    return masks.Dense(keep)
