"""The search for the places where two recorded programs part, and for what explains each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskattn.diagnose.matching import Keys, Matches, Rows, distance, drawn, frontier, key_of, match
from maskattn.diagnose.outputs import Outputs
from maskattn.diagnose.reading import reads
from maskattn.diagnose.report import Place
from maskattn.diagnose.trace import Node
from maskattn.typing import NumPyArray

#: What rounding to float32 moves a number by, with some room.
ROUNDED = 2.0**-22
#: How many places are looked for.
MOST = 24
#: How many edits are looked at to the end of the program.
SHORTLIST = 12
#: How many calls around the first difference are tried to be changed, before it and behind.
BEFORE, BEHIND = 60, 40
#: How many times less an edit must leave of the difference of the outputs, where nothing else speaks for it.
LESS = 100

#: An edit that leaves more than this of the difference is less than what the operations themselves read.
_LITTLE = 0.5
#: What PyTorch says to an edit that cannot be computed.
_IMPOSSIBLE = (RuntimeError, TypeError, IndexError, ValueError)


@dataclass
class Comparison:
    """Two recorded programs.

    Attributes:
        tracing: what PyTorch's side is edited with. program: PyTorch's. theirs: JAX's.
        outputs: which are compared. progress: called with what is being done.
    """

    tracing: Any
    program: Any
    theirs: Keys
    tolerance: float
    outputs: Outputs
    progress: Callable[[str], None] = lambda what: None

    def __post_init__(self) -> None:
        self.program = self._with_tables(self.program)

    def places(self) -> tuple[Place, ...]:
        """Looks for places until the outputs agree, or a place is not explained."""
        places: list[Place] = []
        while len(places) < MOST and self.error(self.program) > self.tolerance:
            self.progress(f"place {len(places) + 1}")
            place, changed = self.next_place(self.program)
            if not place.torch and not place.jax:
                break
            places.append(place)
            if changed is None:
                break
            self.program = changed
        return tuple(places)

    def _with_tables(self, program: Any) -> Any:
        """The program with JAX's numbers in tables that PyTorch keeps in float32 and JAX computes in float64, and in
        single numbers.
        """
        nodes, ours = self.theirs.trace.nodes, Keys(program.recording)
        single = [float(node.value.item()) for node in nodes if node.value.size == 1 and node.value.dtype.kind == "f"]
        tables = [one for one in self.theirs.telling if nodes[one].kind == "operation"]
        found: dict[int, NumPyArray] = {}
        for number in program.recording.rounded:
            key, value = ours[number], program.recording.nodes[number].value
            if value.size == 1:
                near = [one for one in single if value.item() and _by_rounding(abs(one / value.item() - 1))]
                if near:
                    found[number] = np.full(value.shape, near[0])
            for other in tables if key is not None else ():
                its = self.theirs[other]
                if its is not None and key is not None and _by_rounding(distance(key, its)):
                    made = np.empty(value.size)
                    made[np.argsort(value, axis=None, kind="stable")] = np.sort(nodes[other].value, axis=None)
                    found[number] = made.reshape(value.shape)
        return program.holding(found) if found else program

    def error(self, program: Any) -> float:
        """How far the outputs are apart."""
        errors = self.outputs.errors(program.recording, self.theirs.trace, self.theirs.kept)
        return max(errors, default=float("inf"))

    def first(self, program: Any) -> tuple[list[int], list[int], Matches]:
        """The first tensors of both sides that the other one lacks, and which match."""
        recording, theirs = program.recording, self.theirs.trace
        ours = Keys(recording, self.theirs.kept)
        matches = match(ours, self.theirs, self.tolerance)
        ends = self.outputs.numbers(recording, theirs)
        here = frontier(ours, matches.ours, [one for one, _ in ends])
        there = frontier(self.theirs, matches.theirs, [other for _, other in ends])
        if not here and not there:  # the same numbers, arranged otherwise
            errors = self.outputs.errors(recording, theirs, self.theirs.kept)
            wrong = [pair for pair, error in zip(ends, errors, strict=True) if error > self.tolerance]
            here, there = [one for one, _ in wrong], [other for _, other in wrong]
        return here, there, matches

    def next_place(self, program: Any) -> tuple[Place, Any]:
        """The first place where the programs part, and PyTorch's with the edit that explains it; None: none does."""
        recording, theirs = program.recording, self.theirs.trace
        here, there, matches = self.first(program)
        at = Place(tuple(_said(recording.nodes[one]) for one in here), tuple(_said(theirs.nodes[one]) for one in there))
        random = drawn(theirs, there)
        if random is not None:  # nothing can be said of what is computed from them
            return replace(at, diagnosis=f"random numbers are drawn (dropout is on): {random}"), None
        edit = self.explained(program, here, there, matches) or self._without(program, here, there, matches)
        before = self.error(program)
        if edit is None or not edit.kind.startswith("operand"):
            read = reads(Keys(recording, self.theirs.kept), self.theirs, here, there, matches, self.tolerance)
            if edit is None or (read and self._left(program, edit) > _LITTLE * before):
                return replace(at, diagnosis=read), None
        edit, places = self.everywhere(program, edit)
        also = tuple(where for where in places if not any(said.endswith(f" at {where}") for said in at.torch))
        changed = program.applying(edit)
        return replace(at, diagnosis=edit.text, share=self.error(changed) / before, also=also), changed

    def explained(self, program: Any, here: list[int], there: list[int], matches: Matches) -> Any:
        """The edit behind which most tensors of the JAX side are PyTorch's again."""
        met = here or [one for other in self._met(there, matches) for one in matches.theirs[other]]
        anchor = [program.made_by[one] for one in met if one in program.made_by]
        if not anchor:
            return None
        first, last = min(anchor), max(anchor)
        near = frozenset(range(max(0, first - BEFORE), min(len(program.calls), last + BEHIND)))
        near = _related(program, met, near)
        constants = self._constants(there)
        program = replace(program, near=near, constants=constants, known=frozenset(matches.ours))
        unmatched = self._open(there, matches)
        if not unmatched:
            return self._by_outputs(program, self.tracing.edits(program), last)
        scores: list[tuple[int, Any]] = []
        most = 0
        whole = None
        tried: list[Any] = []
        for edit in self.tracing.edits(program):
            tried.append(edit)
            if whole is not None and whole.changes.keys().isdisjoint(edit.changes):
                continue
            score = self._score(program, edit, unmatched, BEHIND)
            if score:
                scores.append((score, edit))
            if score > most:
                most = score
                if self._left(program, edit) <= self.tolerance:  # no edit of other calls can say more
                    whole = edit
        if whole is not None:
            return whole
        if not scores:
            return self._together(program, tried, unmatched) or self._by_outputs(program, tried, last)
        scores.sort(key=lambda one: -one[0])
        best = [edit for score, edit in scores[:SHORTLIST] if 2 * score >= scores[0][0]]
        return max(best, key=lambda edit: self._score(program, edit, unmatched, None), default=None)

    def _together(self, program: Any, edits: Sequence[Any], unmatched: Mapping[int, Rows]) -> Any:
        """The edit that explains tensors where all of a module that are alike are done: of queries and keys, say."""
        groups: dict[tuple[object, ...], list[Any]] = {}
        for edit in edits:
            made = program.calls[min(edit.changes)].outputs[0]
            shape = None if made is None else program.recording.nodes[made].value.shape
            for key in ((), (shape,)):  # a split of queries is also alike one of products, whose shape is another
                groups.setdefault((edit.kind, _module(program, edit), *key), []).append(edit)
        scores = []
        for alike in groups.values():
            if len(alike) > 1:
                every = replace(alike[0], changes=_changes(alike))
                scores.append((self._score(program, every, unmatched, BEHIND), every))
        most = max(scores, key=lambda one: one[0], default=(0, None))
        return most[1] if most[0] else None

    def _without(self, program: Any, here: list[int], there: list[int], matches: Matches) -> Any:
        """An edit that makes of the first difference what the JAX side has already, and behind which another edit
        explains the rest: two faults with no tensor between them, such as a scale that is missing in front of a mask.
        """
        calls = {program.made_by[one] for one in here if one in program.made_by}
        keys = [key for one in matches.theirs if (key := self.theirs[one]) is not None]
        sizes = {key.size for key in keys}
        known = {size: Rows(np.stack([key for key in keys if key.size == size])) for size in sizes}
        near = replace(program, near=frozenset(calls), constants=self._constants(there))
        tried: set[frozenset[int]] = set()
        for edit in self.tracing.edits(near):
            at = frozenset(edit.changes)
            if not at <= calls or at in tried:
                continue
            try:
                made = program.play([edit], most=0)
            except _IMPOSSIBLE:
                continue
            if self._again(made, known):
                tried.add(at)
                changed = program.applying(edit)
                if self.explained(changed, *self.first(changed)) is not None:
                    return edit
        return None

    def _by_outputs(self, program: Any, edits: Iterable[Any], last: int) -> Any:
        """The edit behind which the outputs agree best, where no tensor tells; None where none helps much.

        Args:
            last: the number of a call; outputs that are made far behind it are not computed with each edit.
        """
        ends = [program.made_by.get(one, 0) for one, _ in self.outputs.numbers(program.recording, self.theirs.trace)]
        if max(ends, default=0) > last + 2 * BEHIND:
            return None
        least, found = self.error(program) / LESS, None
        for edit in edits:
            error = self._left(program, edit)
            if error < least:
                least, found = error, edit
                if error <= self.tolerance:
                    break
        return found

    def _met(self, there: list[int], matches: Matches) -> list[int]:
        """The last tensors of the JAX side that PyTorch's has too, in front of these."""
        found: list[int] = []
        todo = list(there)
        while todo:
            for number in self.theirs.trace.nodes[todo.pop()].inputs:
                if number in matches.theirs:
                    found.append(number)
                elif self.theirs.trace.nodes[number].kind == "operation":
                    todo.append(number)
        return found

    def _left(self, program: Any, edit: Any) -> float:
        """How far the outputs are apart with an edit; inf where it cannot be computed."""
        try:
            return self.error(program.applying(edit))
        except _IMPOSSIBLE:
            return float("inf")

    def _score(self, program: Any, edit: Any, unmatched: Mapping[int, Rows], most: int | None) -> int:
        try:
            made = program.play([edit], most=most)
        except _IMPOSSIBLE:
            return 0  # what cannot be computed was not done
        return self._again(made, unmatched)

    def everywhere(self, program: Any, edit: Any) -> tuple[Any, tuple[str, ...]]:
        """The edit at all places of its module, of that module in all layers, of its layer, its stack or the program
        where the same can be done.

        The first of these that explains all counts, else the one that explains most, where that is a lot.
        """
        wide = replace(program, near=frozenset(range(len(program.calls))))
        done = {at for one in program.applied if one.kind == edit.kind for at in one.changes}
        alike = [one for one in self.tracing.edits(wide) if one.kind == edit.kind and done.isdisjoint(one.changes)]
        module = program.calls[min(edit.changes)].where.module.split(".")
        least = 0.5 * self._left(program, edit)
        found: tuple[Any, tuple[str, ...]] = (edit, ())
        tried = {frozenset(edit.changes)}
        within = lambda one, depth: _module(program, one).split(".")[:depth] == module[:depth]  # noqa: E731
        scopes = [[one for one in alike if within(one, depth)] for depth in range(len(module), -1, -1)]
        beside = [one for one in alike if _numberless(_module(program, one)) == _numberless(".".join(module))]
        for same in (scopes[0], beside, *scopes[1:]):
            changes = _changes(same) | dict(edit.changes)
            if frozenset(changes) in tried:
                continue
            tried.add(frozenset(changes))
            every = replace(edit, changes=changes)
            left = self._left(program, every)
            if left < least or left <= self.tolerance:
                where = tuple(dict.fromkeys(str(program.calls[min(one.changes)].where) for one in same))
                least, found = left, (every, where)
                if left <= self.tolerance:
                    break
        return found

    def _constants(self, there: list[int]) -> tuple[float, ...]:
        """Numbers that the JAX side uses around its first difference."""
        nodes = self.theirs.trace.nodes
        around = set(there)
        for _ in range(5):
            around |= {before for one in around for before in nodes[one].inputs}
        first = min(there, default=0)
        found = {float(nodes[one].value.ravel()[0]) for one in around if nodes[one].value.size == 1}
        later = range(first, min(len(nodes), first + 60))
        found |= {float(nodes[one].value.ravel()[0]) for one in later if nodes[one].value.size == 1}
        return tuple(sorted(one for one in found if np.isfinite(one)))

    def _open(self, there: list[int], matches: Matches) -> dict[int, Rows]:
        """Tensors of the JAX side behind its first difference, by their sizes."""
        trace = self.theirs.trace
        behind = set(there)
        for number in range(min(there, default=0), len(trace.nodes)):
            if any(before in behind for before in trace.nodes[number].inputs):
                behind.add(number)
        found: dict[int, list[NumPyArray]] = {}
        for number in sorted(behind & set(self.theirs.telling)):
            key = self.theirs[number]
            if number not in matches.theirs and key is not None:
                found.setdefault(key.size, []).append(key)
        return {size: Rows(np.stack(keys)) for size, keys in found.items()}

    def _again(self, made: Mapping[int, NumPyArray], unmatched: Mapping[int, Rows]) -> int:
        """How many tensors of the JAX side are among those that were made."""
        kept = self.theirs.kept
        hit: set[tuple[int, int]] = set()
        for value in made.values():
            one = value if kept is None else kept.of(value)
            rows = unmatched.get(one.size)
            if rows is not None and rows.may_hold(one, self.tolerance):
                key = key_of(one)
                if key is not None:
                    hit |= {(key.size, row) for row in rows.like(key, self.tolerance)}
        return len(hit)


