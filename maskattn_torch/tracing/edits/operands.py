"""Tensors exchanged, left out, or taken from elsewhere: gate and up, keys and values, the residual, a bias."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor
from torch.utils import _pytree as pytree

from maskattn_torch.tracing.record import Ref
from maskattn_torch.tracing.replay import VIEWS, Change, Edit, Program, name_of

#: Operators that change no number.
_MOVES = frozenset(
    (*VIEWS, "t", "transpose.int", "permute", "expand", "clone", "detach", "alias")
    + ("_to_copy", "unsqueeze", "squeeze.dim", "slice.Tensor", "select.int", "split.Tensor", "unbind.int", "copy_")
)
_RESHAPED = (*VIEWS, "clone", "detach", "alias", "_to_copy")
_BINARY = ("add.Tensor", "mul.Tensor", "sub.Tensor", "div.Tensor")
_SYMMETRIC = ("add.Tensor", "mul.Tensor", "maximum", "minimum")


def edits(program: Program) -> Iterator[Edit]:
    """Operands left out; other tensors of the same shape, near by, in the place of each; two exchanged."""
    yield from _exchanged(program)
    yield from _left_out(program)
    yield from _elsewhere(program)


def _elsewhere(program: Program) -> Iterator[Edit]:
    """Other tensors that both programs have, in the place of each operand of a call whose result one alone has.

    Of tensors with the same numbers one is tried. A view's operand is exchanged where the view is read; kernels are by
    `layers`.
    """
    if not program.known:
        return
    nodes = program.recording.nodes
    alike: dict[tuple[tuple[int, ...], bool], dict[bytes, int]] = {}
    digests: dict[int, bytes] = {}
    near = sorted(program.near)
    made = {number: None for at in near for number in (*program.taken[at], *program.calls[at].outputs)}
    numbers = [number for number in made if number is not None]
    for number in (*numbers, *program.recording.parameters.values()):
        value = nodes[number].value
        if value.dtype.kind == "f" and value.size >= 2 and number not in digests:
            digests[number] = value.tobytes()
            if number in program.known or _stored(program, number):
                alike.setdefault((value.shape, _stored(program, number)), {}).setdefault(digests[number], number)
    for at in near:
        call = program.calls[at]
        if name_of(call) in _MOVES or not program.known.isdisjoint(call.outputs):
            continue
        for number in dict.fromkeys(program.taken[at]):
            stored = _stored(program, number)
            if number not in digests or (stored and nodes[number].value.ndim > 1):
                continue
            for digest, other in alike.get((nodes[number].value.shape, stored), {}).items():
                if digest != digests[number] and other not in call.outputs and program.made_by.get(other, -1) < at:
                    text = f"{said(program, other)} is taken in the place of {said(program, number)}"
                    yield Edit(text, f"operand {number}->{other}", {at: _swapped(program, {number: other}, call)})


def _stored(program: Program, number: int) -> bool:
    """Whether a node is a parameter."""
    return program.recording.nodes[number].kind == "parameter"


def _exchanged(program: Program) -> Iterator[Edit]:
    """Two parameters, or all of two modules side by side, each in the place of the other; two operands of a call."""
    nodes = program.recording.nodes
    readers: dict[int, list[int]] = {}
    for at in sorted(program.near):
        for number in dict.fromkeys(program.taken[at]):
            if nodes[number].kind == "parameter":
                readers.setdefault(number, []).append(at)
    modules: dict[str, dict[str, int]] = {}
    for number in readers:
        module, _, name = nodes[number].name.rpartition(".")
        modules.setdefault(module, {})[name] = number
    for (one, mine), (other, its) in itertools.combinations(modules.items(), 2):
        shapes, others = ({name: nodes[at].value.shape for name, at in held.items()} for held in (mine, its))
        if shapes == others and one.rpartition(".")[0] == other.rpartition(".")[0]:
            for a, of_a, b, of_b in ((one, mine, other, its), (other, its, one, mine)) if len(mine) > 1 else ():
                instead = {of_b[name]: of_a[name] for name in of_a}
                places = {at: _swapped(program, instead, program.calls[at]) for by in instead for at in readers[by]}
                yield Edit(f"{a} is taken in the place of {b}", "module elsewhere", places)
            each = [{name: (mine[name], its[name])} for name in mine] if len(mine) > 1 else []
            for held in ({name: (mine[name], its[name]) for name in mine}, *each):
                swap = {a: b for pair in held.values() for a, b in (pair, pair[::-1])}
                changes = {at: _swapped(program, swap, program.calls[at]) for number in swap for at in readers[number]}
                names = (one, other) if len(held) == len(mine) else (nodes[number].name for number in swap)
                yield Edit(f"{' and '.join(names)} are exchanged", "exchanged", changes)
    yield from _of_one_call(program)


def _of_one_call(program: Program) -> Iterator[Edit]:
    """Two operands of a call, where it matters which is which."""
    nodes = program.recording.nodes
    for at in sorted(program.near):
        call = program.calls[at]
        if name_of(call) in _SYMMETRIC:
            continue
        for one, other in itertools.combinations(dict.fromkeys(program.taken[at]), 2):
            first, second = nodes[one].value, nodes[other].value
            if first.shape == second.shape and first.dtype == second.dtype:
                text = f"{said(program, one)} and {said(program, other)} are exchanged"
                yield Edit(text, "operands exchanged", {at: _swapped(program, {one: other, other: one}, call)})


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
    """A node in words; of one that is another in another shape, that one."""
    made = program.maker(number)
    while made is not None and name_of(made) in _RESHAPED and isinstance(made.args[0], Ref):
        number = made.args[0].number
        made = program.maker(number)
    node = program.recording.nodes[number]
    if node.kind != "operation":
        return node.name or "a constant"
    return f"{node.name} of {node.where}"


def _one(place: int) -> Change:
    def change(operator: object, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> Tensor:
        return args[place]

    return change


def _swapped(program: Program, places: dict[int, int], call: object) -> Change:
    def change(operator: object, args: object, kwargs: object) -> object:
        tensors = {number: program.now(other) for number, other in places.items()}
        shown, spec = pytree.tree_flatten((call.args, call.kwargs), is_leaf=lambda one: isinstance(one, Ref))  # type: ignore[attr-defined]
        given = pytree.tree_leaves((args, kwargs), is_leaf=lambda one: isinstance(one, Tensor) or one is None)
        taken = [
            tensors.get(one.number, now) if isinstance(one, Ref) else now for one, now in zip(shown, given, strict=True)
        ]
        a, k = pytree.tree_unflatten(taken, spec)
        return operator(*a, **k)  # type: ignore[operator]

    return change
