"""What `examples` of every mask gives, and the cases of recipes and biases."""

from __future__ import annotations

import pytest

from maskattn.parity.attention.cases import Shape, families, registry
from maskattn.parity.draws import Draws


@pytest.mark.parametrize("lengths", [(1, 1), (1, 7), (7, 3), (3, 7), (2, 2), (2, 3), (6, 6), (13, 13)])
def test_examples_fit_every_shape(lengths):
    """Neighborhoods larger than a small grid, trees of no node: examples give only what fits."""
    for batch, heads in ((1, 1), (3, 4)):
        shape = Shape(batch, *lengths, heads, 1, 3, 2)
        for name, cls in families().items():
            for mask in cls.examples(shape, Draws(f"{name}{lengths}")):
                assert mask.dense(*lengths, batch=batch, heads=heads).shape == shape.scores


def test_recipes_biases_and_awkward_shapes_have_cases():
    from maskattn.recipes import EXAMPLES

    ids = {case.id for case in registry()}
    assert {f"recipe/{name}/float32" for name in EXAMPLES} <= ids
    assert sum(case.family == "bias" and case.table is not None for case in registry()) >= 5
    random = [case for case in registry() if case.family == "composition"]
    assert {(1, 1), (1, 11), (5, 17), (13, 7)} <= {(case.shape.q_len, case.shape.kv_len) for case in random}
