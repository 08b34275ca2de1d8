"""The relations every kernel keeps: bit for bit in exact, within the limits of both sides in reference."""

from __future__ import annotations

import pytest

from maskattn.parity.attention import adapters
from maskattn.parity.attention.relations import RELATIONS
from maskattn.parity.findings import failures

#: NumPy stands for all in exact: the twins' exact bits are NumPy's, case by case, in test_parity. JAX compiles once a
#: shape, so it is asked about those relations that keep the shape.
SAME_SHAPE = ("left_padding", "permutations", "same_mask", "masked_replaced")


def _adapter(name: str, kernel: str):
    return {adapter.name: adapter for adapter in adapters.standard(kernel)}[name]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("implementation", ["numpy-exact", "torch-exact", "torch-reference"])
def test_relation(relation, implementation):
    name, kernel = implementation.split("-")
    for seed in (1, 2, 3) if name == "numpy" else (1,):
        found = RELATIONS[relation](_adapter(name, kernel), seed)
        assert found
        assert not failures(found), "\n".join(map(str, failures(found)))


@pytest.mark.parametrize("kernel", ["exact", "reference"])
def test_relations_in_jax(kernel):
    for relation in SAME_SHAPE if kernel == "exact" else RELATIONS:
        found = RELATIONS[relation](_adapter("jax", kernel), 1)
        assert found
        assert not failures(found), "\n".join(map(str, failures(found)))
