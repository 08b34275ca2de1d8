"""Cases of random expressions of masks."""

from __future__ import annotations

from collections.abc import Iterator

from maskattn.parity.attention.case import Case
from maskattn.parity.attention.cases.mask_table import compose
from maskattn.parity.attention.cases.shapes import DTYPES, SHAPES
from maskattn.parity.draws import Draws

#: How many random expressions are in the registry, and the shapes and dtypes that they take in turn.
COMPOSITIONS = 48
_TURNS = ("square", "wide", "one", "tall", "square", "row", "wide", "tall")


def entries() -> Iterator[Case]:
    """Those of the registry."""
    return (composition(number) for number in range(COMPOSITIONS))


def composition(number: int, shape_name: str | None = None, dtype: str | None = None) -> Case:
    """Case `number` of the endless list of random expressions of masks, on a shape and in a dtype of its own choice."""
    shape_name = shape_name or _TURNS[number % len(_TURNS)]
    dtype = dtype or (DTYPES[number // len(_TURNS) % len(DTYPES)] if shape_name == "square" else "float32")
    name = f"composition/{shape_name}/{dtype}/{number}"
    draws = Draws(name)
    mask = compose(SHAPES[shape_name], draws, depth=1 + number % 4)
    return Case(
        name,
        "composition",
        SHAPES[shape_name],
        dtype,
        mask,
        spread=(0.5, 2.0, 8.0)[draws.integer(0, 3)],
        seed=draws.integer(0, 1 << 30),
        tags=frozenset({"smoke"}) if number < 6 else frozenset(),
    )


def fresh(start: int = 1000) -> Iterator[Case]:
    """Random cases without end, none of them in the registry: float32, where a difference is likeliest to show."""
    number = start
    while True:
        yield composition(number, "square", "float32")
        number += 1
