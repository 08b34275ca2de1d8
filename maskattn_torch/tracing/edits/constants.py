"""Numbers that stand in a program: scales, eps of norms, fills, caps."""

from __future__ import annotations

from collections.abc import Iterator

from maskattn_torch.tracing.replay import Change, Edit, Program, name_of

#: Operators -> which of their arguments is a number, and what it is.
PLACES = {
    "mul.Tensor": (1, "factor"),
    "mul.Scalar": (1, "factor"),
    "div.Tensor": (1, "divisor"),
    "add.Tensor": (1, "number added"),
    "pow.Tensor_Scalar": (1, "power"),
    "native_layer_norm": (4, "eps of the norm"),
    "masked_fill.Scalar": (2, "fill of the mask"),
}
_COMMON = (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)


def edits(program: Program) -> Iterator[Edit]:
    """Another number in the place of each."""
    for at in sorted(program.near):
        call = program.calls[at]
        name = name_of(call)
        if name not in PLACES:
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


def _with(place: int, number: float) -> Change:
    def change(operator: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        return operator(*args[:place], number, *args[place + 1 :], **kwargs)  # type: ignore[operator]

    return change
