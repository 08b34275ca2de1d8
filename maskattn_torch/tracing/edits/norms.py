"""What may be done otherwise in a norm: its weight, its mean, its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from maskattn_torch.tracing.record import Called, Ref
from maskattn_torch.tracing.replay import Change, Edit, Program, name_of


@dataclass(frozen=True)
class Site:
    """A norm over the last axis.

    Attributes:
        at: the call that gives it. x: node that it is of. weight, bias: nodes, None where it has none.
        eps: added to the variance, or to the mean square. mean: whether the mean is subtracted.
    """

    at: int
    x: int
    weight: int | None
    bias: int | None
    eps: float
    mean: bool


def edits(program: Program) -> Iterator[Edit]:
    """Of each layer norm and each RMS norm that is near."""
    for at in sorted(program.near):
        site = _layer_norm(program, at) or _rms_norm(program, at)
        if site is not None:
            yield from _of(program, site)


def _of(program: Program, site: Site) -> Iterator[Edit]:
    for text, (weight, mean, bias) in {
        "the norm multiplies by 1 + weight": ("1 + weight", site.mean, True),
        "the norm multiplies by weight - 1": ("weight - 1", site.mean, True),
        "the norm's weight is left out": ("", site.mean, True),
        "the norm's bias is left out": ("weight", site.mean, False),
        "the norm subtracts no mean (RMS norm)": ("weight", False, True),
        "the norm subtracts the mean (layer norm)": ("weight", True, True),
    }.items():
        if (weight == "weight" and mean == site.mean and bias) or (not bias and site.bias is None):
            continue
        yield Edit(text, text, {site.at: _norm(program, site, weight, mean, bias)})
    yield Edit("the norm is left out", "norm left out", {site.at: _plain(program, site)})
    yield from _of_place(program, site)


def _of_place(program: Program, site: Site) -> Iterator[Edit]:
    """In front of the branch or behind it, or behind the sum."""
    norm = _norm(program, site, "weight", site.mean, True)
    for at in range(site.at + 1, min(site.at + 120, len(program.calls))):
        call = program.calls[at]
        if name_of(call) == "add.Tensor" and Ref(site.x) in call.args[:2]:
            place = call.args[:2].index(Ref(site.x))
            for text, behind in (
                ("the norm is behind the branch, not in front of it", _branch(norm, place)),
                ("the norm is behind the sum, not in front of the branch", _sum(norm)),
            ):
                yield Edit(text, text, {site.at: _plain(program, site), at: behind})
            return
    before = program.maker(site.x)
    if before is not None and name_of(before) == "add.Tensor":
        text = "the norm is in front of the branch, not behind the sum"
        yield Edit(text, text, {site.at: _plain(program, site)})


def _layer_norm(program: Program, at: int) -> Site | None:
    call = program.calls[at]
    if name_of(call) != "native_layer_norm":
        return None
    x, _, weight, bias, eps = call.args
    numbers = [one.number if isinstance(one, Ref) else None for one in (x, weight, bias)]
    assert numbers[0] is not None and isinstance(eps, float)
    return Site(at, numbers[0], numbers[1], numbers[2], eps, mean=True)


def _rms_norm(program: Program, at: int) -> Site | None:
    """weight * (x * rsqrt(mean(x^2) + eps)), in the operations of a module that writes it out; or PyTorch's own."""
    call = program.calls[at]
    if name_of(call) in ("_fused_rms_norm", "rms_norm"):
        x, _, weight = call.args[:3]
        eps = call.args[3] if len(call.args) > 3 else call.kwargs.get("eps")
        found = weight.number if isinstance(weight, Ref) else None
        return Site(at, _number(x), found, None, eps if isinstance(eps, float) else 2.0**-52, mean=False)
    if name_of(call) != "mul.Tensor" or not all(isinstance(one, Ref) for one in call.args[:2]):
        return None
    nodes = program.recording.nodes
    for weight, scaled in (call.args[:2], call.args[1::-1]):
        if nodes[_number(weight)].value.ndim != 1:
            continue
        product = _through(program, scaled)
        if (
            product is None
            or name_of(product) != "mul.Tensor"
            or not all(isinstance(one, Ref) for one in product.args[:2])
        ):
            continue
        root = program.maker(_number(product.args[1]))
        if root is None or name_of(root) != "rsqrt":
            continue
        added = program.maker(_number(root.args[0]))
        eps = added.args[1] if added is not None and name_of(added) == "add.Tensor" else None
        if isinstance(eps, (int, float)):
            return Site(at, _source(program, _number(product.args[0])), _number(weight), None, float(eps), mean=False)
    return None


def _through(program: Program, one: object) -> Called | None:
    """The call that made a node, looked for behind casts."""
    found = program.maker(_number(one))
    while found is not None and name_of(found) == "_to_copy":
        found = program.maker(_number(found.args[0]))
    return found


def _source(program: Program, number: int) -> int:
    """The node in front of casts."""
    found = program.maker(number)
    while found is not None and name_of(found) == "_to_copy":
        number = _number(found.args[0])
        found = program.maker(number)
    return number


def _number(one: object) -> int:
    assert isinstance(one, Ref)
    return one.number


def _norm(program: Program, site: Site, how: str, mean: bool, bias: bool) -> Change:
    """The norm, of the node that it is of or, given a tensor, of that."""
    weight = None if site.weight is None else program.tensor(site.weight)
    scale = {"weight": weight, "": None, "1 + weight": None if weight is None else 1 + weight}.get(how)
    if how == "weight - 1" and weight is not None:
        scale = weight - 1
    shift = program.tensor(site.bias) if bias and site.bias is not None else None
    own = program.tensor(site.x)

    def change(_: object, args: object, kwargs: object, of: Tensor | None = None) -> object:
        x = own if of is None else of
        if mean:
            made = functional.layer_norm(x, x.shape[-1:], scale, shift, site.eps)
        else:
            made = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + site.eps)
            made = made if scale is None else made * scale
            made = made if shift is None else made + shift
        single = len(program.calls[site.at].outputs) == 1 or of is not None
        return made if single else (made, *_rest(program, site))

    return change


def _rest(program: Program, site: Site) -> list[Tensor]:
    return [program.tensor(number) for number in program.calls[site.at].outputs[1:] if number is not None]


def _plain(program: Program, site: Site) -> Change:
    x = program.tensor(site.x)
    single = len(program.calls[site.at].outputs) == 1
    return lambda _, args, kwargs: x if single else (x, *_rest(program, site))


def _branch(norm: Change, place: int) -> Change:
    return lambda _, args, kwargs: args[place] + norm(None, (), {}, args[1 - place])


def _sum(norm: Change) -> Change:
    return lambda _, args, kwargs: norm(None, (), {}, args[0] + args[1])
