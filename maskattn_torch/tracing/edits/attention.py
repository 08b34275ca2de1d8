"""What may be done otherwise in attention: its mask, its scale, its softmax, its groups of heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskattn.diagnose.masks import mistakes
from maskattn_torch.tracing.record import Called, Ref
from maskattn_torch.tracing.replay import Change, Edit, Program, name_of

#: What is at least this low is masked out.
MASKED = -1e3
#: What stands for minus infinity, without the NaN of a row that attends to nothing.
FILL = -1e30
_SDPA = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable")


def edits(program: Program) -> Iterator[Edit]:
    """Of each softmax that is near, and of each call of PyTorch's attention."""
    for at in sorted(program.near):
        name = name_of(program.calls[at])
        if name in _SDPA:
            yield from _of_sdpa(program, at)
        elif name == "_softmax":
            yield from _of_softmax(program, at)


def _masks(allowed: Tensor) -> Iterator[tuple[str, Tensor]]:
    for text, other in mistakes(allowed.numpy()):
        yield text, torch.from_numpy(np.ascontiguousarray(other))


def _fills(program: Program) -> list[float]:
    common = {-1.0, -10.0, -100.0, -1e3, -1e4}
    return sorted(common | {-abs(one) for one in program.constants if 0 < abs(one) < 1e5})


# A softmax by itself --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Masking:
    """The call that masks scores: scores [..., L, S] and who may attend.

    Attributes:
        at: its number. place: which argument the scores are.
    """

    at: int
    place: int
    allowed: Tensor


def _of_softmax(program: Program, at: int) -> Iterator[Edit]:
    call = program.calls[at]
    scores = program.recording.nodes[_ref(call.args[0])].value
    if scores.ndim < 3 or call.args[1] not in (-1, scores.ndim - 1):
        return
    yield Edit("the softmax is over the queries, not the keys", "softmax axis", {at: _axis(-2)})
    yield Edit("the softmax is over the heads, not the keys", "softmax over heads", {at: _axis(1)})
    yield Edit("sigmoid stands in the place of the softmax", "sigmoid", {at: lambda _, args, kwargs: args[0].sigmoid()})
    yield Edit("the softmax has 1 more in its denominator", "softmax1", {at: _sink})
    mask = _masking(program, at)
    allowed = torch.ones(scores.shape, dtype=torch.bool) if mask is None else mask.allowed
    where, place = (at, 0) if mask is None else (mask.at, mask.place)
    for text, other in _masks(allowed):
        if mask is None:
            yield Edit(text, text, {at: _masked_softmax(other)})
        else:
            yield Edit(text, text, {where: _masked(place, other, FILL)})
    if mask is not None and not bool(allowed.all()):
        for fill in _fills(program):
            text = f"what is masked out gets {fill:g} added, not minus infinity"
            yield Edit(text, text, {where: _added(place, allowed, fill)})
            text = f"what is masked out is {fill:g}, not minus infinity"
            yield Edit(text, text, {where: _masked(place, allowed, fill)})
        text = "the mask is applied behind the softmax"
        yield Edit(text, text, {where: _plain(place), at: _behind(allowed)})
    yield from _of_groups(program, at)


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
                    return Masking(at, place, (mask > MASKED).broadcast_to(made.shape))
        return None
    if name == "where.self":
        return Masking(at, 1, program.tensor(_ref(call.args[0])).bool().broadcast_to(made.shape))
    return Masking(at, 0, ~program.tensor(_ref(call.args[1])).bool().broadcast_to(made.shape))


def _axis(axis: int) -> Change:
    return lambda _, args, kwargs: torch.softmax(args[0], axis)


def _sink(_: object, args: tuple[Tensor, ...], kwargs: object) -> Tensor:
    more = torch.cat([args[0], torch.zeros_like(args[0][..., :1])], -1)
    return torch.softmax(more, -1)[..., :-1]


def _masked(place: int, allowed: Tensor, fill: float) -> Change:
    return lambda _, args, kwargs: torch.where(allowed, args[place], fill)


