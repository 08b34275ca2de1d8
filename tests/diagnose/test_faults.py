"""Faults planted in ports of five kinds of model: each is found where it is, and said."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.diagnose.faults import FAULTS, Fault

pytest.importorskip("transformers")
pytest.importorskip("equinox")

from tests.diagnose.ports.kinds import compared, port

#: Not found where they are, or not said: what the search cannot do yet.
OPEN: frozenset[str] = frozenset()


def cases() -> list[object]:
    return [
        pytest.param(fault, id=f"{fault.kind}: {fault.bad}", marks=[] if fault.quick else pytest.mark.slow)
        for fault in FAULTS
        if f"{fault.kind}: {fault.bad}" not in OPEN
    ]


@pytest.mark.jax
@pytest.mark.torch
@pytest.mark.parametrize("fault", cases())
def test_a_fault_is_found_and_said(fault: Fault) -> None:
    """The first place is the module's where it is, and behind what is said of it no difference is left."""
    report = compared(fault.kind, port(fault.kind, fault.bad))
    assert not report.ok
    assert report.places, f"{fault.kind}, {fault.bad}: no place"
    first = report.places[0]
    place = " ".join((*first.torch, *first.also))
    assert re.search(fault.where, place), f"{fault.bad} is found at {place or first.jax}, not at {fault.where}"
    said = " ".join(one.diagnosis for one in report.places)
    assert re.search(fault.says, said), f"{fault.bad} is said to be {said!r}, not {fault.says}"


def test_faults_are_many() -> None:
    """More than a hundred in five kinds, without those that are open: docs/comparing.md says so."""
    told = [fault for fault in FAULTS if f"{fault.kind}: {fault.bad}" not in OPEN]
    assert len(told) > 100
    assert min(Counter(fault.kind for fault in FAULTS).values()) >= 8
    assert {f"{fault.kind}: {fault.bad}" for fault in FAULTS} >= OPEN
