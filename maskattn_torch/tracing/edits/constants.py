"""Numbers that stand in a program: scales, eps of norms, fills, caps."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from maskattn_torch.tracing.record import Ref
from maskattn_torch.tracing.replay import Change, Edit, Program, name_of

#: Operators -> which of their arguments is a number, and what it is.
PLACES = {
    "mul.Tensor": (1, "factor"),
    "mul.Scalar": (1, "factor"),
    "div.Tensor": (1, "divisor"),
    "add.Tensor": (1, "number added"),
    "pow.Tensor_Scalar": (1, "power"),
    "native_layer_norm": (4, "eps of the norm"),
    "native_group_norm": (7, "eps of the norm"),
    "native_batch_norm": (7, "eps of the norm"),
    "_native_batch_norm_legit_no_training": (6, "eps of the norm"),
    "_fused_rms_norm": (3, "eps of the norm"),
    "masked_fill.Scalar": (2, "fill of the mask"),
}
_COMMON = (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)


def edits(program: Program) -> Iterator[Edit]:
    """Another number in the place of each."""
    for at in sorted(program.near):
        call = program.calls[at]
        name = name_of(call)
        if name == "tanh":
            yield from _of_cap(program, at)
        if name not in PLACES or len(call.args) <= PLACES[name][0]:
            continue
        place, what = PLACES[name]
        mine = call.args[place]
        if not isinstance(mine, (int, float)):
            continue
        if what == "number added" and 0 < abs(mine) < 1e-2:
            what = "eps of the norm"
        others = {
            *program.constants,
            *(_COMMON if what == "eps of the norm" else (0.0, 1.0, mine * mine, mine**0.5 if mine > 0 else 1.0)),
        }
        if what in ("factor", "divisor"):
            others |= {1 / one for one in others if one}
            others = {one for one in others if 1e-4 < abs(one) < 1e4}  # the rest are eps and fills
        for other in sorted(others):
            if other != mine:
                text = f"the {what} is {other:.6g}, not {mine:.6g}"
                yield Edit(text, f"{what} {other:.6g} for {mine:.6g}", {at: _with(place, other)})


def _of_cap(program: Program, at: int) -> Iterator[Edit]:
    """c * tanh(x / c): another cap, or none (Gemma 2: Gemma Team 2024, section 2)."""
    source = program.made_by.get(_number(program.calls[at].args[0]))
    number = program.calls[at].outputs[0]
    readers = program.read_by.get(number, []) if number is not None else []
    if source is None or len(readers) != 1:
        return
    divided, times = program.calls[source], program.calls[readers[0]]
    cap = times.args[1] if name_of(times) == "mul.Tensor" else None
    if name_of(divided) not in ("div.Tensor", "mul.Tensor") or not isinstance(cap, (int, float)):
        return
    scale = divided.args[1]
    inverse = 1 / cap if name_of(divided) == "mul.Tensor" else cap
    if not isinstance(scale, (int, float)) or round(scale / inverse, 6) != 1:
        return
    text = f"there is no cap of {cap:g}"
    x = _number(divided.args[0])
    yield Edit(text, "no cap", {readers[0]: lambda _, args, kwargs: program.now(x)})
    for other in {30.0, 50.0, *(one for one in program.constants if 1 < one < 1e3)} - {float(cap)}:
        text = f"the cap is {other:g}, not {cap:g}"
        yield Edit(text, text, {readers[0]: lambda _, args, kwargs, by=other: torch.tanh(program.now(x) / by) * by})


def _number(one: object) -> int:
    return one.number if isinstance(one, Ref) else -1


def _with(place: int, number: float) -> Change:
    def change(operator: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        return operator(*args[:place], number, *args[place + 1 :], **kwargs)  # type: ignore[operator]

    return change
