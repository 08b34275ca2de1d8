"""What may be done otherwise in a rotary embedding (Su et al. 2021): pairs, sign, positions, frequencies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskattn_torch.tracing.record import Ref
from maskattn_torch.tracing.replay import Change, Edit, Program, name_of

_THETAS = (100.0, 1e3, 1e4, 2e4, 1e5, 1.6e5, 5e5, 1e6)


@dataclass(frozen=True)
class Site:
    """One tensor turned: x * cos + half-turned x * sin.

    Attributes:
        at: the call that adds. x, cos, sin: nodes.
    """

    at: int
    x: int
    cos: int
    sin: int


def edits(program: Program) -> Iterator[Edit]:
    """Of each tensor that is turned, and of those of one module together."""
    sites = [site for at in sorted(program.near) if (site := _site(program, at)) is not None]
    modules: dict[str, list[Site]] = {}
    for site in sites:
        modules.setdefault(program.calls[site.at].where.module, []).append(site)
    for several in modules.values():
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


@dataclass(frozen=True)
class _How:
    pairs: str = "halves"
    sign: float = 1.0
    shift: float = 0.0
    theta: float = 0.0
    none: bool = False


def _ways(program: Program, site: Site) -> Iterator[tuple[str, _How]]:
    yield "it is missing", _How(none=True)
    yield "the angle has the other sign", _How(sign=-1.0)
    yield "pairs are neighbours (0, 1), (2, 3), not the halves", _How("neighbours")
    yield "pairs are neighbours, with the other sign", _How("neighbours", sign=-1.0)
    yield "pairs are neighbours, and put into halves", _How("neighbours to halves")
    for shift in (1.0, -1.0, 2.0):
        yield f"positions are {shift:+.0f}", _How(shift=shift)
    for theta in sorted({*_THETAS, *(one for one in program.constants if one > 50)}):
        yield f"theta is {theta:g}", _How(theta=theta)


def _site(program: Program, at: int) -> Site | None:
    """Whether a call adds a tensor times cosines to its half turn times sines."""
    call = program.calls[at]
    if name_of(call) != "add.Tensor" or not all(isinstance(one, Ref) for one in call.args[:2]):
        return None
    products = [program.maker(one.number) for one in call.args[:2] if isinstance(one, Ref)]
    if any(one is None or name_of(one) != "mul.Tensor" or not isinstance(one.args[1], Ref) for one in products):
        return None
    plain, turned = products
    assert plain is not None and turned is not None
    half = program.maker(turned.args[0].number) if isinstance(turned.args[0], Ref) else None
    if half is None or name_of(half) != "cat":
        return None
    if not isinstance(plain.args[0], Ref) or not isinstance(plain.args[1], Ref) or not isinstance(turned.args[1], Ref):
        return None
    return Site(at, plain.args[0].number, plain.args[1].number, turned.args[1].number)


def _turned(program: Program, site: Site, how: _How) -> Change:
    """Computed when it is played: most edits are only listed."""
    x, cos, sin = site.x, site.cos, site.sin
    return lambda _, args, kwargs: rotated(program.tensor(x), program.tensor(cos), program.tensor(sin), how)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, how: _How) -> Tensor:
    """x [..., D] turned by angles whose cosines and sines [..., D] hold each frequency twice, as halves."""
    if how.none:
        return x
    half = x.shape[-1] // 2
    c, s = cos[..., :half], sin[..., :half]
    if how.theta or how.shift:
        step = torch.atan2(s, c)[..., 1:2, :] - torch.atan2(s, c)[..., 0:1, :]
        if how.theta:
            places = torch.arange(c.shape[-2], dtype=torch.float64)[:, None]
            angle = places * how.theta ** (-torch.arange(half, dtype=torch.float64) / half)
            c, s = angle.cos().expand_as(c), angle.sin().expand_as(s)
        else:
            more = step * how.shift
            c, s = c * more.cos() - s * more.sin(), s * more.cos() + c * more.sin()
    s = s * how.sign
    if how.pairs == "halves":
        u, v = x[..., :half], x[..., half:]
    else:
        u, v = x[..., 0::2], x[..., 1::2]
    first, second = u * c - v * s, v * c + u * s
    if how.pairs == "neighbours":
        return torch.stack((first, second), -1).reshape(x.shape)
    return torch.cat((first, second), -1)
