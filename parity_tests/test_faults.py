"""The suite is itself tested: every known mistake, in either twin, is caught, and nothing is seen without one."""

from __future__ import annotations

import pytest

from maskattn.parity.attention import adapters, faults
from maskattn.parity.attention.fault_list import FAULTS

#: JAX compiles anew with each fault; those of PyTorch show that the cases see them.
over_twins = pytest.mark.parametrize(
    "twin", [pytest.param(x, marks=[pytest.mark.slow] * (x == "jax")) for x in adapters.TWINS]
)


@over_twins
def test_every_planted_fault_is_caught(twin):
    missed = [fault.name for fault in FAULTS if not faults.caught(fault, twin)]
    assert not missed


@over_twins
def test_without_a_fault_the_same_cases_hold(twin):
    """Run after the faults in the same way: nothing planted has stayed behind."""
    once = {(fault.cases, fault.uses): fault for fault in FAULTS}
    failures = [line for fault in once.values() for line in faults.clean(fault, twin)]
    assert not failures, "\n".join(failures)


def test_fault_names_are_distinct():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
