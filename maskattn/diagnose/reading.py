"""What the first operations that differ read on either side: told by the tensors themselves, nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from maskattn.diagnose.matching import Keys, Matches, distance, fed
from maskattn.diagnose.trace import Node
from maskattn.typing import NumPyArray


def reads(
    ours: Keys, theirs: Keys, here: Sequence[int], there: Sequence[int], matches: Matches, tolerance: float
) -> str:
    """That one side's operation reads another tensor than the other side's with the same parameter; "" where none does.

    Args:
        here, there: the first tensors of both sides that the other one lacks. matches: those that both have.
    """
    mine, its = fed(ours.trace), fed(theirs.trace)
    for other in there:
        for one in here:
            if not _same_parameter((ours, theirs), (one, other), (mine, its), tolerance):
                continue
            given = [number for number in ours.trace.nodes[one].inputs if mine[number] and number in matches.ours]
            taken = [number for number in theirs.trace.nodes[other].inputs if its[number] and number in matches.theirs]
            if len(given) == len(taken) == 1 and taken[0] not in matches.ours[given[0]]:
                instead = max(matches.theirs[taken[0]], key=lambda number: bool(ours.trace.nodes[number].where.module))
                nodes = ours.trace.nodes
                return f"{_said(nodes[instead])} is read in the place of {_said(nodes[given[0]])}"
    return ""


def _same_parameter(
    sides: tuple[Keys, Keys], places: tuple[int, int], depends: tuple[Sequence[bool], Sequence[bool]], tolerance: float
) -> bool:
    """Whether two operations take the same numbers that depend on no input."""
    here, there = (list(_fixed(*each)) for each in zip(sides, places, depends, strict=True))
    return any(distance(one, other) <= tolerance for one in here for other in there)


def _fixed(keys: Keys, number: int, depends: Sequence[bool]) -> Iterator[NumPyArray]:
    for one in keys.trace.nodes[number].inputs:
        key = None if depends[one] else keys[one]
        if key is not None:
            yield key


def _said(node: Node) -> str:
    return f"{node.name} of {node.where}" if node.kind == "operation" else node.name or "a constant"
