"""Exact mode gives the same bits however JAX is run: eagerly, jitted with the mask as argument, with jit disabled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskattn import masks
from maskattn.parity.attention import adapters
from maskattn.parity.attention.cases import Shape, get
from maskattn.parity.attention.run import run_cases

#: Each case is a compilation of its own in each mode, so few stand for all.
CASES = {"eager": ["options/all/float32"], "jit-mask": ["options/plain/float32"]}
#: Without jit every operation is compiled by itself for every shape and dtype: sizes that are alike make it quick.
TINY = Shape(batch=1, q_len=2, kv_len=2, heads=2, kv_heads=1, head_dim=2, v_head_dim=2)


#: Left to slow tests.
MORE = {"eager": ["options/plain/float64"]}


def cases(mode, names):
    if mode != "disable_jit":
        return [get(name) for name in names]
    names = "options/dropout-all/float32", "options/plain/bfloat16"
    return [replace(get(name), shape=TINY, mask=masks.Causal(-1)) for name in names]


@pytest.mark.jax
@pytest.mark.parametrize(
    ("mode", "names"),
    [
        *CASES.items(),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE.items()),
        pytest.param("disable_jit", [], marks=pytest.mark.slow),
    ],
)
def test_exact_in_every_mode_of_jax(mode, names):
    jax = adapters.twin("jax", "exact", mode=mode)
    result = run_cases(cases(mode, names), [adapters.NumpyExact(), jax], kernel="exact")
    assert not result.failures, "\n".join(result.failures)
    assert not result.not_run
    assert result.elements > 50