def _by_rounding(error: float) -> bool:
    """Whether rounding to float32 makes such a relative difference."""
    return 0 < error <= ROUNDED


def _related(program: Any, here: Iterable[int], near: frozenset[int]) -> frozenset[int]:
    """Of the calls near by those that lead to the first difference, or from it, and those that meet it there."""
    found = {program.made_by[one] for one in here if one in program.made_by}

    def add_makers() -> None:
        for at in sorted(near, reverse=True):
            made = [number for number in program.calls[at].outputs if number is not None]
            if any(reader in found for number in made for reader in program.read_by.get(number, ())):
                found.add(at)

    add_makers()
    for at in sorted(near):
        if any(program.made_by.get(number) in found for number in program.taken[at]):
            found.add(at)
    add_makers()
    return frozenset(found & near)


def _numberless(module: str) -> str:
    """A path without the numbers of layers."""
    return re.sub(r"\d+", "#", module)


def _module(program: Any, edit: Any) -> str:
    module: str = program.calls[min(edit.changes)].where.module
    return module


def _changes(edits: Iterable[Any]) -> dict[int, Any]:
    """What several edits change, by the numbers of the calls."""
    return {at: change for edit in edits for at, change in edit.changes.items()}


def _said(node: Node) -> str:
    return f"{node.name} at {node.where}"
