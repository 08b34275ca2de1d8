"""What every corruption scheme is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from maskattn._problems import Problems

Array = Any


@dataclass(frozen=True)
class Scheme:
    """What is hidden from a model in training, as a function of a key: static sizes and rates, checked when made.

    ``scheme.apply(key, ...)`` runs in NumPy; ``maskattn_jax.corrupt(scheme, key, ...)`` and
    ``maskattn_torch.corrupt(scheme, key, ...)`` give the same result, zero bits different, from the same key. Under jit
    a scheme is static: it is hashable, and the shapes of its results depend on it and on the shapes of its inputs only.
    A key is a seed in [0, 2**31), two uint32 words (`maskattn.rng`), or in JAX a `jax.random.key`.

    Element i of a drawn array depends on the key and on i only: the rows of a batch are the first rows of a larger one.
    """

    #: each scheme documents its own
    apply: ClassVar[Callable[..., Any]]

    def __repr__(self) -> str:
        """As it may be written: without what is as it is by default."""
        given = [
            (field.name, getattr(self, field.name))
            for field in fields(self)
            if field.default != getattr(self, field.name)
        ]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given)})"


def fraction(problems: Problems, name: str, value: Any, low: float = 0.0, high: float = 1.0) -> Any:
    """`value` as a float in [low, high]."""
    number = problems.number(name, value)
    if number is not None and not low <= number <= high:
        problems.value(f"{name} must be in [{low:g}, {high:g}], got {number}")
    return value if number is None else number


def between(problems: Problems, name: str, value: Any, fits: Callable[[float], bool], says: str) -> Any:
    """`value` as (low, high), two floats in order that fit."""
    try:
        low, high = value
    except (TypeError, ValueError):
        problems.type(f"{name} must be (low, high), got {value!r}")
        return value
    bounds = problems.number(f"{name}[0]", low), problems.number(f"{name}[1]", high)
    if bounds[0] is not None and bounds[1] is not None:
        if not (bounds[0] <= bounds[1] and fits(bounds[0]) and fits(bounds[1])):
            problems.value(f"{name} must be (low, high), low <= high, {says}, got {bounds}")
    return bounds


def flag(problems: Problems, name: str, value: Any) -> None:
    """`value` is a bool."""
    if not isinstance(value, bool):
        problems.type(f"{name} must be a bool, got {value!r}")


def ready(problems: Problems, scheme: Scheme, **values: Any) -> None:
    """Raise what was found, else set the checked values."""
    problems.raise_if_any()
    for name, value in values.items():
        object.__setattr__(scheme, name, value)


def batch_size(where: str, batch: Any) -> int:
    """`batch` as an int of at least 0, or the error."""
    problems = Problems(where)
    batch = problems.integer("batch", batch, minimum=0)
    problems.raise_if_any()
    return int(batch)
