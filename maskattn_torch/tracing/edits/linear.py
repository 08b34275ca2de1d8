"""What may be done otherwise in linear layers, and how numbers are arranged between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from maskattn_torch.tracing.record import Ref
from maskattn_torch.tracing.replay import VIEWS, Change, Edit, Program, name_of

_SPLITS = ("split.Tensor", "split_with_sizes", "split.sizes", "chunk", "unbind.int")
#: More parts than these are no few tensors in one.
_MOST_PARTS = 6


def edits(program: Program) -> Iterator[Edit]:
    """Of products with weights that are near, and of changes of shape."""
    for at in sorted(program.near):
        name = name_of(program.calls[at])
        if name == "addmm":
            yield Edit("the bias of the linear layer is left out", "no bias", {at: _no_bias})
        elif name == "linear":
            if len(program.calls[at].args) > 2 and program.calls[at].args[2] is not None:
                yield Edit("the bias of the linear layer is left out", "no bias", {at: _linear_no_bias})
            yield from _turned_kernel(program, at, 1)
        elif name in ("t", "transpose.int", "permute"):
            yield from _turned_kernel(program, at, 0)
        elif name == "convolution":
            if program.calls[at].args[2] is not None:
                yield Edit("the bias of the convolution is left out", "no bias", {at: _convolution_no_bias})
            yield from _turned_kernel(program, at, 1)
            yield from _of_padding(program, at)
        elif name in VIEWS:
            yield from _arranged(program, at)
        elif name in _SPLITS:
            yield from _parts_exchanged(program, at)
    yield from _slices_exchanged(program)


def _parts_exchanged(program: Program, at: int) -> Iterator[Edit]:
    """Two parts that one call cuts a tensor into: gate and up, queries and keys."""
    call = program.calls[at]
    shapes = [None if one is None else program.recording.nodes[one].value.shape for one in call.outputs]
    for one, other in itertools.combinations(range(len(shapes)), 2):
        if shapes[one] == shapes[other] and len(shapes) <= _MOST_PARTS:
            text = f"parts {one + 1} and {other + 1} of {len(shapes)} are exchanged: {_cut(program, at)}"
            yield Edit(text, f"parts {one} and {other} exchanged", {at: _order(one, other)})


def _slices_exchanged(program: Program) -> Iterator[Edit]:
    """The same, cut by two slices of one tensor."""
    slices: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for at in sorted(program.near):
        call = program.calls[at]
        if name_of(call) == "slice.Tensor" and isinstance(call.args[0], Ref) and call.outputs[0] is not None:
            shape = program.recording.nodes[call.outputs[0]].value.shape
            if shape != program.recording.nodes[call.args[0].number].value.shape:
                slices.setdefault((call.args[0].number, shape), []).append(at)
    for places in slices.values():
        for one, other in itertools.combinations(places[:_MOST_PARTS], 2):
            text = f"two slices are exchanged: {_cut(program, one)}"
            changes = {at: _slice(program.calls[by].args[1:]) for at, by in ((one, other), (other, one))}
            yield Edit(text, "slices exchanged", changes)


def _cut(program: Program, at: int) -> str:
    call = program.calls[at]
    return f"{name_of(call)} at {call.where}"


def _order(one: int, other: int) -> Change:
    def change(operator: Callable[..., Sequence[Tensor]], args: object, kwargs: dict[str, object]) -> list[Tensor]:
        made = list(operator(*args, **kwargs))  # type: ignore[misc]
        made[one], made[other] = made[other], made[one]
        return made

    return change


def _slice(rest: tuple[object, ...]) -> Change:
    return lambda operator, args, kwargs: operator(args[0], *rest)


def _no_bias(_: object, args: tuple[Tensor, ...], kwargs: object) -> Tensor:
    return args[1] @ args[2]


def _linear_no_bias(_: object, args: tuple[Tensor, ...], kwargs: object) -> Tensor:
    return args[0] @ args[1].T


def _convolution_no_bias(
    operator: Callable[..., Tensor], args: tuple[Tensor, ...], kwargs: dict[str, object]
) -> Tensor:
    return operator(args[0], args[1], None, *args[3:], **kwargs)


def _of_padding(program: Program, at: int) -> Iterator[Edit]:
    """Zeros around what a convolution is of: more behind than in front, as "SAME" has them; in front alone; none."""
    strides, padding, dilation, transposed = program.calls[at].args[3:7]
    kernel = program.calls[at].args[1]
    if transposed or not isinstance(padding, (list, tuple)) or not isinstance(kernel, Ref):
        return
    sizes = program.recording.nodes[kernel.number].value.shape[2:]
    each = [1] * len(sizes)
    strides, dilation = (list(one) if isinstance(one, (list, tuple)) else each for one in (strides, dilation))
    reach = [(size - 1) * step for size, step in zip(sizes, dilation, strict=True)]
    same = [max(all_of - stride + 1, 0) for all_of, stride in zip(reach, strides, strict=True)]
    for text, pads in {
        "as SAME has them": [(one // 2, one - one // 2) for one in same],
        "as SAME has them where nothing is over": [(one // 2, one - one // 2) for one in reach],
        "in front alone (causal)": [(one, 0) for one in reach],
        "none": [(0, 0) for _ in reach],
    }.items():
        if pads != [(one, one) for one in padding]:
            said = f"zeros around the convolution's input are {pads}, {text}"
            yield Edit(said, f"zeros {text}", {at: _padded(pads)})


def _padded(pads: list[tuple[int, int]]) -> Change:
    def change(operator: Callable[..., Tensor], args: tuple[Tensor, ...], kwargs: dict[str, object]) -> Tensor:
        wide = torch.nn.functional.pad(args[0], [one for pair in reversed(pads) for one in pair])
        return operator(wide, *args[1:4], [0] * len(pads), *args[5:], **kwargs)

    return change


def _turned_kernel(program: Program, at: int, place: int) -> Iterator[Edit]:
    """A kernel whose last two axes are as long as each other may be the other way round."""
    given = program.calls[at].args[place]
    if not isinstance(given, Ref):
        return
    node = program.recording.nodes[given.number]
    if node.kind == "parameter" and node.value.ndim > 1 and node.value.shape[-1] == node.value.shape[-2] > 1:
        text = f"the kernel {node.name} is transposed"
        yield Edit(text, "transposed kernel", {at: _transposed(place)})
    if node.kind == "parameter" and node.value.ndim == 4:
        text = f"the kernel {node.name} is turned around"
        yield Edit(text, "turned kernel", {at: _flipped(place)})


def _transposed(place: int) -> Change:
    return lambda operator, args, kwargs: operator(
        *args[:place], args[place].transpose(-1, -2), *args[place + 1 :], **kwargs
    )


def _flipped(place: int) -> Change:
    return lambda operator, args, kwargs: operator(
        *args[:place], args[place].flip(-1, -2), *args[place + 1 :], **kwargs
    )


def _arranged(program: Program, at: int) -> Iterator[Edit]:
    """One axis made two, or two made one: the two may be exchanged."""
    call = program.calls[at]
    if not isinstance(call.args[0], Ref) or call.outputs[0] is None:
        return
    before = program.recording.nodes[call.args[0].number].value.shape
    after = program.recording.nodes[call.outputs[0]].value.shape
    if len(after) == len(before) + 1:
        axis = next((axis for axis, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), None)
        if axis is not None and before[axis + 1 :] == after[axis + 2 :] and min(after[axis : axis + 2]) > 1:
            one, two = after[axis : axis + 2]
            text = f"{before[axis]} numbers are split into {two} x {one}, not {one} x {two}"
            yield Edit(f"{text} (order of heads)", "split the other way", {at: _split(axis, after)})
    if len(after) == len(before) - 1:
        axis = next((axis for axis, (a, b) in enumerate(zip(after, before, strict=False)) if a != b), None)
        if axis is not None and after[axis + 1 :] == before[axis + 2 :] and min(before[axis : axis + 2]) > 1:
            text = f"{before[axis]} x {before[axis + 1]} numbers are joined the other way round (order of heads)"
            yield Edit(text, "joined the other way", {at: _joined(axis, after)})
            if axis >= 2:
                text = "heads are not moved back behind the positions before they are joined"
                yield Edit(text, "heads not moved back", {at: _not_moved(axis, after)})
                yield from _ordered(at, axis, before[axis])


def _ordered(at: int, axis: int, heads: int) -> Iterator[Edit]:
    """Heads in another order: backwards, one further, odd ones behind even ones, and the other way round."""
    usual = list(range(heads))
    orders = {
        "backwards": usual[::-1],
        "one late": [*usual[1:], usual[0]],
        "one early": [usual[-1], *usual[:-1]],
        "even ones first": [*usual[::2], *usual[1::2]],
        "halves between each other": [half + step for step in range(heads // 2) for half in (0, heads // 2)],
    }
    seen = [usual]
    for text, order in orders.items():
        if sorted(order) == usual and order not in seen:
            seen.append(order)
            yield Edit(f"heads are joined in another order: {text}", f"heads {text}", {at: _in_order(axis, order)})


def _in_order(axis: int, order: list[int]) -> Change:
    def change(operator: Callable[..., Tensor], args: tuple[Tensor, ...], kwargs: dict[str, object]) -> Tensor:
        return operator(args[0].index_select(axis, torch.tensor(order)), *args[1:], **kwargs)

    return change


def _split(axis: int, shape: tuple[int, ...]) -> Change:
    other = (*shape[:axis], shape[axis + 1], shape[axis], *shape[axis + 2 :])
    return lambda _, args, kwargs: args[0].reshape(other).transpose(axis, axis + 1)


def _joined(axis: int, shape: tuple[int, ...]) -> Change:
    return lambda _, args, kwargs: args[0].transpose(axis, axis + 1).reshape(shape)


def _not_moved(axis: int, shape: tuple[int, ...]) -> Change:
    return lambda _, args, kwargs: args[0].transpose(axis - 1, axis).reshape(shape)
