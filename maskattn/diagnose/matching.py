"""Tensors of two programs that hold the same numbers, and the places behind which they no longer do.

Two tensors match where their sorted numbers agree: whatever was transposed, reshaped or ordered otherwise. Sorting
moves no number further than the largest difference, so a relative tolerance says the same of sorted numbers as of
paired ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from maskattn.diagnose.trace import Node, Trace, Where
from maskattn.typing import NumPyArray

#: Tensors with fewer numbers, or fewer different ones, are no evidence.
FEWEST = 16
DISTINCT = 8
#: Numbers at least this large stand for "masked out": what fills a mask is not compared.
HUGE = 1e6


@dataclass(frozen=True, eq=False)
class Kept:
    """Which numbers are compared where inputs are padded: not those of tokens that a mask leaves out.

    Attributes:
        tokens: of each mask, bool [B, L], True = compared. Those of one shape leave out what one of them does.
    """

    tokens: tuple[NumPyArray, ...]

    @cached_property
    def _of_shape(self) -> dict[tuple[int, int], NumPyArray]:
        found: dict[tuple[int, int], NumPyArray] = {}
        for one in self.tokens:
            found[one.shape] = one & found.get(one.shape, True)
        return found

    def of(self, value: NumPyArray) -> NumPyArray:
        """The numbers of a tensor with these tokens along its axes, or along both as one, or twice, as queries and as
        keys; others whole.
        """
        shape = value.shape
        for (batch, length), tokens in self._of_shape.items() if shape else ():
            if shape[0] == batch * length and batch > 1:
                return value[tokens.ravel()]
            if shape[0] == batch and len(shape) > 2 and shape[-2:] == (length, length):  # queries and keys
                return np.moveaxis(value, (-2, -1), (1, 2))[tokens[:, :, None] & tokens[:, None]]
            if shape[0] == batch and length in shape[1:]:
                axis = 1 + shape[1:].index(length)
                return np.moveaxis(value, axis, 1)[tokens]
        return value


@dataclass(eq=False)
class Keys:
    """The tensors of a program, each as its numbers in order.

    Attributes:
        trace: the program.
        kept: which numbers count; None: all.
    """

    trace: Trace
    kept: Kept | None = None
    made: dict[int, NumPyArray | None] = field(default_factory=dict)

    def __getitem__(self, number: int) -> NumPyArray | None:
        """The numbers of a node in order, those of a mask's fill as infinities; None where it is no evidence."""
        if number not in self.made:
            self.made[number] = self._key(self.trace.nodes[number])
        return self.made[number]

    def _key(self, node: Node) -> NumPyArray | None:
        if node.value.dtype.kind != "f" or node.value.size < FEWEST:
            return None
        return key_of(node.value if self.kept is None else self.kept.of(node.value))

    @cached_property
    def telling(self) -> list[int]:
        """Nodes that are evidence."""
        return [number for number in range(len(self.trace.nodes)) if self[number] is not None]


def key_of(value: NumPyArray) -> NumPyArray | None:
    """The numbers of an array in order, those of a mask's fill as infinities; None where it is no evidence."""
    if value.dtype.kind != "f" or value.size < DISTINCT:
        return None
    key = np.sort(np.asarray(value, np.float64), axis=None)
    key[key <= -HUGE] = -np.inf
    key[key >= HUGE] = np.inf
    finite = key[np.isfinite(key)]
    if not finite.size:
        return None
    size = np.abs(finite).max() or 1.0
    steps = np.diff(finite)
    return key if np.count_nonzero(steps > 1e-6 * size) >= DISTINCT - 1 else None


def distance(one: NumPyArray, other: NumPyArray) -> float:
    """The largest difference of two lists of numbers in order, in units of the largest; inf of no pair."""
    if one.shape != other.shape:
        return float("inf")
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)) or not finite.any():
        return float("inf")
    size = max(float(np.abs(one[finite]).max()), 1e-30)
    return float(np.abs(one[finite] - other[finite]).max()) / size


@dataclass(eq=False)
class Matches:
    """Which tensors of two programs match.

    Attributes:
        ours, theirs: numbers of nodes -> numbers of the nodes of the other side.
    """

    ours: dict[int, list[int]]
    theirs: dict[int, list[int]]


