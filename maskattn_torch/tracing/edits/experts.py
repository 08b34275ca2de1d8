"""What may be done otherwise in a mixture of experts (Shazeer et al. 2017): which are chosen, and their shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from maskattn_torch.tracing.record import Ref
from maskattn_torch.tracing.replay import Change, Edit, Program, name_of

_CASTS = ("_to_copy", "view", "_unsafe_view", "detach", "alias", "clone")


def edits(program: Program) -> Iterator[Edit]:
    """Of each choice of experts that is near: the largest few of a router's numbers."""
    for at in sorted(program.near):
        call = program.calls[at]
        if name_of(call) == "topk" and isinstance(call.args[0], Ref) and isinstance(call.args[1], int):
            yield from _of_choice(
                program, at, call.args[1], program.recording.nodes[call.args[0].number].value.shape[-1]
            )
            yield from _of_router(program, call.args[0].number)


def _of_choice(program: Program, at: int, chosen: int, experts: int) -> Iterator[Edit]:
    for fewer in range(1, chosen):
        text = f"a token goes to {fewer} expert{'s' * (fewer > 1)} (top-{fewer}), not {chosen}"
        yield Edit(text, "fewer experts", {at: _shares(lambda shares, few=fewer: _kept(shares, few))})  # type: ignore[misc]
    for text, order in {
        "experts are in another order: each stands for the one before it": lambda which: (which + 1) % experts,
        "experts are in another order: each stands for the one after it": lambda which: (which - 1) % experts,
        "experts are in the opposite order": lambda which: experts - 1 - which,
    }.items():
        yield Edit(text, text, {at: _which(order)})
    if chosen > 1:
        text = "the shares of a token's experts are in the opposite order"
        yield Edit(text, text, {at: _shares(lambda shares: shares.flip(-1))})
    division = _division(program, at)
    if division is None:
        text = "the shares of the chosen experts are renormalized to the sum 1"
        yield Edit(text, text, {at: _shares(lambda shares: shares / shares.sum(-1, keepdim=True))})
    else:
        text = "the shares of the chosen experts are not renormalized to the sum 1"
        yield Edit(text, text, {division: lambda _, args, kwargs: args[0].clone()})
    text = "the shares of the chosen experts are left out: each counts 1"
    yield Edit(text, text, {at if division is None else division: _ones(division is None)})


def _of_router(program: Program, shares: int) -> Iterator[Edit]:
    """The function that makes shares of the router's numbers, and the product that makes these."""
    at = _made(program, shares)
    if at is None:
        return
    name = name_of(program.calls[at])
    if name in ("_softmax", "sigmoid"):
        sigmoid = name == "_softmax"
        text = f"the router's numbers go through {'sigmoid, not softmax' if sigmoid else 'softmax, not sigmoid'}"
        yield Edit(text, text, {at: lambda _, args, kwargs: args[0].sigmoid() if sigmoid else args[0].softmax(-1)})


def _made(program: Program, number: int) -> int | None:
    """The call that made a node, looked for in front of casts and changes of shape."""
    at = program.made_by.get(number)
    while at is not None and name_of(program.calls[at]) in _CASTS:
        source = program.calls[at].args[0]
        at = program.made_by.get(source.number) if isinstance(source, Ref) else None
    return at


def _division(program: Program, at: int) -> int | None:
    """The call that divides the chosen shares by their sum."""
    shares = program.calls[at].outputs[0]
    for reader in program.read_by.get(shares, []) if shares is not None else []:
        call = program.calls[reader]
        if name_of(call) in ("div.Tensor", "div_.Tensor") and call.args[0] == Ref(shares):  # type: ignore[arg-type]
            return reader
    return None


def _kept(shares: Tensor, few: int) -> Tensor:
    kept = torch.zeros_like(shares)
    kept[..., :few] = shares[..., :few]
    return kept


def _shares(change: Callable[[Tensor], Tensor]) -> Change:
    def changed(operator: Callable[..., tuple[Tensor, Tensor]], args: object, kwargs: dict[str, object]) -> object:
        shares, which = operator(*args, **kwargs)  # type: ignore[misc]
        return change(shares), which

    return changed


def _which(order: Callable[[Tensor], Tensor]) -> Change:
    def changed(operator: Callable[..., tuple[Tensor, Tensor]], args: object, kwargs: dict[str, object]) -> object:
        shares, which = operator(*args, **kwargs)  # type: ignore[misc]
        return shares, order(which)

    return changed


def _ones(choice: bool) -> Change:
    return _shares(torch.ones_like) if choice else (lambda _, args, kwargs: torch.ones_like(args[0]))
