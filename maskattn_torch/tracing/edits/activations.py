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


def edits(program: Program) -> Iterator[Edit]:
    """Each function in the place of each activation."""
    for at in sorted(program.near):
        call = program.calls[at]
        mine = _NAMES.get(name_of(call))
        if mine is None:
            continue
        if mine == "gelu" and call.kwargs.get("approximate", "none") == "tanh":
            mine = "gelu (tanh)"
        for name, function in FUNCTIONS.items():
            if name != mine:
                yield Edit(f"the activation is {name}, not {mine}", f"{name} for {mine}", {at: _by(function)})


def _by(function: Callable[[Tensor], Tensor]) -> Change:
    def change(operator: object, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> Tensor:
        return function(args[0])

    return change