@dataclass(frozen=True, eq=False)
class Rows:
    """Tensors of one size, each as its numbers in order.

    Attributes:
        keys: float64 [tensors, numbers].
    """

    keys: NumPyArray

    @cached_property
    def _middles(self) -> NumPyArray:
        return np.array([_middle(key) for key in self.keys])

    def may_hold(self, value: NumPyArray, tolerance: float) -> bool:
        """Whether a tensor of an array's numbers, in whatever order, may be among them: told by the mean alone."""
        if value.dtype.kind != "f":
            return False
        with np.errstate(invalid="ignore"):
            finite = value[np.abs(value) < HUGE]
        if not finite.size:
            return False
        size = float(np.abs(finite).max())
        return bool((np.abs(self._middles - float(finite.mean())) <= 3 * tolerance * size).any())

    def like(self, key: NumPyArray, tolerance: float) -> list[int]:
        """Which of them match a key."""
        size = float(np.abs(key[np.isfinite(key)]).max())
        with np.errstate(invalid="ignore"):
            near = np.flatnonzero(np.abs(self._middles - _middle(key)) <= 2 * tolerance * size)
        return [int(row) for row in near if distance(key, self.keys[row]) <= tolerance]


def match(ours: Keys, theirs: Keys, tolerance: float) -> Matches:
    """All pairs of tensors that match, operations and inputs of both programs.

    Args:
        tolerance: of the largest number.
    """
    sizes: dict[int, list[int]] = {}
    for number in theirs.telling:
        if theirs.trace.nodes[number].kind != "parameter":
            sizes.setdefault(_key(theirs, number).size, []).append(number)
    rows = {size: Rows(np.stack([_key(theirs, number) for number in numbers])) for size, numbers in sizes.items()}
    found = Matches({}, {})
    for number in ours.telling:
        key = _key(ours, number)
        if ours.trace.nodes[number].kind == "parameter" or key.size not in rows:
            continue
        for row in rows[key.size].like(key, tolerance):
            other = sizes[key.size][row]
            found.ours.setdefault(number, []).append(other)
            found.theirs.setdefault(other, []).append(number)
    return found


def _key(keys: Keys, number: int) -> NumPyArray:
    key = keys[number]
    assert key is not None
    return key


def _middle(key: NumPyArray) -> float:
    finite = key[np.isfinite(key)]
    return float(finite.mean())


def fed(trace: Trace) -> list[bool]:
    """Of each node, whether it depends on what the program was given."""
    found: list[bool] = []
    for node in trace.nodes:
        found.append(node.kind == "input" or any(found[number] for number in node.inputs))
    return found


def live(trace: Trace, outputs: Iterable[int]) -> set[int]:
    """Nodes on the way to what the program gave."""
    found: set[int] = set()
    todo = list(outputs)
    while todo:
        number = todo.pop()
        if number not in found:
            found.add(number)
            todo += trace.nodes[number].inputs
    return found


def frontier(keys: Keys, matched: Mapping[int, Sequence[int]], outputs: Iterable[int]) -> list[int]:
    """The first tensors of a program that the other program does not have, in the order in which they were made.

    They lie on the way to the outputs, depend on what the program was given, and match nothing; nor does anything made
    from them (other ways to the same numbers meet again); and all that they were made from matches, as far as it is
    evidence and depends on what was given.
    """
    trace = keys.trace
    given = fed(trace)
    telling = set(keys.telling)
    below = [False] * len(trace.nodes)  # something made from it matches
    for number in reversed(range(len(trace.nodes))):
        if number in matched or below[number]:
            for before in trace.nodes[number].inputs:
                below[before] = True
    settled: list[bool] = []  # what it was made from is the same on both sides
    same: list[bool] = []  # it is itself, or is no evidence and was made from what is the same
    for number, node in enumerate(trace.nodes):
        settled.append(all(same[before] or not given[before] for before in node.inputs))
        known = number in matched or node.kind != "operation" or below[number]
        same.append(known or (number not in telling and settled[number]))
    return [
        number
        for number in sorted(telling & live(trace, outputs))
        if given[number] and not same[number] and settled[number] and trace.nodes[number].kind == "operation"
    ]


def drawn(trace: Trace, first: Sequence[int], most: int = 40) -> Where | None:
    """Where a program uses random numbers close behind these nodes; None: it does not.

    Args:
        most: how many operations behind the first of them count as close, without those that make random numbers.
    """
    random = set(trace.random)
    behind, count = set(first), 0
    for number, node in enumerate(trace.nodes):
        reads = not behind.isdisjoint(node.inputs)
        if number in behind or reads:
            behind.add(number)
            count += 1
            if not random.isdisjoint(node.inputs):
                return node.where
        elif not random.isdisjoint(node.inputs):
            random.add(number)
        if count > most:
            break
    return None


def not_numbers(trace: Trace) -> Where | None:
    """Where the NaN of a program's outputs began; None: they have none."""
    spoiled = [node.value.dtype.kind == "f" and bool(np.isnan(node.value).any()) for node in trace.nodes]
    if not any(spoiled[number] for number in trace.outputs.values()):
        return None
    first = (node for node, has in zip(trace.nodes, spoiled, strict=True) if has)
    return next(first).where
