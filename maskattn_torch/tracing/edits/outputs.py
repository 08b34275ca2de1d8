"""What may be done behind the end of a program: probabilities for logits, a cap, a factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from maskattn_torch.tracing.replay import Change, Edit, Program

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "its norm as divisor (L2)": lambda x: x / x.norm(dim=-1, keepdim=True),
}


def edits(program: Program) -> Iterator[Edit]:
    """Of each output whose call is near."""
    for name, number in program.recording.outputs.items():
        at = program.made_by.get(number)
        if at is None or at not in program.near or len(program.calls[at].outputs) != 1:
            continue
        which = f"the output {name}" if name else "the output"
        for said, function in FUNCTIONS.items():
            text = f"{which} has {said} behind it"
            yield Edit(text, text, {at: _behind(function)})
        for factor in program.constants:
            if factor not in (0.0, 1.0) and 1e-3 < abs(factor) < 1e3:
                text = f"{which} is multiplied by {factor:.6g}"
                yield Edit(text, text, {at: _behind(lambda x, by=factor: x * by)})  # type: ignore[misc]
                text = f"{which} is capped at {factor:.6g} by tanh"
                yield Edit(text, text, {at: _behind(lambda x, by=factor: torch.tanh(x / by) * by)})  # type: ignore[misc]


def _behind(function: Callable[[Tensor], Tensor]) -> Change:
    def change(operator: Callable[..., Tensor], args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
        return function(operator(*args, **kwargs))

    return change
