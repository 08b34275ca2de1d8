"""What may be done otherwise where one product gives several tensors: queries, keys and values; gate and up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from maskattn_torch.tracing.record import Ref
from maskattn_torch.tracing.replay import VIEWS, Change, Edit, Program, name_of

_SPLITS = ("split.Tensor", "split_with_sizes", "chunk", "unbind.int")


def edits(program: Program) -> Iterator[Edit]:
    """Of splits into parts of one size that are near: the order of the parts, and of heads among them."""
    for at in sorted(program.near):
        call = program.calls[at]
        if name_of(call) in VIEWS:
            yield from _of_three(program, at)
        parts = call.outputs
        if (
            name_of(call) not in _SPLITS
            or not 2 <= len(parts) <= 3
            or None in parts
            or not isinstance(call.args[0], Ref)
        ):
            continue
        shapes = {program.recording.nodes[number].value.shape for number in parts if number is not None}
        if len(shapes) != 1:
            continue
        for order in ((1, 2, 0), (2, 0, 1)) if len(parts) == 3 else ():  # `linear` exchanges two
            which = ", ".join(str(number + 1) for number in order)
            text = f"the {len(parts)} parts of {call.where} are taken in another order: {which}"
            yield Edit(text, f"parts {which}", {at: _in_order(order)})
        yield from _of_heads(program, at, len(parts))


def _in_order(order: Sequence[int]) -> Change:
    def change(
        operator: Callable[..., Sequence[Tensor]], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        made = operator(*args, **kwargs)
        return [made[number] for number in order]

    return change


def _of_heads(program: Program, at: int, parts: int) -> Iterator[Edit]:
    """Parts that lie one behind the other may be taken head by head, and the other way round."""
    call = program.calls[at]
    source = call.args[0]
    assert isinstance(source, Ref)
    shape = program.recording.nodes[source.number].value.shape
    number = call.outputs[0]
    assert number is not None
    for reader in program.read_by.get(number, ()):
        after = program.recording.nodes[program.calls[reader].outputs[0] or 0].value.shape
        if name_of(program.calls[reader]) in VIEWS and len(after) == len(shape) + 1 and shape[-1] % parts == 0:
            heads = after[-2]
            if 1 < heads and shape[-1] == parts * heads * after[-1]:
                text = f"the {parts} parts of {call.where} are taken head by head, not one behind the other"
                yield Edit(text, "head by head", {at: _rearranged((heads, parts))})
            break
    above = program.made_by.get(source.number)
    while above is not None and name_of(program.calls[above]) in ("transpose.int", "permute"):
        given = program.calls[above].args[0]
        above = program.made_by.get(given.number) if isinstance(given, Ref) else None
    if above is None or name_of(program.calls[above]) not in VIEWS:
        return
    given, made = program.calls[above].args[0], program.calls[above].outputs[0]
    if not isinstance(given, Ref) or made is None:
        return
    before, after = (program.recording.nodes[number].value.shape for number in (given.number, made))
    if len(after) == len(before) + 1 and after[-2] > 1 and after[-1] % parts == 0:
        text = f"the {parts} parts of {call.where} are taken one behind the other, not head by head"
        yield Edit(text, "one behind the other", {above: _rearranged((parts, after[-2]))})


def _of_three(program: Program, at: int) -> Iterator[Edit]:
    """The last axis viewed as parts, heads and a rest, or as heads, parts and a rest: the other way round."""
    call = program.calls[at]
    given, made = call.args[0], call.outputs[0]
    if not isinstance(given, Ref) or made is None:
        return
    before, after = (program.recording.nodes[number].value.shape for number in (given.number, made))
    if len(after) != len(before) + 2 or after[:-3] != before[:-1] or 1 in after[-3:-1]:
        return
    first, second = after[-3:-1]
    ways = ((first, "head by head", "one behind the other"), (second, "one behind the other", "head by head"))
    for parts, how, usual in ways:
        if parts in (2, 3):
            text = f"the {parts} parts of {call.where} are taken {how}, not {usual}"
            yield Edit(text, how, {at: _rearranged((second, first))})


def _rearranged(sizes: tuple[int, int]) -> Change:
    """The last axis taken as these two axes and a rest, and these exchanged."""

    def change(operator: Callable[..., object], args: tuple[Tensor, ...], kwargs: dict[str, object]) -> object:
        x = args[0]
        turned = x.unflatten(-1, (*sizes, -1)).transpose(-2, -3).reshape(x.shape)
        return operator(turned, *args[1:], **kwargs)

    return change
