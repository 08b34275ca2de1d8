"""Gradients of two programs, paired as their parameters are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from maskattn.diagnose.matching import Kept, Keys, frontier, match
from maskattn.diagnose.outputs import Outputs
from maskattn.diagnose.parameters import Pair, Parameters
from maskattn.diagnose.report import Gradient, Place
from maskattn.diagnose.trace import Trace
from maskattn.typing import NumPyArray

#: Of the largest gradient: what smaller ones are compared as if they were, since they hold noise alone. In float64 and
#: in float32.
_LEAST = {"float64": 1e-6, "float32": 3e-2}

Gradients: TypeAlias = dict[str, NumPyArray]


def cotangents(outputs: Outputs, ours: Trace, theirs: Trace, kept: Kept | None) -> tuple[Gradients, Gradients]:
    """What the outputs are multiplied by before they are summed, by name, of PyTorch and of JAX.

    The numbers are random and the same for outputs of the same size and number; 0 at tokens that do not count.
    """
    mine: Gradients = {}
    its: Gradients = {}
    for at, (name, other) in enumerate(outputs.pairs):
        here, there = (trace.nodes[trace.outputs[one]].value for trace, one in ((ours, name), (theirs, other)))
        numbers = np.random.default_rng((here.size, at)).standard_normal(here.shape)
        mine[name] = numbers * _counting(here, kept)
        its[other] = mine[name].reshape(there.shape)
    return mine, its


def _counting(value: NumPyArray, kept: Kept | None) -> NumPyArray:
    """1 where an array's numbers count, else 0."""
    counts = np.ones(value.size)
    if kept is not None:
        counts[:] = 0
        counts[kept.of(np.arange(value.size).reshape(value.shape)).ravel()] = 1
    return counts.reshape(value.shape)


def compared(ours: Trace, theirs: Trace, parameters: Parameters, dtype: str) -> tuple[Gradient, ...]:
    """How far the gradients of paired parameters are apart.

    A parameter that the other side has in several copies has the sum of their gradients.
    """
    mine, its = _gradients(ours), _gradients(theirs)
    largest = max((float(np.abs(one).max()) for one in mine.values() if one.size), default=0.0)
    least = max(_LEAST[dtype] * largest, 1e-300)
    pairs = [pair for pair in parameters.pairs if pair.how != "differs" and pair.torch not in ours.buffers]
    found = [
        Gradient(", ".join(names), ", ".join(others), _apart(here, there, least))
        for names, others, here, there in _paired(pairs, mine, its)
    ]
    for one in parameters.alike:
        trained = tuple(name for name in one.torch if name not in ours.buffers)
        found += _alike(trained, one.jax, mine, its, least)
    return tuple(found)


def _gradients(trace: Trace) -> Gradients:
    """Of all parameters: 0 where nothing depends on them."""
    zeros = {
        name: np.zeros(trace.nodes[number].value.shape)
        for name, number in trace.parameters.items()
        if trace.nodes[number].value.dtype.kind == "f"
    }
    return zeros | {name: trace.nodes[number].value for name, number in trace.gradients.items()}


def _paired(
    pairs: Sequence[Pair], mine: Gradients, its: Gradients
) -> Iterator[tuple[list[str], list[str], NumPyArray, NumPyArray]]:
    whole = [pair for pair in pairs if pair.how not in ("part of", "holds")]
    for group in _groups(whole):
        names, others = (list(dict.fromkeys(getattr(pair, side) for pair in group)) for side in ("torch", "jax"))
        first = group[0]
        ours = sum((mine[name].ravel() for name in names), np.zeros(()))
        theirs = np.zeros(())
        for other in others:
            places = next(pair.places for pair in group if pair.jax == other)
            theirs = theirs + its[other].ravel()[places]
        yield names, others, ours, theirs.reshape(np.shape(ours)) if theirs.size == ours.size else its[first.jax]
    for pair in pairs:
        if pair.how == "part of":
            yield [pair.torch], [pair.jax], mine[pair.torch].ravel(), its[pair.jax].ravel()[pair.places]
        elif pair.how == "holds":
            yield [pair.torch], [pair.jax], mine[pair.torch].ravel()[pair.places], its[pair.jax].ravel()


def _groups(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs that have a parameter in common."""
    found: list[list[Pair]] = []
    for pair in pairs:
        with_it = [group for group in found if any(one.torch == pair.torch or one.jax == pair.jax for one in group)]
        found = [group for group in found if group not in with_it]
        found.append([one for group in with_it for one in group] + [pair])
    return found


def _alike(
    names: Sequence[str], others: Sequence[str], mine: Gradients, its: Gradients, least: float
) -> Iterator[Gradient]:
    """Of parameters that cannot be told apart: each of PyTorch's with the nearest of JAX's, whatever their order."""
    for name in names if others else ():
        here = mine[name].ravel()
        near = [(_nearest(here, its[each].ravel(), least), each) for each in others]
        error, other = min(near)
        yield Gradient(name, other, error)


def _nearest(here: NumPyArray, there: NumPyArray, least: float) -> float:
    """Of a gradient and another one, which may be of several of its size stacked."""
    if there.size % here.size:
        return float("inf")
    return min(_apart(np.sort(here), np.sort(each), least) for each in there.reshape(-1, here.size))


def _apart(here: NumPyArray, there: NumPyArray, least: float) -> float:
    size = max(float(np.abs(here).max()), float(np.abs(there).max()), least)
    return float(np.abs(here - there).max()) / size


def first_place(
    ours: Trace, theirs: Trace, gradients: Sequence[Gradient], tolerance: float, kept: Kept | None
) -> Place | None:
    """Where the passes backward part first, of two runs that agree forward."""
    wanted = {name for one in gradients for name in (*one.torch.split(", "), *one.jax.split(", "))}
    keys = Keys(ours, kept), Keys(theirs, kept)
    matches = match(*keys, tolerance)
    said: list[tuple[str, ...]] = []
    for side, matched in zip(keys, (matches.ours, matches.theirs), strict=True):
        trace = side.trace
        ends = [number for name, number in trace.gradients.items() if name in wanted]
        first = [at for at in frontier(side, matched, ends) if trace.nodes[at].where.backward]
        said.append(tuple(f"{trace.nodes[at].name} at {trace.nodes[at].where}" for at in first))
    return Place(said[0], said[1], backward=True) if any(said) else None
