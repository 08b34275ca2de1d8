"""`maskattn parity against libraries`: every case, every cell."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from maskattn import standards
from maskattn.parity.against.libraries import jax_peers, torch_peers
from maskattn.parity.against.libraries.answer import Answer
from maskattn.parity.against.libraries.case import Case, Data, data_of
from maskattn.parity.against.libraries.cases import CASES, PEERS
from maskattn.parity.against.libraries.differences import DIFFERENCES, Difference
from maskattn.parity.layers.oracle import Verdict
from maskattn.typing import NumPyArray as Array

#: The columns, and what each says.
COLUMNS: Mapping[str, str] = {
    "oracle": "the peer's own numbers against the float64 oracle, within its own bound",
    "PyTorch": "our module under the mask in the algebra, its output and gradients, within the sum of both bounds",
    "JAX": "our NNX module likewise",
    "drop-in": "what we have for its place, called with its own arguments, likewise",
}


@dataclass(frozen=True)
class Row:
    """A case, and each column's largest error as a share of its limit, with what it is of; None: nothing is there."""

    case: Case
    cells: Mapping[str, tuple[float, str] | None]

    @property
    def held(self) -> bool:
        """Whether every number was within its limit."""
        return all(cell is None or cell[0] <= 1 for cell in self.cells.values())


def chosen(pattern: str | None = None) -> tuple[tuple[Case, ...], tuple[Difference, ...]]:
    """The cases and known differences whose peer and name, as "peer: name", match a glob or contain it; all of them.

    Raises:
        ValueError: none does.
    """
    cases = tuple(case for case in CASES if _matches(f"{case.peer}: {case.name}", pattern))
    known = tuple(each for each in DIFFERENCES if _matches(f"{each.peer}: {each.about}", pattern))
    if not cases and not known:
        raise ValueError(f"nothing matches {pattern!r}: there are {', '.join(PEERS)}, each with its arguments")
    return cases, known


def _matches(name: str, pattern: str | None) -> bool:
    return pattern is None or fnmatch.fnmatch(name, pattern) or pattern in name


def seen(
    differences: Iterable[Difference], progress: Callable[[str], None] | None = None
) -> Iterator[tuple[Difference, bool]]:
    """Each known difference, with whether both do what it says."""
    for each in differences:
        if progress is not None:
            progress(f"{each.peer}: {each.about}")
        yield each, each.held


def matrix(cases: Iterable[Case], progress: Callable[[str], None] | None = None) -> Iterator[Row]:
    """The rows of these cases, one after the other."""
    for case in cases:
        if progress is not None:
            progress(f"{case.peer}: {case.name}")
        yield examine(case)


def examine(case: Case, changed: Case | None = None, quick: bool = False) -> Row:
    """A case's row.

    Args:
        changed: what the peer is called with instead, which must show.
        quick: without the drop-in for Flax's modules, which JAX compiles.
    """
    data = data_of(case)
    run, has_place = PEERS[case.peer]
    has_place = has_place and not (quick and "module flax" in case.peer)
    called = data if changed is None else Data(changed, *list(vars(data).values())[1:])
    theirs = run(called, False)
    right = Answer(data.verdict.output, data.verdict.gradients, theirs.weights)
    peer = standards.value("module.peer")
    return Row(
        case,
        {
            "oracle": _compared(theirs, right, data.verdict, 1.0),
            "PyTorch": _compared(theirs, torch_peers.twin(data), data.verdict, peer),
            "JAX": _compared(theirs, jax_peers.twin(data), data.verdict, peer),
            "drop-in": _compared(theirs, run(data, True), data.verdict, peer) if has_place else None,
        },
    )


def _compared(theirs: Answer, ours: Answer, verdict: Verdict, times: float) -> tuple[float, str]:
    """The largest error by its limit, and of what."""
    found = [(_share(theirs.output, ours.output, times * verdict.limit), "output")]
    for name, gradient in theirs.gradients.items():
        limit = times * verdict.gradient_limits[name]
        found.append((_share(gradient, ours.gradients[name], limit), f"gradient of {name}"))
    if theirs.weights is not None:
        if ours.weights is None:
            return np.inf, "weights"
        found.append((_share(theirs.weights, ours.weights, standards.value("same.tiles")), "weights"))
    return max(found)


def _share(one: Array, other: Array, limit: Array | float) -> float:
    if one.shape != other.shape:
        return float(np.inf)
    return float(standards.share(np.abs(one.astype(np.float64) - other), limit).max(initial=0))
