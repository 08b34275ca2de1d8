"""Exact mode gives the same bits however JAX is run: eagerly, jitted with the mask as argument, and with jit disabled."""

from __future__ import annotations

import pytest

from maskattn.parity import adapters
from maskattn.parity.cases import get
from maskattn.parity.run import run

CASES = [f"options/{option}/{dtype}" for option in ("plain", "all") for dtype in ("float32", "bfloat16")]
CASES += ["options/plain/float64", "options/plain/float16"]


@pytest.mark.parametrize("mode", ["eager", "jit-mask", "disable_jit"])
def test_exact_in_every_mode_of_jax(mode):
    jax = adapters.twins("exact", mode=mode)[1]
    result = run([get(name) for name in CASES], [adapters.NumpyExact(), jax], kernel="exact")
    assert not result.failures, "\n".join(result.failures)
    assert not result.not_run
    assert result.elements > 1000
