"""Tensors exchanged, left out, or taken from elsewhere: gate and up, keys and values, the residual, a bias."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils import _pytree as pytree

from maskattn_torch.tracing.record import Ref
from maskattn_torch.tracing.replay import Change, Edit, Program, name_of, refs

_BINARY = ("add.Tensor", "mul.Tensor", "sub.Tensor", "div.Tensor")


def edits(program: Program) -> Iterator[Edit]:
    """Operands left out; other tensors of the same shape, near by, in the place of each; two exchanged."""
    yield from _exchanged(program)
    yield from _left_out(program)
    near = sorted(program.near)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for at in near:
        for number in (*refs(program.calls[at]), *program.calls[at].outputs):
            if number is not None:
                node = program.recording.nodes[number]
                if node.value.dtype.kind == "f" and node.value.size >= 2:
                    found = shapes.setdefault(node.value.shape, [])
                    if number not in found:
                        found.append(number)
    for number in program.recording.parameters.values():
        value = program.recording.nodes[number].value
        if value.dtype.kind == "f" and number not in shapes.setdefault(value.shape, []):
            shapes[value.shape].append(number)
    for at in near:
        call = program.calls[at]
        for number in dict.fromkeys(refs(call)):
            value = program.recording.nodes[number].value
            for other in shapes.get(value.shape, ()):
                if other != number and other not in call.outputs and (program.made_by.get(other, -1) < at):
                    text = f"{said(program, other)} is taken in the place of {said(program, number)}"
                    yield Edit(text, f"operand {number}->{other}", {at: _swapped(program, {number: other}, call)})


def _exchanged(program: Program) -> Iterator[Edit]:
    """Two parameters of one module, each in the place of the other."""
    nodes = program.recording.nodes
    near = [(at, number) for at in sorted(program.near) for number in program.taken[at]]
    held = [(at, number) for at, number in near if nodes[number].kind == "parameter"]
    for place, (at, number) in enumerate(held):
        for other_at, other in held[place + 1 :]:
            alike = nodes[number].value.shape == nodes[other].value.shape and number != other
            if alike and _owner(nodes[number].name) == _owner(nodes[other].name):
                text = f"{nodes[number].name} and {nodes[other].name} are exchanged"
                changes = {
                    at: _swapped(program, {number: other}, program.calls[at]),
                    other_at: _swapped(program, {other: number}, program.calls[other_at]),
                }
                yield Edit(text, "exchanged", changes)


def _owner(name: str) -> str:
    """The module above the one that a parameter is in."""
    return name.rpartition(".")[0].rpartition(".")[0]


def _left_out(program: Program) -> Iterator[Edit]:
    for at in sorted(program.near):
        call = program.calls[at]
        name = name_of(call)
        if name not in _BINARY or not all(isinstance(one, Ref) for one in call.args[:2]):
            continue
        shape = program.recording.nodes[call.outputs[0]].value.shape  # type: ignore[index]
        for place in (0, 1):
            kept, left = call.args[place], call.args[1 - place]
            assert isinstance(kept, Ref) and isinstance(left, Ref)
            if program.recording.nodes[kept.number].value.shape == shape:
                text = f"{said(program, left.number)} is left out"
                yield Edit(text, f"left out of {name}", {at: _one(place)})


def said(program: Program, number: int) -> str:
    """A node in words."""
    node = program.recording.nodes[number]
    if node.kind != "operation":
        return node.name or "a constant"
    return f"{node.name} of {node.where}"


def _one(place: int) -> Change:
    def change(operator: object, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> Tensor:
        return args[place]

    return change


def _swapped(program: Program, places: dict[int, int], call: object) -> Change:
    tensors = {number: program.tensor(other) for number, other in places.items()}

    def change(operator: object, args: object, kwargs: object) -> object:
        shown, spec = pytree.tree_flatten((call.args, call.kwargs), is_leaf=lambda one: isinstance(one, Ref))  # type: ignore[attr-defined]
        given = pytree.tree_leaves((args, kwargs), is_leaf=lambda one: isinstance(one, Tensor) or one is None)
        taken = [
            tensors.get(one.number, now) if isinstance(one, Ref) else now for one, now in zip(shown, given, strict=True)
        ]
        a, k = pytree.tree_unflatten(taken, spec)
        return operator(*a, **k)  # type: ignore[operator]

    return change
