"""What is wrong with the arguments of a cache; and the tokens of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from maskattn._arithmetic import choose
from maskattn._problems import Problems, describe
from maskattn.arrays import dtype_name
from maskattn.typing import NumPyArray, Traced


class Held(Protocol):
    """What is checked against: a cache."""

    @property
    def key(self) -> Traced:
        """[B, size, K, D]."""

    @property
    def value(self) -> Traced:
        """[B, size, K, Dv]."""

    @property
    def batch(self) -> int:
        """B."""

    def _takes(self, key: Traced, value: Traced) -> bool:
        """Whether it can be seen at once that keys and values are of the cache's sizes and dtypes."""

    def _read(self, x: Traced) -> NumPyArray | None:
        """An array in NumPy, where that waits for nothing."""


class Step(NamedTuple):
    """The tokens of a step.

    Attributes:
        rank: int32 [B or 1, L], which of the row's real tokens each is.
        real: bool [B, L], False for padding; None: all are real.
        count: int, or int32 [B]: how many are real.
    """

    rank: Traced
    real: Traced
    count: Traced

    def tokens(self, start: Traced) -> Traced:
        """The position of each, int32 [B, L], where the first of row b is at start[b]; -1 of padding."""
        tokens = start[:, None] + self.rank
        return tokens if self.real is None else choose(self.real, tokens, -1)


class Placed(NamedTuple):
    """Where the tokens of an update go: slots int32 [B, L], `size` for those that are not kept; lengths, and lost."""

    slots: Traced
    lengths: Traced
    lost: Traced


def check_empty(
    batch: object,
    size: object,
    num_kv_heads: object,
    head_dim: object,
    v_head_dim: object,
    rolling: object,
    dtype: str,
    known: Sequence[str],
) -> None:
    """Raise one error with everything wrong with the arguments of `empty`; `known` are the dtypes that there are."""
    problems = Problems("Cache.empty")
    sizes = {"size": size, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    if v_head_dim is not None:
        sizes["v_head_dim"] = v_head_dim
    problems.integer("batch", batch, minimum=0)
    for name, number in sizes.items():
        problems.integer(name, number, minimum=1)
    if not isinstance(rolling, bool):
        problems.type(f"rolling must be True or False, got {describe(rolling)}")
    if dtype not in known:
        problems.type(f"dtype must be one of {', '.join(known)}, got {dtype}")
    problems.raise_if_any()


def shown(numbers: list[int]) -> str:
    """The numbers in an error message: short."""
    return str(numbers) if len(numbers) <= 8 else f"[{numbers[0]}, ..., {numbers[-1]}]"


def check_real(cache: Held, problems: Problems, q_len: Traced, lengths: Traced, valid: Traced) -> None:
    """Note what is wrong with `lengths` and `valid`, which say what of a step is real."""
    batch = cache.batch
    if lengths is not None and valid is not None:
        problems.value("lengths and valid both say which tokens are real: give one of them")
    if lengths is not None:
        found = problems.array("lengths", lengths, "int", "[B]", minimum=0)
        if tuple(found.shape) != (batch,):
            problems.value(f"lengths must have shape [{batch}], got {list(found.shape)}")
        elif isinstance(q_len, int) and (known := cache._read(found)) is not None and (known > q_len).any():
            problems.value(f"lengths must be at most {q_len}, the tokens given, got {int(known.max())}")
    if valid is not None:
        found = problems.array("valid", valid, "bool", "[B, L]")
        if tuple(found.shape) != (batch, q_len):
            problems.value(f"valid must have shape [{batch}, {q_len}], got {list(found.shape)}")


def check_update(
    cache: Held, key: Traced, value: Traced, positions: Traced, lengths: Traced, valid: Traced, arrays: tuple[type, ...]
) -> None:
    """Note everything wrong with an update that can be known without its values, and raise."""
    if positions is lengths is valid is None and isinstance(key, arrays) and isinstance(value, arrays):
        if cache._takes(key, value):
            return
    expected: dict[str, tuple[Traced, Traced]] = {"key": (cache.key, key), "value": (cache.value, value)}
    problems = Problems("Cache.update")
    for name, (held, given) in expected.items():
        batch, _, heads, width = held.shape
        known: object = given
        if not isinstance(known, arrays):
            problems.type(f"{name} must be an array, got {describe(given)}")
        elif len(given.shape) != 4 or (given.shape[0], *given.shape[2:]) != (batch, heads, width):
            problems.value(f"{name} must have shape [{batch}, L, {heads}, {width}], got {list(given.shape)}")
        elif dtype_name(given) != dtype_name(held):
            problems.type(f"{name} must be {dtype_name(held)}, as the cache is, got {dtype_name(given)}")
    if not problems and key.shape[1] != value.shape[1]:
        problems.value(f"key and value must have one length, got {key.shape[1]} and {value.shape[1]}")
    q_len = key.shape[1] if hasattr(key, "shape") and len(key.shape) == 4 else None
    if q_len is not None:
        check_real(cache, problems, q_len, lengths, valid)
    if positions is not None:
        found = problems.array("positions", positions, "int", "[B, L]")
        if q_len is not None and tuple(found.shape) != (cache.batch, q_len):
            problems.value(f"positions must have shape [{cache.batch}, {q_len}], got {list(found.shape)}")
    problems.raise_if_any()
