"""What may be done otherwise with tables read by tokens, positions, types and distances, and with rows of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from maskattn.typing import NumPyArray
from maskattn_torch.tracing.edits.operands import said
from maskattn_torch.tracing.record import Ref
from maskattn_torch.tracing.replay import Change, Edit, Program, name_of


def edits(program: Program) -> Iterator[Edit]:
    """Of tables, of one token that is taken of all, and of tokens that are joined."""
    for at in sorted(program.near):
        call = program.calls[at]
        name = name_of(call)
        if name == "embedding":
            yield from _of_table(program, at)
        elif name == "select.int" and isinstance(call.args[0], Ref):
            yield from _of_one(program, at)
        elif name == "mean.dim" and isinstance(call.args[0], Ref):
            yield from _of_mean(program, at)
        elif name == "div.Tensor":
            yield from _of_kept(program, at)
        elif name == "max_pool2d_with_indices":
            yield Edit("the mean is pooled, not the largest", "mean pooled", {at: _mean_pooled})
        elif name == "avg_pool2d":
            yield Edit("the largest is pooled, not the mean", "largest pooled", {at: _largest_pooled})
        elif name == "add.Tensor":
            yield from _of_added(program, at)
        elif name == "cat" and len(call.args[0]) == 2:  # type: ignore[arg-type]
            first, second = (said(program, one.number) for one in call.args[0])  # type: ignore[attr-defined]
            text = f"two parts are joined in another order: {second} first, {first} last"
            yield Edit(text, "joined in another order", {at: _joined})
        elif name == "convolution" and isinstance(call.args[1], Ref):
            if program.recording.nodes[call.args[1].number].value.shape[1] > 1:
                yield Edit("channels are in the opposite order", "channels", {at: _channels})


def _joined(operator: Callable[..., Tensor], args: tuple[list[Tensor], ...], kwargs: dict[str, object]) -> Tensor:
    return operator(args[0][::-1], *args[1:], **kwargs)


def _channels(operator: Callable[..., Tensor], args: tuple[Tensor, ...], kwargs: dict[str, object]) -> Tensor:
    return operator(args[0], args[1].flip(1), *args[2:], **kwargs)


def _of_one(program: Program, at: int) -> Iterator[Edit]:
    """One token of a row: another one, or all of them."""
    source, axis, mine = program.calls[at].args[:3]
    assert isinstance(source, Ref) and isinstance(axis, int) and isinstance(mine, int)
    node = program.recording.nodes[source.number]
    if node.value.dtype.kind != "f" or node.value.ndim < 2:
        return
    last = node.value.shape[axis] - 1
    for other, which in {
        0: "first token",
        1: "second token",
        last - 1: "last token but one",
        last: "last token",
    }.items():
        if other not in (mine, mine + last + 1) and 0 <= other <= last:
            text = f"the {which} is taken ({other}), not token {mine}"
            yield Edit(text, text, {at: _taken(other)})
    text = f"the mean of all tokens is taken, not token {mine}"
    yield Edit(text, text, {at: lambda _, args, kwargs: args[0].mean(args[1])})
    if last > 1:
        text = f"the mean of all tokens but the first is taken, not token {mine}"
        yield Edit(text, text, {at: lambda _, args, kwargs: args[0].narrow(axis, 1, last).mean(axis)})
    text = f"the largest of all tokens is taken, not token {mine}"
    yield Edit(text, text, {at: lambda _, args, kwargs: args[0].amax(args[1])})


def _taken(token: int) -> Change:
    return lambda _, args, kwargs: args[0].select(args[1], token)


def _of_mean(program: Program, at: int) -> Iterator[Edit]:
    """The mean of all tokens of a row: one of them, their sum, their largest."""
    source, axes = program.calls[at].args[:2]
    assert isinstance(source, Ref)
    shape = program.recording.nodes[source.number].value.shape
    if not isinstance(axes, (list, tuple)):
        return
    if len(axes) > 1:
        text = "the largest of all places is taken, not their mean"
        yield Edit(text, text, {at: _of_all(lambda x: x.amax(tuple(axes)), program, at)})
    if len(axes) != 1 or axes[0] % len(shape) in (0, len(shape) - 1):
        return
    (axis,) = axes
    for text, function in {
        "the first token is taken": lambda x: x.select(axis, 0),
        "the last token is taken": lambda x: x.select(axis, -1),
        "the mean of all tokens but the first is taken": lambda x: x.narrow(axis, 1, x.shape[axis] - 1).mean(axis),
        "the sum of all tokens is taken": lambda x: x.sum(axis),
        "the largest of all tokens is taken": lambda x: x.amax(axis),
    }.items():
        yield Edit(f"{text}, not the mean of all", text, {at: _of_all(function, program, at)})


def _of_kept(program: Program, at: int) -> Iterator[Edit]:
    """The mean of the tokens that a mask keeps, sum(x * keep) / sum(keep): of all."""
    summed = program.maker(_number(program.calls[at].args[0]))
    product = program.maker(_number(summed.args[0])) if summed is not None and "sum" in name_of(summed) else None
    if summed is None or product is None or name_of(product) != "mul.Tensor" or len(summed.args) < 2:
        return
    axes = summed.args[1]
    for one in product.args[:2]:
        number = _number(one)
        if number >= 0 and program.recording.nodes[number].value.ndim > 1 and isinstance(axes, (list, tuple)):
            text = "the mean is of all tokens, of padding too"
            yield Edit(text, text, {at: _of_all(lambda _, x=number: program.now(x).mean(axes[0]), program, at)})  # type: ignore[misc]


def _number(one: object) -> int:
    return one.number if isinstance(one, Ref) else -1


def _mean_pooled(_: object, args: tuple[Tensor, ...], kwargs: object) -> tuple[Tensor, Tensor]:
    made: Tensor = torch.ops.aten.avg_pool2d(*args[:4])
    return made, torch.zeros_like(made, dtype=torch.int64)


def _largest_pooled(_: object, args: tuple[Tensor, ...], kwargs: object) -> Tensor:
    made: Tensor = torch.ops.aten.max_pool2d(*args[:4])
    return made


def _of_all(function: Callable[[Tensor], Tensor], program: Program, at: int) -> Change:
    """The function's result in the shape of the call's own."""
    number = program.calls[at].outputs[0]
    assert number is not None
    shape = program.recording.nodes[number].value.shape
    return lambda _, args, kwargs: function(args[0]).reshape(shape)


def _of_added(program: Program, at: int) -> Iterator[Edit]:
    """A table of positions [..., L, D] that is added as it is: its rows in another order."""
    for place, one in enumerate(program.calls[at].args[:2]):
        node = program.recording.nodes[one.number] if isinstance(one, Ref) else None
        if node is None or node.kind != "parameter" or node.value.ndim < 2 or node.value.shape[-2] < 3:
            continue
        length = node.value.shape[-2]
        usual = list(range(length))
        for step in (1, -1, 2, -2):
            text = f"{node.name}: positions are {step:+d}"
            yield Edit(text, text, {at: _rows(place, [(number + step) % length for number in usual])})
        yield Edit(f"{node.name}: positions are backwards", "backwards", {at: _rows(place, usual[::-1])})
        for first in (0, 1, 2):  # tokens of a class and the like come first
            side = math.isqrt(length - first)
            if side > 1 and side * side == length - first:
                turned = [first + row + side * column for row in range(side) for column in range(side)]
                text = f"{node.name}: positions are by columns, not by rows (or what they are added to is)"
                yield Edit(text, text, {at: _rows(place, [*usual[:first], *turned])})


def _rows(place: int, order: list[int]) -> Change:
    def change(operator: Callable[..., Tensor], args: tuple[Tensor, ...], kwargs: dict[str, object]) -> Tensor:
        given = [one[..., order, :] if number == place else one for number, one in enumerate(args)]
        return operator(*given, **kwargs)

    return change


def _of_table(program: Program, at: int) -> Iterator[Edit]:
    table, indices = program.calls[at].args[:2]
    assert isinstance(table, Ref) and isinstance(indices, Ref)
    name = said(program, table.number)
    rows, width = program.recording.nodes[table.number].value.shape
    which = program.recording.nodes[indices.number].value
    steps = (1, -1, 2, -2) if which.ndim and bool((np.diff(which, axis=-1) == 1).all()) else ()
    for step in steps:
        if 0 <= which.min() + step and which.max() + step < rows:
            text = f"{name}: positions are {step:+d}"
            yield Edit(text, text, {at: _read(lambda one, by=step: one + by)})  # type: ignore[misc]
    if which.any() and not _by_distance(which):
        text = f"{name}: all are of type 0"
        yield Edit(text, text, {at: _read(torch.zeros_like)})
    for factor in sorted(
        {width**0.5, width**-0.5, *(one for one in program.constants if one != 1 and 1e-2 < abs(one) < 1e3)}
    ):
        text = f"{name}: what is read is multiplied by {factor:.6g}"
        yield Edit(text, f"embedding times {factor:.6g}", {at: _scaled(factor)})
    if which.ndim == 2:
        yield from _of_tokens(program, at, name, indices.number, which)
        yield from _of_distances(program, at, name, which, rows)


def _of_tokens(program: Program, at: int, name: str, number: int, which: NumPyArray) -> Iterator[Edit]:
    for other, node in enumerate(program.recording.nodes):
        if (
            node.kind == "input"
            and other != number
            and node.value.shape == which.shape
            and node.value.dtype.kind == "i"
        ):
            if not np.array_equal(node.value, which) and node.value.min() >= 0:
                shifted = np.array_equal(node.value[:, :-1], which[:, 1:])
                text = f"{name}: {node.name} is read{' as it is, not shifted by one' * shifted}"
                yield Edit(text, text, {at: _read(lambda _, other=other: program.tensor(other))})  # type: ignore[misc]
    text = f"{name}: tokens are shifted by one to the right"
    yield Edit(text, text, {at: _read(lambda one: torch.cat((one[:, :1], one[:, :-1]), 1))})
    text = f"{name}: tokens are shifted by one to the left"
    yield Edit(text, text, {at: _read(lambda one: torch.cat((one[:, 1:], one[:, -1:]), 1))})


def _read(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda operator, args, kwargs: operator(args[0], change(args[1]), *args[2:], **kwargs)


def _scaled(factor: float) -> Change:
    return lambda operator, args, kwargs: operator(*args, **kwargs) * factor


# Positions of which only the distance counts (T5: Raffel et al. 2020, section 2.1) ------------------------------------


def _by_distance(which: NumPyArray) -> bool:
    """Whether indices depend on the distance of a key from its query alone."""
    if which.ndim != 2 or max(which.shape) < 3:
        return False
    queries, keys = which.shape
    away = np.arange(keys)[None] - np.arange(queries)[:, None]
    return not any(np.unique(which[away == step]).size > 1 for step in range(-queries, keys))


def _of_distances(program: Program, at: int, name: str, which: NumPyArray, rows: int) -> Iterator[Edit]:
    """Where indices are a function of the distance of a key from its query: other functions."""
    if not _by_distance(which):
        return
    queries, keys = which.shape
    away = torch.arange(keys)[None] - torch.arange(queries)[:, None]
    yield Edit(
        f"{name}: distances are backwards, those of queries from keys",
        "distances backwards",
        {at: _read(lambda one: one.T)},
    )
    furthest = {*map(float, range(2, 65)), 128.0, 256.0, 512.0}
    for exact in (rows // 2, rows // 4):  # log(furthest / exact) is what stands in a program
        furthest |= {exact * math.exp(one) for one in program.constants if 0 < one < 8}
    furthest |= {one for one in program.constants if 2 < one < 4096}
    seen = [which]
    alike = lambda far: any(np.array_equal(one.numpy(), which) for _, one in _functions(away, rows, (far,)))  # noqa: E731
    likely = tuple(sorted(furthest, key=lambda far: (not alike(far), far % 4, far)))
    for text, buckets in _functions(away, rows, likely):
        if not any(np.array_equal(buckets.numpy(), one) for one in seen):
            seen.append(buckets.numpy())
            yield Edit(f"{name}: {text}", text, {at: _read(lambda _, buckets=buckets: buckets)})  # type: ignore[misc]


def _functions(away: Tensor, rows: int, furthest: tuple[float, ...]) -> Iterator[tuple[str, Tensor]]:
    for both in (True, False):
        way = (
            "buckets are of distances both ways (bidirectional)"
            if both
            else "buckets are of distances one way (not bidirectional)"
        )
        for far in furthest:
            number = rows // 2 if both else rows
            exact = number // 2
            if far <= exact or exact < 1:
                continue
            size = away.abs() if both else (-away).clamp(min=0)
            log = exact + (size.clamp(min=1).double() / exact).log() / math.log(far / exact) * (number - exact)
            found = torch.where(size < exact, size, log.long().clamp(max=number - 1))
            yield f"{way}, up to the distance {far:.6g}", found + (away > 0) * number if both else found
