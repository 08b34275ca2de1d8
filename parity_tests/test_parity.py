"""Every case of the registry: each implementation against the oracle, and in exact mode against one another.

`pytest parity_tests --parity-impl pkg.mod:ADAPTER` runs the same cases over other people's attention.
"""

from __future__ import annotations

import functools

import pytest

from maskattn import standards
from maskattn.parity.attention import adapters
from maskattn.parity.attention.cases import SHAPES, fresh, registry
from maskattn.parity.attention.cases.recipes import LENGTH
from maskattn.parity.attention.run import run_cases
from tests.frameworks import MISSING

SAMPLES = 600_000
#: Options that others hold too: "all" and "dropout-all" these but one, "bias" the additive one.
TOGETHER = ("scale", "softcap", "sinks", "additive", "empty-mean-sinks", "empty-error-none", "dropout")


@functools.cache
def _one_of_each_bias() -> dict[type, str]:
    """The first case of each bias, by its class."""
    return {type(case.bias): case.id for case in reversed(list(registry())) if case.family == "bias"}


def _repeats(case, kernel: str) -> bool:
    """Whether what JAX would compile for it, in exact mode for seconds, others show already.

    Every dtype on one shape and every shape in one dtype stand for all, and so does every option, in those cases that
    have several; a recipe's mask and a bias are arrays to this kernel (`reference` takes every one), so that those of
    one shape, and one case of each bias, stand for the others.
    """
    name = case.id.split("/")[1]
    if kernel == "reference" and case.family not in ("options", "bias", "MultiHeadAttention"):
        return False
    if case.family == "recipe":
        return (case.shape.batch, case.shape.q_len, case.shape.kv_len) != (2, LENGTH, LENGTH)
    if case.family == "options":
        return name in (TOGETHER if case.dtype == "float32" else ("plain", "dropout"))
    if case.family == "bias":
        return case.id != _one_of_each_bias()[type(case.bias)]
    if case.family == "MultiHeadAttention":  # the module with dropout is that of float32 itself; the options are above
        return case.dtype == "float32" and name in ("self", "softcap-sinks")
    return case.dtype != "float32" and case.shape in (SHAPES["wide"], SHAPES["tall"])


def _implementations(impls: list, kernel: str) -> list:
    """Where none is given, the twins whose framework is installed; for "exact" NumPy, too."""
    if impls:
        return impls
    here = [adapters.twin(name, kernel) for name in adapters.TWINS if name not in MISSING]
    return here + [adapters.NumpyExact()] * (kernel == "exact")


def _assert_held(result, expect_all: bool = True) -> None:
    assert not result.failures, "\n".join(result.failures[:30])
    if expect_all:
        not_run = [f"{outcome.case.id} [{outcome.subject}]: {outcome.reasons}" for outcome in result.not_run]
        assert not not_run, "\n".join(not_run)


def _skip_if_none_ran(result, parity_impls: list) -> None:
    """Other people's implementations may take on no case here, or differ by a declared convention in every one."""
    if parity_impls and len(result.not_run) == len(result.outcomes):
        pytest.skip("; ".join(sorted({reason for outcome in result.not_run for reason in outcome.reasons})))


def test_cases(group, kernel, parity_impls):
    implementations = _implementations(parity_impls, kernel)
    if parity_impls or kernel not in ("exact", "reference"):
        result = run_cases(group, implementations, kernel=kernel)
        _skip_if_none_ran(result, parity_impls)
        _assert_held(result, expect_all=not parity_impls)
    else:
        without_jax = [adapter for adapter in implementations if adapter.name != "jax"]
        for repeated, chosen in ((False, implementations), (True, without_jax)):
            part = [case for case in group if _repeats(case, kernel) == repeated]
            if part and chosen:
                result = run_cases(part, chosen, kernel=kernel)
                _assert_held(result)
                assert {outcome.case.id for outcome in result.outcomes if outcome.findings} == {c.id for c in part}


@pytest.mark.slow
@pytest.mark.jax
@pytest.mark.parametrize("kernel", ["exact", "reference"])
def test_cases_that_repeat_others_in_jax(kernel):
    chosen = [case for case in registry() if _repeats(case, kernel)]
    implementations = [adapters.twin("jax", kernel)] + [adapters.NumpyExact()] * (kernel == "exact")
    _assert_held(run_cases(chosen, implementations, kernel=kernel))


@pytest.mark.parametrize("stream", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_random_compositions_agree_bit_for_bit(stream, parity_impls, parity_kernels, parity_samples):
    kernel = "exact" if "exact" in parity_kernels else parity_kernels[0]
    samples = (SAMPLES if parity_samples is None else parity_samples) // 2
    cases = fresh(1000 + 1_000_000 * stream)
    implementations = _implementations(parity_impls, kernel)
    elements, ran = 0, 0
    while elements < samples:
        result = run_cases([next(cases) for _ in range(10)], implementations, kernel=kernel)
        _skip_if_none_ran(result, parity_impls)
        _assert_held(result, expect_all=not parity_impls)
        assert result.elements
        elements += result.elements
        ran += len(result.outcomes)
    assert ran >= standards.value("suite.cases") or not samples
