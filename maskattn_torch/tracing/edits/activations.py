"""Other functions of single numbers, in the place of an activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from maskattn_torch.tracing.replay import Change, Edit, Program, name_of

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu (tanh)": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "relu": torch.relu,
    "relu squared": lambda x: torch.relu(x).square(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "no activation": lambda x: x,
}
_NAMES = {"gelu": "gelu", "silu": "silu", "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid"}


#: Fewer numbers may be an activation's by chance.
_FEWEST = 16
#: What an activation that is written out ends with, and how many operators it may have.
_LAST = ("mul.Tensor", "mul.Scalar", "div.Tensor", "square", "pow.Tensor_Scalar")
_LONGEST = 10
#: What two ways to compute the same differ by at most, of the largest number.
_SAME = 1e-9


def edits(program: Program) -> Iterator[Edit]:
    """Each function in the place of each activation: of one operator, or of several that give its numbers."""
    for at in sorted(program.near):
        call = program.calls[at]
        mine = _NAMES.get(name_of(call))
        if mine == "gelu" and call.kwargs.get("approximate", "none") == "tanh":
            mine = "gelu (tanh)"
        if mine is not None:
            for name, function in _others(mine):
                yield Edit(_said(name, mine), f"{name} for {mine}", {at: _by(function)})
        elif name_of(call) in _LAST:
            found = _written_out(program, at)
            if found is not None:
                mine, x = found
                for name, function in _others(mine):
                    yield Edit(_said(name, mine), f"{name} for {mine}", {at: _of(program, x, function)})


def _others(mine: str) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    yield from ((name, function) for name, function in FUNCTIONS.items() if name != mine)


def _said(name: str, mine: str) -> str:
    return f"the activation is {name}, not {mine}"


def _written_out(program: Program, at: int) -> tuple[str, int] | None:
    """Which activation a call ends, and of which node, told by its numbers."""
    nodes, made = program.recording.nodes, program.calls[at].outputs[0]
    assert made is not None
    y = nodes[made].value
    if y.dtype.kind != "f" or y.size < _FEWEST or made not in program.learned:
        return None
    todo, seen = [(number, 1) for number in program.taken[at]], set()
    while todo:
        number, steps = todo.pop(0)
        if number in seen or nodes[number].value.shape != y.shape or nodes[number].value.dtype.kind != "f":
            continue
        seen.add(number)
        x = program.tensor(number)
        for name, function in FUNCTIONS.items():
            if name != "no activation" and float((function(x) - torch.from_numpy(y)).abs().max()) <= _SAME * float(
                x.abs().max()
            ):
                return name, number
        above = program.made_by.get(number)
        if above is not None and steps < _LONGEST:
            todo += [(one, steps + 1) for one in program.taken[above]]
    return None


def _of(program: Program, x: int, function: Callable[[Tensor], Tensor]) -> Change:
    return lambda *_: function(program.now(x))


def _by(function: Callable[[Tensor], Tensor]) -> Change:
    def change(operator: object, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> Tensor:
        return function(args[0])

    return change