def _added(place: int, allowed: Tensor, fill: float) -> Change:
    return lambda _, args, kwargs: args[place] + fill * (~allowed)


def _plain(place: int) -> Change:
    return lambda _, args, kwargs: args[place]


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
        if call.where.module == module and name_of(call) in ("clone", "view", "_unsafe_view", "reshape"):
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


# PyTorch's attention --------------------------------------------------------------------------------------------------


def _of_sdpa(program: Program, at: int) -> Iterator[Edit]:
    call = program.calls[at]
    query, key = (program.recording.nodes[_ref(one)].value for one in call.args[:2])
    length, keys, size = query.shape[-2], key.shape[-2], query.shape[-1]
    causal = bool(call.args[4]) if len(call.args) > 4 else False
    mask = call.kwargs.get("attn_mask")
    allowed = torch.ones(query.shape[0], query.shape[1], length, keys, dtype=torch.bool)
    if causal:
        allowed &= torch.ones(length, keys, dtype=torch.bool).tril()
    bias: Tensor | None = None
    if isinstance(mask, Ref):
        given = program.tensor(mask.number)
        allowed = allowed & (given if given.dtype == torch.bool else given > MASKED)
        bias = None if given.dtype == torch.bool else torch.where(given > MASKED, given, 0.0)
    mine = call.kwargs.get("scale")
    scale = float(mine) if isinstance(mine, (int, float)) else size**-0.5
    for text, other in _masks(allowed):
        yield Edit(text, text, {at: Attend(other, bias, scale)})
    if not bool(allowed.all()):
        for fill in _fills(program):
            text = f"what is masked out gets {fill:g} added, not minus infinity"
            yield Edit(text, text, {at: Attend(allowed, bias, scale, soft=fill)})
        yield Edit(
            "the mask is applied behind the softmax", "mask behind", {at: Attend(allowed, bias, scale, behind=True)}
        )
    heads = query.shape[1]
    for other_scale in {1.0, scale * scale, scale**0.5, (size * heads) ** -0.5, *program.constants}:
        for one in {other_scale, 1 / other_scale if other_scale else 1.0, scale * other_scale}:
            if one > 0 and abs(one - scale) > 1e-9 * scale:
                text = f"the scale is {one:.6g}, not {scale:.6g}"
                yield Edit(text, text, {at: Attend(allowed, bias, one)})
    yield Edit(
        "the softmax is over the queries, not the keys", "softmax axis", {at: Attend(allowed, bias, scale, axis=-2)}
    )
    if bias is not None:
        yield Edit("the bias of positions is left out", "no bias", {at: Attend(allowed, None, scale)})
    if key.shape[1] != heads:
        yield Edit(
            "heads of keys and values are tiled, not repeated",
            "tiled heads",
            {at: Attend(allowed, bias, scale, tiled=True)},
        )
    yield from _of_groups(program, at)


@dataclass(frozen=True, eq=False)
class Attend:
    """Attention by its definition (Vaswani et al. 2017, section 3.2.1), with what may be otherwise."""

    allowed: Tensor
    bias: Tensor | None
    scale: float
    axis: int = -1
    soft: float | None = None
    behind: bool = False
    tiled: bool = False

    def __call__(self, _: object, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> tuple[Tensor, Tensor]:
        query, key, value = args[:3]
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (
                (x.repeat(1, groups, 1, 1) if self.tiled else x.repeat_interleave(groups, 1)) for x in (key, value)
            )
        scores = query @ key.transpose(-1, -2) * self.scale
        if self.bias is not None:
            scores = scores + self.bias
        if self.soft is not None:
            scores = scores + self.soft * (~self.allowed)
        elif not self.behind:
            scores = torch.where(self.allowed, scores, FILL)
        weights = torch.softmax(scores, self.axis)
        if self.behind:
            weights = weights * self.allowed
        return weights @ value, torch.logsumexp(scores, -1)
