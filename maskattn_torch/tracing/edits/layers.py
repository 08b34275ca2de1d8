"""Whole layers: left out, run twice, or with the weights of another one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from maskattn_torch.tracing.record import Ref
from maskattn_torch.tracing.replay import Change, Edit, Program, refs

_LAYER = re.compile(r"^(.*?\.?)(\d+)(?=\.|$)")


def edits(program: Program) -> Iterator[Edit]:
    """Of each layer that is near; and of parameters as large as another one's, anywhere."""
    names = {match[0] for at in program.near if (match := _LAYER.match(program.calls[at].where.module))}
    for name in sorted(names):
        inside = [at for at, call in enumerate(program.calls) if f"{call.where.module}.".startswith(f"{name}.")]
        ends = _ends(program, inside)
        if ends is not None:
            start, last = ends
            yield Edit(f"the layer {name} is left out", "layer left out", {last: _instead(program, start)})
            yield Edit(f"the layer {name} is run twice", "layer twice", {last: _twice(program, inside, start, last)})
        yield from _weights(program, name, inside)
    yield from _others(program)


def _ends(program: Program, inside: Sequence[int]) -> tuple[int, int] | None:
    """What a layer is given, and the call whose result leaves it: both of the same shape."""
    made = {number for at in inside for number in program.calls[at].outputs if number is not None}
    among = set(inside)
    outside = {number for at, taken in enumerate(program.taken) if at not in among for number in taken}
    leaving = [at for at in inside if not outside.isdisjoint(program.calls[at].outputs)]
    if not leaving or len(program.calls[leaving[-1]].outputs) != 1:
        return None
    number = program.calls[leaving[-1]].outputs[0]
    assert number is not None
    nodes = program.recording.nodes
    for at in inside:
        for given in program.taken[at]:
            if (
                given not in made
                and nodes[given].kind == "operation"
                and nodes[given].value.shape == nodes[number].value.shape
            ):
                return given, leaving[-1]
    return None


def _instead(program: Program, number: int) -> Change:
    return lambda *_: program.now(number)


def _twice(program: Program, inside: Sequence[int], start: int, last: int) -> Change:
    def change(operator: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        fresh: dict[int, Tensor] = {start: operator(*args, **kwargs)}  # type: ignore[operator]
        for at in inside:
            call = program.calls[at]
            if any(number in fresh for number in program.taken[at]):
                taken, named = program._given(call, fresh)
                out = call.operator(*taken, **named)
                for number, one in zip(call.outputs, torch.utils._pytree.tree_leaves(out), strict=True):
                    if number is not None:
                        fresh[number] = one
            if at == last:
                break
        return fresh[program.calls[last].outputs[0]]  # type: ignore[index]

    return change


def _weights(program: Program, name: str, inside: Sequence[int]) -> Iterator[Edit]:
    """The weights of another layer with parameters of the same names and shapes."""
    parameters = program.recording.parameters
    mine = {one.removeprefix(name): number for one, number in parameters.items() if one.startswith(f"{name}.")}
    match = _LAYER.match(name)
    assert match is not None
    for other in (f"{match[1]}{number}" for number in range(int(match[2]) + 3) if number != int(match[2])):
        theirs = {one.removeprefix(other): number for one, number in parameters.items() if one.startswith(f"{other}.")}
        if theirs.keys() != mine.keys():
            continue
        places = {number: theirs[one] for one, number in mine.items()}
        changes = {
            at: _with(program, at, places)
            for at in inside
            if any(number in places for number in refs(program.calls[at]))
        }
        if changes:
            yield Edit(
                f"the weights of {other} are taken in the place of those of {name}", "weights of another layer", changes
            )


def _others(program: Program) -> Iterator[Edit]:
    """Each parameter with two axes or more that is read near by: another one of its shape."""
    nodes = program.recording.nodes
    parameters = program.recording.parameters
    for at in sorted(program.near):
        for number in dict.fromkeys(refs(program.calls[at])):
            if nodes[number].kind != "parameter" or nodes[number].value.ndim < 2:
                continue
            for name, other in parameters.items():
                if other != number and nodes[other].value.shape == nodes[number].value.shape:
                    text = f"{name} is taken in the place of {nodes[number].name}"
                    yield Edit(text, text, {at: _with(program, at, {number: other})})


def _with(program: Program, at: int, places: dict[int, int]) -> Change:
    """The call with other tensors in the places of some."""
    call = program.calls[at]
    tensors = {number: program.tensor(other) for number, other in places.items()}

    def change(operator: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        given = [
            tensors.get(shown.number, one) if isinstance(shown, Ref) else one
            for shown, one in zip(call.args, args, strict=True)
        ]
        return operator(*given, **kwargs)  # type: ignore[operator]

    return change
