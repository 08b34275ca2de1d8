"""What may be done otherwise in a rotary embedding (Su et al. 2021): pairs, sign, positions, frequencies, how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from maskattn_torch.tracing.record import Called, Ref
from maskattn_torch.tracing.replay import VIEWS, Change, Edit, Program, name_of

_THETAS = (100.0, 1e3, 1e4, 2e4, 1e5, 1.6e5, 5e5, 1e6)


@dataclass(frozen=True)
class Site:
    """One tensor turned.

    Attributes:
        at: the call that gives it. x: its node, or those of its two parts. cos, sin: nodes.
        neighbours: whether pairs are neighbours (0, 1), (2, 3), not the halves.
    """

    at: int
    x: tuple[int, ...]
    cos: int
    sin: int
    neighbours: bool


def edits(program: Program) -> Iterator[Edit]:
    """Of each tensor that is turned, and of those of one module together; of those that are not turned beside them."""
    sites = [site for at in sorted(program.near) if (site := _site(program, at)) is not None]
    modules: dict[str, list[Site]] = {}
    for site in sites:
        modules.setdefault(program.calls[site.at].where.module, []).append(site)
    for module, several in modules.items():
        groups: list[tuple[str, Sequence[Site]]] = [("", several)]
        if len(several) > 1:
            groups += [(f" (tensor {number + 1} of {len(several)})", [site]) for number, site in enumerate(several)]
        for which, group in groups:
            for text, how in _ways(program, group[0]):
                yield Edit(
                    f"rotary embedding: {text}{which}",
                    f"{text}{which}",
                    {one.at: _turned(program, one, how) for one in group},
                )
        yield from _of_others(program, module, several)
        yield from _of_parts_turned(program, several)


@dataclass(frozen=True)
class _How:
    """Attributes: part: of the dimensions that is turned. own: whether the part has frequencies of its own."""

    pairs: str = "halves"
    sign: float = 1.0
    shift: float = 0.0
    theta: float = 0.0
    none: bool = False
    exchanged: bool = False
    part: float = 1.0
    own: bool = False


def _ways(program: Program, site: Site) -> Iterator[tuple[str, _How]]:
    mine = "neighbours" if site.neighbours else "halves"
    yield "it is missing", _How(none=True)
    yield "the angle has the other sign", _How(mine, sign=-1.0)
    if site.neighbours:
        yield "pairs are the halves, not neighbours (0, 1), (2, 3)", _How("halves")
        yield "pairs are the halves, with the other sign", _How("halves", sign=-1.0)
    else:
        yield "pairs are neighbours (0, 1), (2, 3), not the halves", _How("neighbours")
        yield "pairs are neighbours, with the other sign", _How("neighbours", sign=-1.0)
    yield "pairs are neighbours, and put into halves", _How("neighbours to halves")
    yield "sines and cosines are exchanged", _How(mine, exchanged=True)
    for shift in (1.0, -1.0, 2.0):
        yield f"positions are {shift:+.0f}", _How(mine, shift=shift)
    size = sum(program.recording.nodes[one].value.shape[-1] for one in site.x)
    for part in (0.5, 0.25):
        if size * part >= 2 and size * part % 2 == 0:
            text = f"only {size * part:g} of {size} dimensions are turned"
            yield f"{text}, with the first frequencies of all", _How(mine, part=part)
            yield f"{text}, with frequencies of their own", _How(mine, part=part, own=True)
    for theta in sorted({*_THETAS, *(one for one in program.constants if one > 50)}):
        yield f"theta is {theta:g}", _How(mine, theta=theta)


def _of_others(program: Program, module: str, sites: Sequence[Site]) -> Iterator[Edit]:
    """Tensors of a module that are as large as one that is turned, and are not: values."""
    nodes = program.recording.nodes
    busy = {number for site in sites for number in (*site.x, *program.calls[site.at].outputs)}
    sizes = {nodes[site.x[0]].value.shape: site for site in sites if len(site.x) == 1}
    first = min(site.at for site in sites)
    for at in sorted(program.near):
        call = program.calls[at]
        number = call.outputs[0] if call.outputs else None
        if call.where.module != module or number is None or number in busy or at > first:
            continue
        site = sizes.get(nodes[number].value.shape)
        if site is not None and name_of(call) in ("transpose.int", "permute", *VIEWS):
            if any(reader > first for reader in program.read_by.get(number, ())):
                text = "rotary embedding: what is not turned is turned too (values)"
                yield Edit(text, text, {at: _turned_too(program, site)})


def _of_parts_turned(program: Program, sites: Sequence[Site]) -> Iterator[Edit]:
    """Where the first dimensions are turned and the rest is joined to them: all may be, or the last ones."""
    joined: dict[int, tuple[Site, int]] = {}
    for site in sites:
        for at in program.read_by.get(program.calls[site.at].outputs[0] or 0, ()):
            parts = program.calls[at].args[0]
            if name_of(program.calls[at]) == "cat" and isinstance(parts, (list, tuple)) and len(parts) == 2:
                if _number(parts[0]) in program.calls[site.at].outputs and len(site.x) == 1:
                    joined[at] = site, _number(parts[1])
    for text, whole in {
        "all dimensions are turned": True,
        "the last dimensions are turned, not the first": False,
    }.items():
        if joined:
            changes = {at: _turned_otherwise(program, site, rest, whole) for at, (site, rest) in joined.items()}
            yield Edit(f"rotary embedding: {text}", text, changes)


def _turned_otherwise(program: Program, site: Site, rest: int, whole: bool) -> Change:
    def change(_: object, args: object, kwargs: object) -> Tensor:
        x = torch.cat((program.now(site.x[0]), program.now(rest)), -1)
        size = program.now(site.x[0]).shape[-1]
        how = _How("neighbours" if site.neighbours else "halves")
        if not whole:
            return torch.cat((x[..., :-size], _rotated(program, site, x[..., -size:], how)), -1)
        cos, sin = _frequencies(site, size, program.now(site.cos), program.now(site.sin))
        axis = _positions(cos)
        angle = torch.atan2(sin, cos)
        step = float((angle.select(axis, 1) - angle.select(axis, 0))[..., 1].flatten()[0])
        theta = step ** (-size / 2)  # of the second frequency, theta^(-2 / size)
        shape = [*cos.shape[:-1], x.shape[-1] // 2]
        return rotated(x, cos[..., :1].expand(shape), sin[..., :1].expand(shape), replace(how, theta=theta))

    return change


def _site(program: Program, at: int) -> Site | None:
    """Whether a call gives a turned tensor, in one of the two ways in which it is written."""
    name = name_of(program.calls[at])
    if name == "add.Tensor":
        return _of_whole(program, at)
    return _of_parts(program, at, name == "stack") if name in ("cat", "stack") else None


def _of_whole(program: Program, at: int) -> Site | None:
    """x * cos + half-turned x * sin."""
    products = [_product(program, one) for one in program.calls[at].args[:2]]
    if None in products:
        return None
    (x, cos), (turned, sin) = products  # type: ignore[misc]
    half = program.maker(turned)
    neighbours = False
    if half is not None and name_of(half) in VIEWS:
        half, neighbours = program.maker(_number(half.args[0])), True
    if half is None or name_of(half) != ("stack" if neighbours else "cat"):
        return None
    return Site(at, (x,), cos, sin, neighbours)


def _of_parts(program: Program, at: int, neighbours: bool) -> Site | None:
    """(u * cos - v * sin, v * cos + u * sin), joined."""
    parts = program.calls[at].args[0]
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        return None
    makers = [program.maker(_number(one)) for one in parts]
    if any(one is None or name_of(one) != name for one, name in zip(makers, ("sub.Tensor", "add.Tensor"), strict=True)):
        return None
    one, other = (_product(program, ref) for ref in _args(makers[0])[:2])
    if one is None or other is None:
        return None
    (u, cos), (v, sin) = one, other
    return Site(at, (u, v), cos, sin, neighbours)


def _args(call: Called | None) -> tuple[object, ...]:
    return () if call is None else call.args


def _product(program: Program, one: object) -> tuple[int, int] | None:
    """The two factors of a node that is a product."""
    made = program.maker(one.number) if isinstance(one, Ref) else None
    if made is None or name_of(made) != "mul.Tensor" or not all(isinstance(ref, Ref) for ref in made.args[:2]):
        return None
    return _number(made.args[0]), _number(made.args[1])


def _number(one: object) -> int:
    assert isinstance(one, Ref)
    return one.number


def _turned(program: Program, site: Site, how: _How) -> Change:
    """Computed when it is played: most edits are only listed."""

    def change(_: object, args: object, kwargs: object) -> Tensor:
        parts = [program.now(one) for one in site.x]
        x = parts[0] if len(parts) == 1 else _joined(parts[0], parts[1], site.neighbours)
        made = _rotated(program, site, x, how)
        number = program.calls[site.at].outputs[0]
        assert number is not None
        return made.reshape(program.recording.nodes[number].value.shape)

    return change


def _turned_too(program: Program, site: Site) -> Change:
    how = _How("neighbours" if site.neighbours else "halves")

    def change(operator: Callable[..., Tensor], args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
        return _rotated(program, site, operator(*args, **kwargs), how)

    return change


def _rotated(program: Program, site: Site, x: Tensor, how: _How) -> Tensor:
    return rotated(x, *_frequencies(site, x.shape[-1], program.now(site.cos), program.now(site.sin)), how)


def _frequencies(site: Site, size: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., size / 2], each frequency once."""
    if cos.shape[-1] < size:
        return cos, sin
    if site.neighbours:
        return cos[..., ::2], sin[..., ::2]
    return cos[..., : size // 2], sin[..., : size // 2]


def _joined(first: Tensor, second: Tensor, neighbours: bool) -> Tensor:
    return torch.stack((first, second), -1).flatten(-2) if neighbours else torch.cat((first, second), -1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, how: _How) -> Tensor:
    """x [..., D] turned by angles whose cosines and sines are [..., D / 2]."""
    if how.none:
        return x
    if how.part < 1:
        size = int(x.shape[-1] * how.part)
        few = slice(None, None, round(1 / how.part)) if how.own else slice(size // 2)
        turned = rotated(x[..., :size], cos[..., few], sin[..., few], replace(how, part=1.0))
        return torch.cat((turned, x[..., size:]), -1)
    c, s = (sin, cos) if how.exchanged else (cos, sin)
    if how.theta or how.shift:
        axis = _positions(c)
        if how.theta:
            shape = [1] * c.ndim
            shape[axis] = c.shape[axis]
            places = torch.arange(c.shape[axis], dtype=torch.float64).reshape(shape)
            angle = places * how.theta ** (-torch.arange(c.shape[-1], dtype=torch.float64) / c.shape[-1])
            c, s = angle.cos().expand_as(c), angle.sin().expand_as(s)
        else:
            angle = torch.atan2(s, c)
            more = (angle.narrow(axis, 1, 1) - angle.narrow(axis, 0, 1)) * how.shift
            c, s = c * more.cos() - s * more.sin(), s * more.cos() + c * more.sin()
    s = s * how.sign
    half = x.shape[-1] // 2
    u, v = (x[..., :half], x[..., half:]) if how.pairs == "halves" else (x[..., 0::2], x[..., 1::2])
    first, second = u * c - v * s, v * c + u * s
    return _joined(first, second, how.pairs == "neighbours")


def _positions(cos: Tensor) -> int:
    """The axis along which the angles of positions count: the last but that of frequencies where they differ."""
    value = cos.numpy()
    for axis in reversed(range(value.ndim - 1)):
        if value.shape[axis] > 1 and not np.array_equal(value.take(0, axis), value.take(1, axis)):
            return axis
    return value.ndim - 2
