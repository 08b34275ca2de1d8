"""What a comparison found, and how it is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from maskattn.diagnose.parameters import Parameters, listed


@dataclass(frozen=True)
class Place:
    """A place where two programs part.

    Attributes:
        torch, jax: the operations, with their code; empty where a side has none of its own there.
        diagnosis: what the JAX side does otherwise; "" where nothing that was tried explains it.
        share: of the difference of the outputs, as the places before leave it, what is left when PyTorch does the same,
            from 0 (all is explained) to 1.
        also: further places where the same is done.
        backward: whether it is a place of the pass backward.
        rounding: whether all is equal in float64 there, and the JAX side computes in fewer bits.
    """

    torch: tuple[str, ...]
    jax: tuple[str, ...]
    diagnosis: str = ""
    share: float = 1.0
    also: tuple[str, ...] = ()
    backward: bool = False
    rounding: bool = False


@dataclass(frozen=True)
class Gradient:
    """How far the gradients of a parameter are apart.

    Attributes:
        torch, jax: names of the parameter.
        error: the largest difference, in units of the largest number.
    """

    torch: str
    jax: str
    error: float


@dataclass(frozen=True)
class Report:
    """What a comparison found.

    Attributes:
        places: where the programs part, in the order in which they run; of the pass backward where forward all matches.
        error: the largest difference of the outputs, in units of their largest number.
        tolerance: what it may be; of gradients, ten times that.
        outputs: names of the outputs that were compared, of PyTorch and of JAX, each with its difference.
        parameters: which parameter is which.
        gradients: of each parameter, where they were asked for and the outputs are equal.
        notes: whether the inputs are the same, and what they could not show.
        narrowed: where fewer bits than float32 are asked for, and float64 was used: the place, and what is asked for.
    """

    places: tuple[Place, ...]
    error: float
    tolerance: float
    outputs: tuple[tuple[str, str, float], ...] = ()
    parameters: Parameters = Parameters()
    gradients: tuple[Gradient, ...] = ()
    notes: tuple[str, ...] = ()
    narrowed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether outputs, and gradients where asked for, are equal to the tolerance, and JAX rounds no more."""
        return self.error <= self.tolerance and not self.differing and not self.roundings

    @property
    def roundings(self) -> tuple[Place, ...]:
        """Places where the JAX side computes in fewer bits."""
        return tuple(place for place in self.places if place.rounding)

    @property
    def differing(self) -> tuple[Gradient, ...]:
        """Gradients that differ."""
        return tuple(one for one in self.gradients if not one.error <= 10 * self.tolerance)

    @property
    def diagnosis(self) -> tuple[str, ...]:
        """What the JAX side does otherwise, of each place that was explained."""
        return tuple(place.diagnosis for place in self.places if place.diagnosis)

    @property
    def verdict(self) -> str:
        """All in a line."""
        gradients = f", and {len(self.gradients)} gradients" if self.gradients else ""
        if self.ok:
            return f"equal: outputs{gradients} to {max(self.error, *(one.error for one in self.gradients), 0):.1e}"
        if self.error <= self.tolerance and not self.differing:
            count = f"at {len(self.roundings)} place{'s' * (len(self.roundings) > 1)}"
            return f"different: JAX computes in fewer bits {count}; in float64 outputs{gradients} are equal"
        if self.error <= self.tolerance:
            worst = max(one.error for one in self.differing)
            count = f"{len(self.differing)} of {len(self.gradients)}"
            return f"gradients differ: {count}, by up to {worst:.1e}; outputs are equal"
        explained = len(self.diagnosis)
        found = f"{len(self.places)} places, {explained} explained" if self.places else "no place found"
        return f"different: outputs by {self.error:.1e} of their largest number; {found}"

    def findings(self) -> Iterator[str]:
        """What may explain a difference and is no place: of parameters, where outputs or gradients differ."""
        if not self.ok:
            yield from self.parameters.findings()

    def gradients_said(self, most: int = 8) -> Iterator[str]:
        """Gradients that differ, the first of them where they are many."""
        for one in self.differing[:most]:
            yield f"gradient of {one.torch} (JAX: {one.jax}): {one.error:.1e}"
        if len(self.differing) > most:
            yield f"... and {len(self.differing) - most} more gradients"

    def remarks(self) -> Iterator[str]:
        """What the comparison did, and could not see."""
        yield from self.notes
        yield from self.parameters.notes()
        if self.narrowed:
            yield f"computed in float64 where the programs ask for fewer bits: {listed(self.narrowed, 4)}"

    def __str__(self) -> str:
        lines = [self.verdict]
        for number, place in enumerate(self.places, 1):
            lines.append(f"{number}. {place.diagnosis or unexplained(place)}{_share(place)}")
            lines += [f"   {side}: {at}" for side, at in described(place)]
        lines += list(self.gradients_said())
        lines += [f"parameters: {one}" for one in self.findings()]
        lines += [f"note: {one}" for one in self.remarks()]
        return "\n".join(lines)


def described(place: Place, most: int = 3) -> Iterator[tuple[str, str]]:
    """The operations of a place: the side, and what stands there; the first of many."""
    for side, said in (("PyTorch", place.torch), ("JAX", place.jax), ("also", place.also)):
        yield from ((side, one) for one in said[:most])
        if len(said) > most:
            yield side, f"... {len(said) - most} more"


def unexplained(place: Place) -> str:
    """What is said of a place that nothing explains."""
    return "of the pass backward; forward all is equal" if place.backward else "not explained"


def _share(place: Place) -> str:
    if not place.diagnosis or place.backward or place.rounding or place.share == 1.0:
        return ""
    return f" (leaves {100 * place.share:.2g} % of the difference)" if place.share > 1e-6 else " (leaves nothing)"
