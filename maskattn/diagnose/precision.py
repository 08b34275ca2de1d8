"""Where one program rounds to fewer bits than the other: told by runs in the programs' own dtypes.

A run in float64 shows what two programs compute, not how finely. So where a side has or asks for fewer bits than
float32, both are run once more as they are. An operation rounds where it gives numbers that it was not given, in a
dtype that does not hold them: what only moves numbers does not, and what a dtype holds exactly (a mask, small integers)
is not rounded. Between two tensors that both programs have, each side's narrowest rounding is compared.

How parameters are stored is no computation: a side that is stored in bfloat16 may compute in bfloat16. Only where it
does so though the other one, stored in no more, computes in more bits, it differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cached_property

import numpy as np

from maskattn.diagnose.arrangement import rounded
from maskattn.diagnose.matching import Matches
from maskattn.diagnose.report import Place
from maskattn.diagnose.trace import Node, Trace

#: Significant bits of dtypes.
BITS: Mapping[str, int] = {
    "float64": 53, "float32": 24, "float16": 11, "bfloat16": 8, "float8_e4m3fn": 4, "float8_e4m3": 4,
    "float8_e5m2": 3,
}  # fmt: skip
_FULL = "float32"
FULL = BITS[_FULL]
_CASTS = ("convert_element_type", "_to_copy", "reduce_precision", "to.dtype")
#: PyTorch's operators in words.
_WORDS: Mapping[str, str] = {
    "_softmax": "softmax", "native_layer_norm": "norm", "_fused_rms_norm": "norm", "bmm": "matrix product",
    "mm": "matrix product", "addmm": "matrix product", "linear": "matrix product", "matmul": "matrix product",
    "add.Tensor": "sum", "mul.Tensor": "product", "pow.Tensor_Scalar": "power", "mean.dim": "mean",
    "embedding": "embedding",
}  # fmt: skip


def bits(dtype: str) -> int:
    """Of a dtype, the significant ones; of what is no narrow floating-point dtype, those of float32."""
    return min(BITS.get(dtype, FULL), FULL)


def suspected(trace: Trace) -> bool:
    """Whether a side has, or asks for, fewer bits than float32."""
    return bool(trace.narrowed) or any(bits(node.dtype) < FULL for node in trace.nodes)


@dataclass(frozen=True)
class Rounding:
    """The narrowest rounding in front of a tensor.

    Attributes:
        dtype: "" where there is none. at: node of the run in the program's dtypes that rounds.
    """

    dtype: str = ""
    at: int = -1

    @property
    def bits(self) -> int:
        return bits(self.dtype)


@dataclass(eq=False)
class Precision:
    """One side: its run in float64, and the same in its own dtypes.

    Attributes:
        wide, own: the runs. shared: tensors of `wide` that the other side computes too.
    """

    wide: Trace
    own: Trace
    shared: frozenset[int] = field(default_factory=frozenset)

    @cached_property
    def stored(self) -> str:
        """The dtype that most numbers of the parameters are stored in."""
        counts: Counter[str] = Counter()
        for node in self.own.nodes:
            if node.kind == "parameter" and node.dtype in BITS:
                counts[node.dtype] += node.value.size
        return counts.most_common(1)[0][0] if counts else "float32"

    @cached_property
    def alike(self) -> dict[int, int]:
        """Operations of `own` -> the same ones of `wide`; casts, which depend on the dtypes, are left out."""
        mine, its = _operations(self.own), _operations(self.wide)
        one, other = ([(t.nodes[n].name, t.nodes[n].where.line) for n in numbers] for t, numbers in
                      ((self.own, mine), (self.wide, its)))  # fmt: skip
        if one == other:
            return dict(zip(mine, its, strict=True))
        blocks = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
        return {mine[block.a + step]: its[block.b + step] for block in blocks for step in range(block.size)}

    @cached_property
    def _settled(self) -> list[bool]:
        """Of each node of `own`, whether the other side computes it too: nothing in front of it counts behind it."""
        return [self.alike.get(number) in self.shared for number in range(len(self.own.nodes))]

    @cached_property
    def _stores(self) -> list[bool]:
        """Whether a node is a parameter, or one that was moved or cast alone."""
        found: list[bool] = []
        for node in self.own.nodes:
            floating = [one for one in node.inputs if self.own.nodes[one].value.dtype.kind == "f"]
            moved = node.kind == "operation" and bool(floating) and all(found[one] for one in floating)
            found.append(node.kind == "parameter" or (moved and (node.name in _CASTS or _moves(self.own, node))))
        return found

    def _rounds(self, number: int) -> bool:
        """Whether an operation gives numbers that its dtype does not hold."""
        node = self.own.nodes[number]
        if node.kind != "operation" or bits(node.dtype) >= FULL or node.dtype not in BITS or self._stores[number]:
            return False
        exact = self.alike.get(number)
        if exact is not None:
            value = self.wide.nodes[exact].value
            return not _moves(self.own, node) and not np.array_equal(rounded(value, node.dtype), value, equal_nan=True)
        given = [self.own.nodes[one].value for one in node.inputs]
        return not any(np.array_equal(one, node.value, equal_nan=True) for one in given if one.dtype.kind == "f")

    @cached_property
    def own_of(self) -> dict[int, int]:
        """`alike` the other way round."""
        return {other: one for one, other in self.alike.items()}

    @cached_property
    def _events(self) -> list[frozenset[int]]:
        """What rounds on the way to each node of `own`, itself included, from the nearest that both sides have."""
        found: list[frozenset[int]] = []
        for number, node in enumerate(self.own.nodes):
            before = [found[one] for one in node.inputs if not self._settled[one]]
            found.append(frozenset().union(*before, [number] if self._rounds(number) else []))
        return found

    def _narrowest(self, events: Iterable[int]) -> Rounding:
        dtypes = ((bits(self.own.nodes[one].dtype), one) for one in events)
        at = min(dtypes, default=None)
        return Rounding() if at is None else Rounding(self.own.nodes[at[1]].dtype, at[1])

    def of(self, number: int) -> Rounding:
        """The narrowest rounding that leads to a tensor of `wide`, from those that both sides have."""
        own = self.own_of.get(number)
        return Rounding() if own is None else self._narrowest(self._events[own])

    def of_output(self, name: str) -> Rounding:
        """The same of an output, behind what both sides have."""
        number = self.own.outputs.get(name)
        return Rounding() if number is None or self._settled[number] else self._narrowest(self._events[number])

    def itself(self, number: int) -> Rounding:
        """The rounding of the operation itself that gives a tensor of `wide`."""
        own = self.own_of[number]
        return self._narrowest(self._events[own] & {own})

    def often(self, number: int, fewer: int, behind: bool = False) -> int:
        """How many roundings to so many bits lead to a tensor of `wide`; those right `behind` it count as one more."""
        own = self.own_of[number]
        count = sum(bits(self.own.nodes[one].dtype) <= fewer for one in self._events[own])
        casts = [self.own.nodes[one].name in _CASTS and one in self._events[one] for one in self._readers.get(own, ())]
        return count + (behind and bool(casts) and all(casts))

    @cached_property
    def _readers(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for number, node in enumerate(self.own.nodes):
            for one in node.inputs:
                found.setdefault(one, []).append(number)
        return found


def _operations(trace: Trace) -> list[int]:
    return [
        number
        for number, node in enumerate(trace.nodes)
        if node.kind == "operation" and node.name not in _CASTS and not node.where.backward
    ]


def _moves(trace: Trace, node: Node) -> bool:
    """Whether all numbers of an operation are among those that it was given."""
    given = [np.ravel(trace.nodes[one].value) for one in node.inputs if trace.nodes[one].value.dtype.kind in "fiu"]
    return bool(given) and bool(np.isin(node.value, np.concatenate(given)).all())


def _computed(trace: Trace, numbers: Mapping[int, Sequence[int]]) -> set[int]:
    nodes = trace.nodes
    return {one for one in numbers if nodes[one].kind == "operation" and not _moves(trace, nodes[one])}


@dataclass(frozen=True, eq=False)
class Sides:
    """Both sides, each with its runs.

    Attributes:
        mine, its: PyTorch's and JAX's. matches: tensors of the runs in float64. ends: names of the outputs compared.
    """

    mine: Precision
    its: Precision
    matches: Matches
    ends: Sequence[tuple[str, str]]

    @classmethod
    def of(
        cls,
        ours: tuple[Trace, Trace],
        theirs: tuple[Trace, Trace],
        matches: Matches,
        ends: Sequence[tuple[str, str]],
    ) -> Sides:
        """Of each side its run in float64 and the one in its own dtypes."""
        here, there = _computed(ours[0], matches.ours), _computed(theirs[0], matches.theirs)
        mine = frozenset(one for one in here if not there.isdisjoint(matches.ours[one]))
        its = frozenset(other for other in there if not here.isdisjoint(matches.theirs[other]))
        return cls(Precision(*ours, mine), Precision(*theirs, its), matches, ends)

    def places(self) -> Iterator[Place]:
        """Where JAX's side rounds to fewer bits than PyTorch's: the first of each stretch; one of a line."""
        found: dict[tuple[str, str], Place] = {}
        for _, other, one, its in self._heads(self.its, self.mine, self.matches.theirs):
            said = f"{_what(self.mine.wide.nodes[other])} computed in {its.dtype}, the original in {one.dtype or _FULL}"
            at = self.its.own.nodes[its.at]
            here = _said(self.mine.wide.nodes[other])
            known = found.setdefault((said, at.where.line), Place((here,), (_said(at),), said, 0.0, rounding=True))
            if here not in (*known.torch, *known.also):
                found[said, at.where.line] = Place(
                    known.torch, known.jax, said, 0.0, (*known.also, here), rounding=True
                )
        yield from found.values()
        for name, other_name in self.ends:
            one, its = self.mine.of_output(name), self.its.of_output(other_name)
            if _fewer(its, one, self.its.stored, self.mine.stored):
                said = f"output computed in {its.dtype}, the original in {one.dtype or _FULL}"
                at = self.its.own.nodes[its.at]
                yield Place((f"output {name}".rstrip(),), (_said(at),), said, 0.0, rounding=True)

    def notes(self) -> Iterator[str]:
        """Where PyTorch's side rounds to fewer bits than JAX's, which is no fault of a port."""
        heads = list(self._heads(self.mine, self.its, self.matches.ours))
        if heads:
            number, _, its, one = heads[0]
            node = self.mine.wide.nodes[number]
            more = f", and at {len(heads) - 1} more places" if len(heads) > 1 else ""
            yield (
                f"PyTorch computes in fewer bits than JAX, no fault of the port: {_what(node)} in {one.dtype}, "
                f"JAX in {its.dtype or _FULL}, at {node.where}{more}"
            )

    def _heads(
        self, mine: Precision, its: Precision, matched: Mapping[int, Sequence[int]]
    ) -> Iterator[tuple[int, int, Rounding, Rounding]]:
        """Tensors in front of which one side rounds more than the other; not those made of such ones.

        Gives the tensor, the other side's, what the other one rounds, and what this one does.
        """
        found: dict[int, tuple[int, int, Rounding, Rounding]] = {}
        for number in sorted(mine.shared):
            own = mine.own_of.get(number)
            partners = [other for other in matched[number] if other in its.shared and other in its.own_of]
            if own is None or not partners:
                continue
            least, other = min(((its.of(other), other) for other in partners), key=lambda pair: (pair[0].bits, pair[1]))
            here = mine.of(number)
            if _fewer(here, least, mine.stored, its.stored):
                found[own] = (number, other, least, here)
            elif all(_oftener(mine, number, its, other) for other in partners):
                found[own] = (number, partners[0], Rounding(), mine.itself(number))
        behind: list[bool] = []
        for number, node in enumerate(mine.own.nodes):
            before = any(behind[one] for one in node.inputs)
            if number in found and not before:
                yield found[number]
            settled = mine.alike.get(number) in mine.shared
            behind.append(number in found if settled else before)


def _fewer(one: Rounding, other: Rounding, stored: str, stored_there: str) -> bool:
    """Whether a side rounds to fewer bits than the other one, beyond what it is stored in."""
    least = other.bits if bits(stored) >= bits(stored_there) else min(other.bits, bits(stored))
    return one.bits < least


def _oftener(mine: Precision, number: int, its: Precision, other: int) -> bool:
    """Whether a side computes in fewer bits what the other one computes in more and rounds at most at its end."""
    here = mine.itself(number)
    if here.bits >= FULL or its.itself(other).bits <= here.bits or bits(mine.stored) < bits(its.stored):
        return False
    return mine.often(number, here.bits) > its.often(other, here.bits, behind=True)


def _what(node: Node) -> str:
    return _WORDS.get(node.name, node.name)


def _said(node: Node) -> str:
    return f"{node.name} at {node.where}"


def roundings(
    ours: Trace,
    theirs: Trace,
    runs: Sequence[Callable[[], Trace]],
    matches: Matches,
    ends: Sequence[tuple[str, str]],
) -> tuple[tuple[Place, ...], tuple[str, ...]]:
    """Places where JAX's side rounds to fewer bits than PyTorch's, and what else is to be said of it.

    Args:
        ours, theirs: the runs in float64. runs: run each side once more, in its own dtypes.
        matches: tensors of the runs in float64. ends: names of the outputs that are compared.
    """
    try:
        own, other = (run() for run in runs)
    except Exception as error:  # programs of others, which may ask for what a processor does not have
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return (), (f"nothing is said of where they round: in its own dtypes a side does not run ({said})",)
    both = Sides.of((ours, own), (theirs, other), matches, ends)
    return tuple(both.places()), tuple(both.notes())
