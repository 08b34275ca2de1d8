"""Two programs compared: where they part, and what the second does otherwise."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from maskattn.diagnose.gradients import compared as gradients, cotangents, first_place
from maskattn.diagnose.inputs import called, differing, kept, named, sides, unseen
from maskattn.diagnose.matching import Keys, match, not_numbers
from maskattn.diagnose.outputs import Outputs
from maskattn.diagnose.parameters import paired
from maskattn.diagnose.precision import roundings, suspected
from maskattn.diagnose.report import Gradient, Place, Report
from maskattn.diagnose.search import Comparison

#: Of the largest number: what two right programs may differ by, computed in float64, and in float32.
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


def compare(
    torch_module: Callable[..., object],
    jax_function: Callable[..., object],
    inputs: Any,
    *,
    dtype: str = "float64",
    grads: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Compares a PyTorch program with a JAX program that should compute the same: where they part, and what the JAX
    side does otherwise there. Nothing is written into either of them, and all settings are left as they were.

    Args:
        torch_module: a module in evaluation mode, or a function of tensors that holds one.
        jax_function: a function of arrays, or a module of NNX, Equinox or Linen (bound to its variables). Its
            parameters are found where it holds them: a `functools.partial`, a module, a closure.
        inputs: what both are given, arrays of NumPy: by name, which where JAX's side does not know it goes by its
            order, or a sequence; or a pair of those, PyTorch's and JAX's.
        dtype: "float64", in which all that is floating-point is computed, whatever the programs ask for, or "float32".
        grads: whether gradients of all parameters are compared too, where the outputs are equal.
        progress: called with what is being done.

    Raises:
        ValueError: a dtype that is neither, or a module in training mode.
        TypeError: inputs that a side cannot take.

    >>> report = compare(torch_model, functools.partial(port, params), {"tokens": tokens})  # doctest: +SKIP
    >>> print(report)  # doctest: +SKIP
    """
    if dtype not in TOLERANCE:
        raise ValueError(f"dtype: expected {' or '.join(map(repr, TOLERANCE))}, got {dtype!r}")
    tolerance, wide = TOLERANCE[dtype], dtype == "float64"
    tracing, other_side = import_module("maskattn_torch.tracing"), import_module("maskattn_jax.tracing")
    first, second = sides(inputs)
    mine, its = called(torch_module, first), called(jax_function, second)
    progress("recording PyTorch")
    ours = tracing.record(torch_module, *mine, wide=wide)
    progress("recording JAX")
    theirs = other_side.record(jax_function, *its, wide=wide)
    outputs = Outputs.of(ours, theirs)
    progress("pairing parameters")
    parameters = paired(ours, theirs, outputs.numbers(ours, theirs))
    here, there = parameters.instead(ours, theirs)
    if here:
        ours = tracing.record(torch_module, *mine, wide=wide, instead=here)
    if there:
        theirs = other_side.record(jax_function, *its, wide=wide, instead=there)
    given = named(torch_module, first)
    compared = kept(given)
    search = Comparison(tracing, tracing.Program(ours), Keys(theirs, compared), tolerance, outputs, progress)
    ours = search.program.recording
    errors = outputs.errors(ours, theirs, compared)
    error = max(errors, default=float("inf"))
    places = search.places()
    coarse: tuple[Place, ...] = ()
    rounding: tuple[str, ...] = ()
    if wide and (suspected(ours) or suspected(theirs)):
        progress("rounding")
        matches = match(Keys(search.program.recording, compared), search.theirs, tolerance)
        runs = (
            lambda: tracing.record(torch_module, *mine, wide=False, instead=here),
            lambda: other_side.record(jax_function, *its, wide=False, rounded=True, instead=there),
        )
        coarse, rounding = roundings(search.program.recording, theirs, runs, matches, outputs.pairs)
    found: tuple[Gradient, ...] = ()
    if grads and error <= tolerance:
        progress("gradients of PyTorch")
        one, other = cotangents(outputs, ours, theirs, compared)
        here |= {name: ours.nodes[number].value for name, number in ours.parameters.items() if number in ours.rounded}
        back = tracing.record(torch_module, *mine, wide=wide, instead=here, cotangents=one)
        progress("gradients of JAX")
        behind = other_side.record(jax_function, *its, wide=wide, instead=there, cotangents=other)
        found = gradients(back, behind, parameters, dtype)
        bad = [each for each in found if not each.error <= 10 * tolerance]
        place = first_place(back, behind, bad, tolerance, compared) if bad else None
        places = places if place is None else (place,)
    places += coarse
    notes = [*rounding, *differing(ours, theirs), *outputs.notes(ours, theirs, tolerance), *unseen(torch_module, given)]
    for side, trace in (("PyTorch", ours), ("JAX", theirs)):
        if trace.random:
            at = trace.nodes[trace.random[0]].where
            notes.append(f"the {side} side draws random numbers at {at}: switch dropout off")
        spoiled = not_numbers(trace)
        if spoiled is not None:
            notes.append(f"the {side} side gives NaN, first at {spoiled}: of a row that attends to nothing, or 0 / 0")
    narrowed = {f"{at} to {what}": None for trace in (ours, theirs) for at, what in trace.narrowed.items()}
    named_errors = [(*names, each) for names, each in zip(outputs.pairs, errors, strict=True)]
    return Report(places, error, tolerance, tuple(named_errors), parameters, found, tuple(notes), tuple(narrowed))
