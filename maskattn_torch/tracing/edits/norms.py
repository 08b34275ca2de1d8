"""What may be done otherwise in a norm: its weight, its mean, its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

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
    for text, spread in {
        "the norm's variance is divided by n - 1, not by n": _unbiased,
        "the norm's eps is added behind the square root": _outside,
    }.items():
        if site.mean or spread is not _unbiased:
            yield Edit(text, text, {site.at: _norm(program, site, "weight", site.mean, True, spread)})
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
            break
    else:
        yield from _before(program, site, norm)
    yield from _in_turn(program, site, norm)


def _in_turn(program: Program, site: Site, norm: Change) -> Iterator[Edit]:
    """Two branches of the same that are summed: the second may be of the sum with the first (GPT-J: both at once)."""
    for at in program.read_by.get(site.x, ()):
        call = program.calls[at]
        if at < site.at or name_of(call) != "add.Tensor":
            continue
        ends = [one.number for one in call.args[:2] if isinstance(one, Ref) and one.number != site.x]
        while ends:  # the branches are summed first
            number = ends.pop()
            made = program.maker(number)
            if made is not None and name_of(made) == "add.Tensor":
                ends += [one.number for one in made.args[:2] if isinstance(one, Ref)]
            elif program.made_by.get(number, site.at) < site.at:
                text = "the norm is of the sum with the branch before it, not in parallel"
                yield Edit(text, text, {site.at: _of_sum(program, site, norm, number)})


def _of_sum(program: Program, site: Site, norm: Change, branch: int) -> Change:
    def change(_: object, args: object, kwargs: object) -> object:
        made = norm(None, (), {}, program.now(site.x) + program.now(branch))
        return made if len(program.calls[site.at].outputs) == 1 else (made, *_rest(program, site))

    return change


def _before(program: Program, site: Site, norm: Change) -> Iterator[Edit]:
    """A norm behind the sum of a branch and what the branch was made of: it may be in front of the branch."""
    summed = program.made_by.get(site.x)
    if summed is None or name_of(program.calls[summed]) != "add.Tensor":
        return
    for one in program.calls[summed].args[:2]:
        if isinstance(one, Ref) and program.recording.nodes[one.number].kind != "parameter":
            starts = [at for at in program.read_by[one.number] if at < summed]
            if starts:
                text = "the norm is in front of the branch, not behind the sum"
                changes = {at: _normed(program, at, one.number, norm) for at in starts}
                yield Edit(text, text, {site.at: _plain(program, site), **changes})


def _normed(program: Program, at: int, number: int, norm: Change) -> Change:
    """The call of the norm of a node, in the place of the node."""

    def change(operator: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        shown = program.calls[at].args
        return operator(
            *(norm(None, (), {}, one) if it == Ref(number) else one for it, one in zip(shown, args, strict=True)),
            **kwargs,
        )

    return change


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


def _spread(x: Tensor, eps: float) -> Tensor:
    """What numbers with the mean 0, or of which no mean is taken, are divided by."""
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _unbiased(x: Tensor, eps: float) -> Tensor:
    return (x.square().sum(-1, keepdim=True) / (x.shape[-1] - 1) + eps).sqrt()


def _outside(x: Tensor, eps: float) -> Tensor:
    return x.square().mean(-1, keepdim=True).sqrt() + eps


def _norm(
    program: Program,
    site: Site,
    how: str,
    mean: bool,
    bias: bool,
    spread: Callable[[Tensor, float], Tensor] = _spread,
) -> Change:
    """The norm, of the node that it is of or, given a tensor, of that."""
    weight = None if site.weight is None else program.tensor(site.weight)
    scale = None if weight is None else {"weight": weight, "1 + weight": 1 + weight, "weight - 1": weight - 1}.get(how)
    shift = program.tensor(site.bias) if bias and site.bias is not None else None

    def change(_: object, args: object, kwargs: object, of: Tensor | None = None) -> object:
        x = program.now(site.x) if of is None else of
        x = x - x.mean(-1, keepdim=True) if mean else x
        made = x / spread(x, site.eps)
        made = made if scale is None else made * scale
        made = made if shift is None else made + shift
        single = len(program.calls[site.at].outputs) == 1 or of is not None
        return made if single else (made, *_rest(program, site))

    return change


def _rest(program: Program, site: Site) -> list[Tensor]:
    return [program.tensor(number) for number in program.calls[site.at].outputs[1:] if number is not None]


def _plain(program: Program, site: Site) -> Change:
    single = len(program.calls[site.at].outputs) == 1
    return lambda _, args, kwargs: program.now(site.x) if single else (program.now(site.x), *_rest(program, site))


def _branch(norm: Change, place: int) -> Change:
    return lambda _, args, kwargs: args[place] + norm(None, (), {}, args[1 - place])


def _sum(norm: Change) -> Change:
    return lambda _, args, kwargs: norm(None, (), {}, args[0] + args[1])
