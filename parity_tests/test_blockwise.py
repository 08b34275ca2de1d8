"""The blockwise kernel in small tiles: cases and relations that cost few compilations; every case where slow tests run,
or by `--parity-kernel blockwise`, or `maskattn parity --kernel blockwise`.
"""

from __future__ import annotations

import pytest

from maskattn.parity.attention import adapters
from maskattn.parity.attention.cases import registry
from maskattn.parity.attention.relations import RELATIONS
from maskattn.parity.attention.run import run_cases
from maskattn.parity.findings import failures

#: JAX compiles once a shape: it is asked about every mask on one.
CHOSEN = {"torch": lambda case: True, "jax": lambda case: "/square/float32/" in case.id}


@pytest.mark.parametrize("twin", adapters.TWINS)
def test_cases(twin):
    chosen = [case for case in registry() if CHOSEN[twin](case)]
    result = run_cases(chosen, [adapters.twin(twin, "blockwise")], kernel="blockwise")
    assert not result.failures, "\n".join(result.failures[:30])
    assert all('"mean"' in outcome.reasons[0] for outcome in result.not_run)
    assert len(result.outcomes) - len(result.not_run) > 60


@pytest.mark.slow
@pytest.mark.jax
def test_every_case_in_jax():
    chosen = [case for case in registry() if not CHOSEN["jax"](case)]
    result = run_cases(chosen, [adapters.twin("jax", "blockwise")], kernel="blockwise")
    assert not result.failures, "\n".join(result.failures[:30])
    assert len(result.outcomes) - len(result.not_run) > len(chosen) // 2


#: Those that keep the shape, which JAX compiles once, and packing; in JAX the others are left to slow tests.
FEW = ("left_padding", "packed", "permutations", "same_mask", "masked_replaced")


@pytest.mark.parametrize("twin", adapters.TWINS)
@pytest.mark.parametrize(
    "relation", [pytest.param(x, marks=[pytest.mark.slow_in("jax")] * (x not in FEW)) for x in RELATIONS]
)
def test_relation(relation, twin):
    found = RELATIONS[relation](adapters.twin(twin, "blockwise"), 1)
    # what is not finite is kept from the tiles that may not attend to it, not from every query of a mixed tile
    found = [finding for finding in found if finding.check not in ("masked = NaN", "masked = inf")]
    assert found
    assert not failures(found), "\n".join(map(str, failures(found)))
