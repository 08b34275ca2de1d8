"""The relations every kernel keeps: bit for bit in exact, within the limits of both sides in reference."""

from __future__ import annotations

import pytest

from maskattn.parity.attention import adapters
from maskattn.parity.attention.relations import RELATIONS
from maskattn.parity.findings import failures

#: NumPy stands for all in exact: the twins' exact bits are NumPy's, case by case, in test_parity. JAX compiles once a
#: shape, so it is asked about those relations that keep the shape, and in slow tests about all, in reference.
SAME_SHAPE = ("left_padding", "permutations", "same_mask", "masked_replaced")


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(("twin", "kernel"), [("numpy", "exact"), ("torch", "exact"), ("torch", "reference")])
def test_relation(relation, twin, kernel):
    adapter = adapters.NumpyExact() if twin == "numpy" else adapters.twin(twin, kernel)
    for seed in (1, 2, 3) if twin == "numpy" else (1,):
        found = RELATIONS[relation](adapter, seed)
        assert found
        assert not failures(found), "\n".join(map(str, failures(found)))


@pytest.mark.jax
@pytest.mark.parametrize(
    ("kernel", "relations"),
    [
        ("exact", SAME_SHAPE),
        ("reference", SAME_SHAPE),
        pytest.param("reference", sorted(RELATIONS.keys() - SAME_SHAPE), marks=pytest.mark.slow),
    ],
    ids=["exact", "reference", "reference-others"],
)
def test_relations_in_jax(kernel, relations):
    for relation in relations:
        found = RELATIONS[relation](adapters.twin("jax", kernel), 1)
        assert found
        assert not failures(found), "\n".join(map(str, failures(found)))
