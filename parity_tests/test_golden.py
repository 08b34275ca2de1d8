"""Committed hashes of exact results. After a wanted change, run `maskattn.parity.attention.golden`, and say why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskattn.parity.attention import adapters, golden

EXPECTED = json.loads(Path(__file__).with_name("golden.json").read_text())


def test_every_golden_case_has_its_hashes():
    assert set(EXPECTED) == {case.id for case in golden.golden_cases()}


#: In JAX each is a compilation, and that its bits are NumPy's is shown by test_parity: one stands for all.
FEW = {"golden/dropout"}


@pytest.mark.parametrize(
    ("twin", "names"),
    [
        ("torch", sorted(EXPECTED)),
        ("jax", sorted(FEW)),
        pytest.param("jax", sorted(EXPECTED.keys() - FEW), marks=pytest.mark.slow),
        ("numpy", sorted(EXPECTED)),
    ],
    ids=["torch", "jax", "jax-others", "numpy"],
)
def test_golden_hashes(twin, names):
    adapter = adapters.NumpyExact() if twin == "numpy" else adapters.twin(twin, "exact")
    for case in golden.golden_cases():
        if case.id not in names:
            continue
        found = golden.hashes(adapter, case)
        changed = [quantity for quantity, digest in found.items() if EXPECTED[case.id].get(quantity) != digest]
        assert not changed, f"{case.id}: {', '.join(changed)} are no longer the bits they were"
        assert set(found) == set(EXPECTED[case.id])
