"""Exact mode gives the same bits however JAX is run: eagerly, jitted with the mask as argument, with jit disabled."""

from __future__ import annotations

import pytest

from maskattn.parity.attention import adapters
from maskattn.parity.attention.cases import get
from maskattn.parity.attention.run import run_cases

#: Each case is a compilation of its own in each mode (or, without jit, a thousand small ones), so few stand for all.
CASES = {
    "eager": ["options/all/float32", "options/plain/float64"],
    "jit-mask": ["options/plain/float32"],
    "disable_jit": ["options/all/float32", "options/plain/bfloat16"],
}


@pytest.mark.jax
@pytest.mark.parametrize("mode", CASES)
def test_exact_in_every_mode_of_jax(mode):
    jax = adapters.twin("jax", "exact", mode=mode)
    result = run_cases([get(name) for name in CASES[mode]], [adapters.NumpyExact(), jax], kernel="exact")
    assert not result.failures, "\n".join(result.failures)
    assert not result.not_run
    assert result.elements > 500
