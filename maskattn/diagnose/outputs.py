"""What two programs gave: which output is which, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn.diagnose.matching import Kept
from maskattn.diagnose.trace import Trace
from maskattn.typing import NumPyArray


@dataclass(frozen=True)
class Outputs:
    """Which output is which.

    Attributes:
        pairs: names, of PyTorch and of JAX. torch_only, jax_only: those without a partner.
    """

    pairs: tuple[tuple[str, str], ...]
    torch_only: tuple[str, ...] = ()
    jax_only: tuple[str, ...] = ()

    @classmethod
    def of(cls, ours: Trace, theirs: Trace) -> Outputs:
        """Pairs outputs of one name, and all others in order with those of the same shape, else of the same size."""
        mine, its = dict(ours.outputs), dict(theirs.outputs)
        pairs: list[tuple[str, str]] = []

        def shape(trace: Trace, number: int) -> tuple[int, ...]:
            return trace.nodes[number].value.shape

        def size(trace: Trace, number: int) -> int:
            return trace.nodes[number].value.size

        def take(name: str, other: str) -> None:
            pairs.append((name, other))
            del mine[name], its[other]

        for name in [name for name in its if name and name in mine]:
            if size(ours, mine[name]) == size(theirs, its[name]):
                take(name, name)
        for same in (shape, size):
            for other in list(its):
                found = [name for name in mine if same(ours, mine[name]) == same(theirs, its[other])]
                if found:
                    take(found[0], other)
        return cls(tuple(pairs), tuple(mine), tuple(its))

    def numbers(self, ours: Trace, theirs: Trace) -> list[tuple[int, int]]:
        """The numbers of the nodes of each pair."""
        return [(ours.outputs[name], theirs.outputs[other]) for name, other in self.pairs]

    def errors(self, ours: Trace, theirs: Trace, kept: Kept | None) -> list[float]:
        """How far each pair is apart, at tokens that count, in units of the largest number of PyTorch's."""
        pairs = self.numbers(ours, theirs)
        return [apart(ours.nodes[one].value, theirs.nodes[other].value, kept) for one, other in pairs]

    def notes(self, ours: Trace, theirs: Trace, tolerance: float) -> list[str]:
        """What is particular about them, as sentences."""
        found = []
        if self.jax_only:
            shapes = (list(theirs.nodes[theirs.outputs[name]].value.shape) for name in self.jax_only)
            said = ", ".join(f"{name or 'one'} {shape}" for name, shape in zip(self.jax_only, shapes, strict=True))
            found.append(f"outputs of the JAX side that are of the size of none of PyTorch's, not compared: {said}")
        if self.torch_only:
            found.append(f"outputs of the PyTorch side only, not compared: {', '.join(self.torch_only)}")
        for (name, _), (one, other) in zip(self.pairs, self.numbers(ours, theirs), strict=True):
            here, there = ours.nodes[one].value, theirs.nodes[other].value
            if apart(here, there) > tolerance and apart(np.sort(here, None), np.sort(there, None)) <= tolerance:
                said = f"shapes {list(here.shape)} and {list(there.shape)}"
                found.append(f"the output {name or 'of both'} has the right numbers, arranged otherwise: {said}")
        return found


def apart(one: NumPyArray, other: NumPyArray, kept: Kept | None = None) -> float:
    """The largest difference of two arrays in units of the first one's largest number; inf where none can be taken."""
    if one.size != other.size or not one.size:
        return float("inf")
    other = other.reshape(one.shape) if np.squeeze(one).shape == np.squeeze(other).shape else other
    if kept is not None:
        one, other = kept.of(one), kept.of(other)
    one, other = one.ravel(), other.ravel()
    if one.size != other.size:
        return float("inf")
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return float("inf")
    if not finite.any():
        return 0.0
    size = max(float(np.abs(one[finite]).max()), 1e-30)
    return float(np.abs(one[finite] - other[finite]).max()) / size
