"""A recorded PyTorch program run once more, with some of its operations changed: what another program may have done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from maskattn.typing import NumPyArray
from maskattn_torch.tracing.record import Called, Recording, Ref, _numbers

#: What an operation computes instead: from its arguments, and from what it would have given.
Change: TypeAlias = Callable[..., object]


@dataclass(frozen=True, eq=False)
class Edit:
    """A way to compute something else.

    Attributes:
        text: what the other program does, "the eps of the norm is 1e-05, not 1e-12".
        kind: the same for edits of other places that do the same to them.
        changes: numbers of calls -> (operator, args, kwargs) -> what they give instead.
    """

    text: str
    kind: str
    changes: Mapping[int, Change]


#: Names of operators that give the same numbers in another shape.
VIEWS = ("view", "_unsafe_view", "reshape")
#: Views that ask for strides, which an edit may have changed.
_REPLAYED: Mapping[str, Callable[..., Tensor]] = {"view": torch.reshape, "_unsafe_view": torch.reshape}


class Edits(Protocol):
    """A family of edits: gives those of a program."""

    def __call__(self, program: Program, /) -> Iterator[Edit]: ...


@dataclass(eq=False)
class Playing:
    """What is being played.

    Attributes:
        program: which; None: none. fresh: nodes that are computed anew.
        writes: whether what is written into memory that several nodes share is written again.
    """

    program: Program | None = None
    fresh: dict[int, Tensor] = field(default_factory=dict)
    writes: bool = False


@dataclass(eq=False)
class Program:
    """A recorded program, as edits see it.

    Attributes:
        recording: the run.
        near: numbers of the calls that edits are wanted of.
        constants: numbers that the other program uses near the same place, for scales, eps and fills.
        known: nodes that the other program has too; where none is given, no tensor is taken from elsewhere.
        applied: edits that are part of the program already.
        playing: what is being played, which programs made of each other share.
    """

    recording: Recording
    near: frozenset[int] = frozenset()
    constants: tuple[float, ...] = ()
    known: frozenset[int] = frozenset()
    applied: tuple[Edit, ...] = ()
    playing: Playing = field(default_factory=lambda: Playing())

    @property
    def calls(self) -> list[Called]:
        return self.recording.calls

    @cached_property
    def made_by(self) -> dict[int, int]:
        """Of each node the call that made it."""
        return {number: at for at, call in enumerate(self.calls) for number in call.outputs if number is not None}

    @cached_property
    def read_by(self) -> dict[int, list[int]]:
        """Of each node the calls that take it."""
        found: dict[int, list[int]] = {}
        for at in range(len(self.calls)):
            for number in dict.fromkeys(self.taken[at]):
                found.setdefault(number, []).append(at)
        return found

    @cached_property
    def taken(self) -> list[list[int]]:
        """Of each call the nodes that it takes."""
        return [refs(call) for call in self.calls]

    @cached_property
    def learned(self) -> frozenset[int]:
        """Nodes that depend on parameters, or on inputs that are no tokens."""
        found: set[int] = set()
        for number, node in enumerate(self.recording.nodes):
            given = node.kind == "parameter" or (node.kind == "input" and node.value.dtype.kind == "f")
            if given or not found.isdisjoint(node.inputs):
                found.add(number)
        return frozenset(found)

    def tensor(self, number: int) -> Tensor:
        """The numbers of a node."""
        return torch.from_numpy(self.recording.nodes[number].value.copy())

    def now(self, number: int) -> Tensor:
        """The numbers of a node in the program as it is being played: for changes."""
        program = self.playing.program or self
        return program._taken(number, self.playing.fresh)

    def maker(self, number: int) -> Called | None:
        """The call that made a node; None of what no operation made."""
        at = self.made_by.get(number)
        return None if at is None else self.calls[at]

    def play(
        self, edits: Iterable[Edit] = (), most: int | None = None, leaves: Iterable[int] = ()
    ) -> dict[int, NumPyArray]:
        """What the nodes are that depend on these edits: computed anew, in float64, with what is applied already.

        Args:
            most: how many calls are computed behind the last one that the edits change; None: all.
            leaves: nodes whose numbers have changed.
        """
        new = {at: change for edit in edits for at, change in edit.changes.items()}
        changes: dict[int, Change] = {}
        for at, change in (*(pair for edit in self.applied for pair in edit.changes.items()), *new.items()):
            changes[at] = _both(changes[at], change) if at in changes else change
        fresh = self.playing.fresh
        fresh.update({number: self.tensor(number) for number in leaves})
        self.playing.writes = bool(fresh) or self._writes(new)
        first = 0 if self.playing.writes else min(new, default=len(self.calls))
        self.playing.program = self
        try:
            self._played(changes, new, first, most)
            found = {number: _values(tensor) for number, tensor in fresh.items()}
        finally:
            fresh.clear()
            self.playing.program, self.playing.writes = None, False
        return found | {number: found[before] for number, before in self.recording.again.items() if before in found}

    def _writes(self, new: Mapping[int, Change]) -> bool:
        """Whether what depends on new changes is written into memory that several nodes share, or is such memory."""
        shared, found = self.recording.shared, set[int]()
        for at in range(min(new, default=len(self.calls)), len(self.calls)) if shared else ():
            if at in new or not found.isdisjoint(self.taken[at]):
                made = [number for number in self.calls[at].outputs if number is not None]
                if self.calls[at].writes or not shared.isdisjoint(made):
                    return True
                found.update(made)
        return False

    def _played(self, changes: Mapping[int, Change], new: Mapping[int, Change], first: int, most: int | None) -> None:
        """Computes the calls from the first one that depend on new changes, each with all of its changes."""
        fresh, shared = self.playing.fresh, self.recording.shared if self.playing.writes else frozenset[int]()
        last, count = max(new, default=0), 0
        for at in range(first, len(self.calls)):
            call = self.calls[at]
            known = not any(number in fresh or number in shared for number in self.taken[at])
            if known and at not in new and shared.isdisjoint(call.outputs):
                continue
            count += at > last
            if most is not None and count > most:
                break
            args, kwargs = self._given(call, fresh)
            change = changes.get(at)
            operator = _REPLAYED.get(name_of(call), call.operator)
            if change is None:
                out = operator(*args, **kwargs)
            else:  # kernels of PyTorch ask for a last axis without gaps
                out = pytree.tree_map_only(Tensor, torch.Tensor.contiguous, change(operator, args, kwargs))
            made = [out] if isinstance(out, Tensor) else pytree.tree_leaves(out)
            for number, one in zip(call.outputs, made, strict=True):
                if number is not None:
                    fresh[number] = one

    def applying(self, edit: Edit) -> Program:
        """The program with an edit that is part of it from now on."""
        made = self.play([edit])
        nodes = [replace(node, value=made[at]) if at in made else node for at, node in enumerate(self.recording.nodes)]
        return replace(self, recording=replace(self.recording, nodes=nodes), applied=(*self.applied, edit))

    def holding(self, values: Mapping[int, NumPyArray]) -> Program:
        """The program with other numbers in some of its leaves."""
        nodes = list(self.recording.nodes)
        for number, value in values.items():
            nodes[number] = replace(nodes[number], value=value)
        program = replace(self, recording=replace(self.recording, nodes=nodes))
        made = program.play(leaves=values)
        nodes = [replace(node, value=made[at]) if at in made else node for at, node in enumerate(nodes)]
        return replace(self, recording=replace(self.recording, nodes=nodes))

    def _given(self, call: Called, fresh: dict[int, Tensor]) -> tuple[Sequence[object], dict[str, object]]:
        if call.plain:  # most are
            given = lambda one: self._taken(one.number, fresh) if isinstance(one, Ref) else one  # noqa: E731
            return tuple(map(given, call.args)), {name: given(one) for name, one in call.kwargs.items()}
        leaves, spec = call.flat
        taken = [self._taken(one.number, fresh) if isinstance(one, Ref) else one for one in leaves]
        args, kwargs = pytree.tree_unflatten(taken, spec)
        return args, kwargs

    def _taken(self, number: int, fresh: dict[int, Tensor]) -> Tensor:
        while self.playing.writes and number in self.recording.again and number not in fresh:
            number = self.recording.again[number]
        if number not in fresh:
            found = self.tensor(number)
            if not self.playing.writes or number not in self.recording.shared:
                return found
            fresh[number] = found
        return fresh[number]


def _values(tensor: Tensor) -> NumPyArray:
    """The numbers of a tensor that nothing writes into any more: its own memory, where that is float64."""
    return tensor.numpy() if tensor.dtype in (torch.float64, torch.int64, torch.bool) else _numbers(tensor)


def _both(first: Change, second: Change) -> Change:
    """Two changes of one call: the second takes what the first makes of the operator for the operator."""
    return lambda operator, args, kwargs: second(lambda *a, **k: first(operator, a, k), args, kwargs)


def name_of(call: Called) -> str:
    """What PyTorch calls an operator: "mul.Tensor", "bmm"."""
    return str(call.operator).removeprefix("aten.").removesuffix(".default")


def refs(call: Called) -> list[int]:
    """Numbers of the tensors that a call takes."""
    return [one.number for one in call.flat[0] if isinstance(one, Ref)]
