"""What may be done otherwise in attention: its mask, its scale, its softmax, its groups of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskattn.diagnose.masks import mistakes
from maskattn_torch.tracing.record import Called, Ref
from maskattn_torch.tracing.replay import VIEWS, Change, Edit, Program, name_of

#: What is at least this low is masked out.
MASKED = -1e3
#: What stands for minus infinity, without the NaN of a row that attends to nothing.
FILL = -1e30


def edits(program: Program) -> Iterator[Edit]:
    """Of each softmax that is near."""
    softmaxes = [at for at, call in enumerate(program.calls) if name_of(call) == "_softmax"]
    near = [at for at in softmaxes if at in program.near]
    others = list(_others(program, softmaxes)) if near else []
    for at in near:
        yield from _of_softmax(program, at, others)


def _others(program: Program, softmaxes: Iterable[int]) -> Iterator[tuple[str, Tensor]]:
    """Masks of a program, each once, with where it is used first: layers may have different ones."""
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for at in softmaxes:
        mask = _masking(program, at)
        if mask is not None:
            key = tuple(mask.allowed.shape), mask.allowed.contiguous().numpy().tobytes()
            if key not in seen:
                seen.add(key)
                yield f"the mask is that of {program.calls[at].where.module}", mask.allowed


def _masks(allowed: Tensor) -> Iterator[tuple[str, Tensor]]:
    for text, other in mistakes(allowed.numpy()):
        yield text, torch.from_numpy(np.ascontiguousarray(other))


def _fills(program: Program) -> list[float]:
    common = [0.0, -1.0, -10.0, -100.0, -1e3, -1e4]
    used = {sign * abs(one) for one in program.constants if 1e-3 < abs(one) < 1e5 for sign in (1, -1)}
    return [*common, *sorted(used.difference(common))]


@dataclass(frozen=True)
class Masking:
    """The call that masks scores: scores [..., L, S] and who may attend.

    Attributes:
        at: its number. place: which argument the scores are. added: whether the other one is added to them.
    """

    at: int
    place: int
    allowed: Tensor
    added: bool = False

    def scores(self, args: tuple[Tensor, ...]) -> Tensor:
        """Scores without the mask; a bias of positions may be in one tensor with the mask."""
        if not self.added:
            return args[self.place]
        other = args[1 - self.place]
        return args[self.place] + torch.where(other > MASKED, other, 0.0)


def _of_softmax(program: Program, at: int, others: Sequence[tuple[str, Tensor]]) -> Iterator[Edit]:
    call = program.calls[at]
    scores = program.recording.nodes[_ref(call.args[0])].value
    if scores.ndim < 3 or call.args[1] not in (-1, scores.ndim - 1):
        return
    yield Edit("the softmax is over the queries, not the keys", "softmax axis", {at: _axis(-2)})
    if scores.ndim > 3 and scores.shape[1] > 1:
        yield Edit("the softmax is over the heads, not the keys", "softmax over heads", {at: _axis(1)})
    yield Edit("sigmoid stands in the place of the softmax", "sigmoid", {at: lambda _, args, kwargs: args[0].sigmoid()})
    yield Edit("the softmax has 1 more in its denominator", "softmax1", {at: _sink})
    mask = _masking(program, at)
    if mask is None:
        for text, other in _masks(torch.ones(scores.shape, dtype=torch.bool)):
            yield Edit(text, text, {at: _masked_softmax(other)})
    else:
        alike = ((text, one) for text, one in others if one.shape == mask.allowed.shape)
        for text, other in (*_masks(mask.allowed), *alike):
            if not torch.equal(other, mask.allowed):
                yield Edit(text, text, {mask.at: _masked(mask, other, FILL)})
                if not bool(other.any(-1).all()):
                    said = f"{text}; rows that attend to nothing are NaN"
                    yield Edit(said, said, {mask.at: _masked(mask, other, float("-inf"))})
        if not bool(mask.allowed.all()):
            yield from _of_fill(program, at, mask)
    yield from _of_groups(program, at)


def _of_fill(program: Program, softmax: int, mask: Masking) -> Iterator[Edit]:
    for fill in _fills(program):
        if fill:
            text = f"what is masked out gets {fill:g} added, not minus infinity"
            yield Edit(text, text, {mask.at: _added(mask, fill)})
        text = f"what is masked out is {fill:g}, not minus infinity"
        yield Edit(text, text, {mask.at: _masked(mask, mask.allowed, fill)})
    text = "the mask is applied behind the softmax"
    plain: Change = lambda _, args, kwargs: mask.scores(args)  # noqa: E731
    yield Edit(text, text, {mask.at: plain, softmax: _behind(mask.allowed)})


def _ref(one: object) -> int:
    assert isinstance(one, Ref)
    return one.number


def _masking(program: Program, softmax: int) -> Masking | None:
    """The call that masks the scores of a softmax, looked for upwards."""
    at = softmax
    for _ in range(12):
        call = program.calls[at]
        source = next((one for one in call.args if isinstance(one, Ref)), None)
        name = name_of(call)
        if name in ("add.Tensor", "masked_fill.Scalar", "masked_fill.Tensor", "where.self") and at != softmax:
            found = _mask_of(program, at, call, name)
            if found is not None:
                return found
        if source is None:
            return None
        above = program.made_by.get(source.number)
        if above is None or name in ("bmm", "matmul", "mm"):
            return None
        at = above
    return None


def _mask_of(program: Program, at: int, call: Called, name: str) -> Masking | None:
    made = program.recording.nodes[_ref(Ref(call.outputs[0] or 0))].value
    if name == "add.Tensor":
        for place in (0, 1):
            other = call.args[1 - place]
            if isinstance(other, Ref) and isinstance(call.args[place], Ref):
                mask = program.tensor(other.number)
                if (mask <= MASKED).any() and bool(((mask <= MASKED) | (mask.abs() < 100)).all()):
                    return Masking(at, place, (mask > MASKED).broadcast_to(made.shape), added=True)
        return None
    if name == "where.self":
        return Masking(at, 1, program.tensor(_ref(call.args[0])).bool().broadcast_to(made.shape))
    return Masking(at, 0, ~program.tensor(_ref(call.args[1])).bool().broadcast_to(made.shape))


def _axis(axis: int) -> Change:
    return lambda _, args, kwargs: torch.softmax(args[0], axis)


def _sink(_: object, args: tuple[Tensor, ...], kwargs: object) -> Tensor:
    more = torch.cat([args[0], torch.zeros_like(args[0][..., :1])], -1)
    return torch.softmax(more, -1)[..., :-1]


def _masked(mask: Masking, allowed: Tensor, fill: float) -> Change:
    return lambda _, args, kwargs: torch.where(allowed, mask.scores(args), fill)


def _added(mask: Masking, fill: float) -> Change:
    return lambda _, args, kwargs: mask.scores(args) + fill * (~mask.allowed)


def _behind(allowed: Tensor) -> Change:
    return lambda _, args, kwargs: torch.softmax(args[0], -1) * allowed


def _masked_softmax(allowed: Tensor) -> Change:
    return lambda _, args, kwargs: torch.softmax(torch.where(allowed, args[0], FILL), -1)


def _of_groups(program: Program, softmax: int) -> Iterator[Edit]:
    """Heads of keys and values, tiled where they are repeated: at the calls that make them one axis."""
    changes: dict[int, Change] = {}
    module = program.calls[softmax].where.module
    for at in sorted(program.near):
        call = program.calls[at]
        if call.where.module == module and name_of(call) in ("clone", *VIEWS):
            source = program.maker(_ref(call.args[0])) if isinstance(call.args[0], Ref) else None
            if source is not None and name_of(source) == "expand":
                before = program.recording.nodes[_ref(source.args[0])].value.shape
                after = program.recording.nodes[_ref(call.args[0])].value.shape
                if len(after) == 5 and before[2] == 1 and after[2] > 1:
                    changes[at] = _tiled
    if changes:
        text = "heads of keys and values are tiled (0, 1, 0, 1), not repeated (0, 0, 1, 1)"
        yield Edit(text, "tiled heads", changes)


def _tiled(operator: Callable[..., Tensor], args: tuple[Tensor, ...], kwargs: dict[str, object]) -> Tensor:
    x = args[0]
    turned = x.transpose(1, 2).reshape(x.shape)
    return operator(turned, *args[1:], **kwargs)
