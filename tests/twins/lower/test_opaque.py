"""JAX: XLA folds nothing from a mask or bias that is a constant, and it gives what an argument gives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import maskattn_jax
from maskattn import masks
from maskattn_jax.lower import opaque

LENGTH = 24
KEEP = np.tril(np.ones((1, 1, LENGTH, LENGTH), bool))
FORMS = {
    "cast": lambda keep: (jnp.asarray(KEEP, jnp.float32) + jnp.zeros(())).astype(bool),
    "inverted": lambda keep: ~jnp.asarray(~KEEP),
    "numpy": lambda keep: jnp.asarray(KEEP),
    "sliced": lambda keep: jnp.pad(jnp.asarray(KEEP), ((0, 0), (0, 0), (1, 0), (1, 0)))[:, :, 1:, 1:],
    "made": lambda keep: jnp.tril(jnp.ones((1, 1, LENGTH, LENGTH), bool)),
    "with objects": lambda keep: masks.Not(masks.Dense(~jnp.asarray(KEEP))) & masks.KeyPadding(jnp.full(1, LENGTH)),
    "argument": lambda keep: keep,
}
HELD = re.compile(rf"optimization_barrier .*tensor<1x1x{LENGTH}x{LENGTH}x(i1|f32)>")


def gradients(kernel: str, form: str, q: Array, keep: Array) -> Array:
    return jax.grad(lambda q: (maskattn_jax.attention(q, q, q, FORMS[form](keep), kernel=kernel) ** 2).sum())(q)


def draws() -> Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((1, LENGTH, 2, 8), np.float32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", ["blockwise", "fused", "reference", "exact"])
def test_nothing_is_folded_from_a_mask(kernel, form):
    traced = jax.jit(lambda q, keep: gradients(kernel, form, q, keep)).lower(draws(), jnp.asarray(KEEP))
    assert HELD.search(traced.as_text())


@pytest.mark.parametrize("kernel", ["blockwise", "fused", "reference", "exact"])
def test_nothing_is_folded_from_a_bias(kernel):
    bias = jnp.where(jnp.asarray(KEEP), 0.5, -jnp.inf)
    traced = jax.jit(lambda q: maskattn_jax.attention(q, q, q, bias=bias, kernel=kernel))
    assert HELD.search(traced.lower(draws()).as_text())


@pytest.mark.parametrize("form", ["cast", "inverted", "with objects"])
def test_a_constant_gives_what_an_argument_gives(form):
    q, keep = draws(), jnp.asarray(KEEP)
    run = jax.jit(gradients, static_argnums=(0, 1))
    np.testing.assert_array_equal(run("blockwise", form, q, keep), run("blockwise", "argument", q, keep))


def test_under_vmap_scan_cond_and_remat():
    q, keep = draws(), jnp.asarray(KEEP)

    def attend(q: Array, keep: Array) -> Array:
        return maskattn_jax.attention(q, q, q, ~keep ^ True, kernel="blockwise")

    def transformed(q: Array, keep: Array) -> Array:
        mapped = jax.vmap(lambda q: attend(q[None], keep)[0])(q)
        scanned, _ = jax.lax.scan(lambda x, _: (jax.checkpoint(attend)(x, keep), None), q, None, length=1)
        return mapped + scanned + jax.lax.cond(q[0, 0, 0, 0] < 100, attend, lambda q, keep: q, q, keep)

    single = jax.jit(attend)(q, keep)
    np.testing.assert_array_equal(jax.jit(transformed)(q, keep), single + single + single)


def test_a_known_mask_outside_of_traces_stays_as_it_is():
    mask = masks.Dense(jnp.asarray(KEEP))
    assert opaque(mask, draws()) is mask
    assert opaque(None) is None
