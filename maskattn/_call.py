"""`maskattn.attention.Call`: the one description of a call of attention, for what attention itself is made of too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from maskattn.typing import Array, EmptyRows, KernelName, Precision, SharedAxis

A_co = TypeVar("A_co", bound=Array, covariant=True)


def are_numbers(sizes: Iterable[object]) -> bool:
    """Whether no size is left open, as in a symbolic export."""
    return all(isinstance(size, int) for size in sizes)


@dataclass(frozen=True)
class Dropout(Generic[A_co]):
    """Dropout of attention weights: each is multiplied by keep / (1 - rate) after the softmax.

    A pytree in both twins: `words` is its leaf.

    Attributes:
        rate: the probability of being dropped, in (0, 1).
        words: the key, uint32 [2], where the call's arrays are.
        shared: the axes, of "batch" and "heads", whose entries all share one draw.
        within: what the draw is for, where these weights are a part of it, such as one device of several has: the first
            row, head and query, and the numbers of rows, heads and queries of the whole; None: the weights are all.
    """

    rate: float
    words: A_co
    shared: tuple[SharedAxis, ...] = ()
    within: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Call(Generic[A_co]):
    """One call of attention: what a kernel is given, and what `auto` and `explain` are asked about.

    Its fields are the arguments of `attention`, by the same names. As `prepare` returns it, they are checked, arrays
    are the framework's, `mask` and `bias` are a Mask and a Bias bound to it (or None), `scale` is a number, "error" in
    `empty_rows` is settled, and `dropout_key` is the key's two words (or None where nothing is dropped).

    Attributes:
        query: [B, L, H, D]. key: [B, S, K, D]. value: [B, S, K, Dv]. sinks: [H], or None.
        mask: which pairs may attend; True = may. None allows all.
        blocks: (queries, keys) of a tile, for kernels that work in tiles; None leaves them the choice.
    """

    query: A_co
    key: A_co
    value: A_co
    mask: Any = None
    bias: Any = None
    scale: Any = None  # a float, once prepared
    softcap: float | None = None
    sinks: A_co | None = None
    dropout_rate: float = 0.0
    dropout_key: Any = None
    dropout_broadcast: tuple[SharedAxis, ...] = ()
    empty_rows: EmptyRows = "zero"
    kernel: KernelName = "auto"
    precision: Precision = "highest"
    return_lse: bool = False
    blocks: tuple[int, int] | None = None

    @classmethod
    def of(cls, **fields: Any) -> Call[Any]:
        """The call with these fields, made in a third of the time that setting them one by one takes."""
        call: Call[Any] = object.__new__(cls)
        call.__dict__.update(fields)
        return call

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(B, H, L, S)."""
        batch, q_len, heads, _ = self.query.shape
        return batch, heads, q_len, self.key.shape[1]

    @property
    def is_sized(self) -> bool:
        """Whether all sizes are numbers: an export may leave some open (`jax.export.symbolic_shape`)."""
        return are_numbers(self.sizes)

    @property
    def dropout(self) -> Dropout[A_co] | None:
        """What is dropped; None where nothing is."""
        return Dropout(self.dropout_rate, self.dropout_key, self.dropout_broadcast) if self.dropout_rate else None


@dataclass(frozen=True, eq=False)
class PartOfCall(Call[A_co]):
    """Some rows, heads and queries of a call, by themselves, but for the weights that are dropped: those of the whole.

    Attributes:
        within: as `Dropout.within`.
    """

    within: tuple[int, ...] | None = None

    @property
    def dropout(self) -> Dropout[A_co] | None:
        if not self.dropout_rate:
            return None
        return Dropout(self.dropout_rate, self.dropout_key, self.dropout_broadcast, self.within)
