"""Right ports, each written in another way: nothing is found in any."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("transformers")
pytest.importorskip("equinox")

from tests.diagnose.ports import ways
from tests.diagnose.ports.kinds import Port, compared, port, weights

KINDS = ("decoder", "encoder", "vision", "encoder-decoder", "experts")
#: Tried by `make test`.
QUICK = ("encoder", "scan, remat, jit, fused products, grouped heads, flat tokens, scaled queries")


def cases() -> list[object]:
    ports: list[tuple[str, str, object]] = [(kind, kind, lambda kind=kind: port(kind)) for kind in KINDS]  # type: ignore[misc]
    for way in ways.WAYS:
        made = lambda way=way: functools.partial(ways.decoder, weights("decoder"), ways=way)  # noqa: E731
        ports.append((", ".join(sorted(way)), "decoder", made))
    quick = {", ".join(sorted(one.split(", "))) for one in QUICK}
    return [
        pytest.param(kind, made, id=name, marks=[] if name in quick else pytest.mark.slow) for name, kind, made in ports
    ]


@pytest.mark.jax
@pytest.mark.torch
@pytest.mark.parametrize(("kind", "made"), cases())
def test_nothing_is_found_in_a_right_port(kind: str, made: functools.partial[Port]) -> None:
    report = compared(kind, made())
    assert report.ok, report.places
    assert not report.places


def test_right_ports_are_many() -> None:
    """More than twenty: docs/comparing.md says so."""
    assert len(cases()) > 20
