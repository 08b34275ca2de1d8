"""Whoever has installed one framework runs that half of the suite: the rest is skipped by name, and nothing fails."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import frameworks
from tests.frameworks import Missing, in_both, jax, jnp, torch
from tests.without import PACKAGES

ROOT = Path(__file__).parents[1]
#: Some of every kind: over `twin`, of one framework, of the parity suite, of the packages' and the pages' examples.
SOME = {
    "test_precision_changes_nothing_on_the_cpu": ("jax-default", "torch-default"),
    "test_sizes_that_conflict_are_named": ("jax-", "torch-"),
    "test_autocast_does_not_lower_the_kernel": (None, ""),
    "test_positions_that_int32_cannot_hold_are_refused": ("", None),
    "test_compositions_of_all_patterns_survive": None,
}


@in_both
@pytest.mark.slow
@pytest.mark.parametrize("missing", PACKAGES)
def test_everything_is_collected_and_one_half_runs(missing):
    there = {"jax": "torch", "torch": "jax"}[missing]
    chosen = ["-k", " or ".join([*SOME, "kernels.merging", "dropout.md", "test_cases and reference and one-float32"])]
    command = [sys.executable, "tests/without.py", missing, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.findall(r"^PASSED (\S+)", done.stdout, re.MULTILINE)
    for name, marks in SOME.items():
        found = [test for test in passed if f"::{name}" in test]
        if marks is None:
            assert found
            continue
        here, gone = (dict(zip(("jax", "torch"), marks, strict=True))[framework] for framework in (there, missing))
        assert bool(found) is (here is not None), name
        assert not gone or not any(gone in test for test in found), found
    assert f"maskattn_{there}/kernels/merging.py" in "".join(passed)
    assert any("test_cases" in test and "reference" in test and "one-float32" in test for test in passed)
    assert re.search(rf"^SKIPPED \[\d+\] .*: needs {missing}$", done.stdout, re.MULTILINE)


def by_name():
    return jnp.zeros(3)


def through_another():
    return by_name()


class Holder:
    def method(self):
        import torch

        return torch.zeros(3)


def through_a_class():
    return Holder().method()


def of_no_framework():
    return re.compile("jax")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (by_name, {"jax"}),
        (through_another, {"jax"}),
        (through_a_class, {"torch"}),
        (lambda: (jax.grad, torch.tensor), {"jax", "torch"}),
        (lambda: [(lambda: torch.tensor) for _ in "ab"], {"torch"}),
        (of_no_framework, set()),
        (Missing("jax.numpy.float32"), {"jax"}),
    ],
)
def test_what_a_test_needs_is_what_its_code_names(value, expected):
    assert frameworks.of_values([value]) == expected


def test_what_is_missing_fails_in_a_test_that_has_no_marker():
    with pytest.raises(ModuleNotFoundError, match="jax.numpy.zeros is missing"):
        Missing("jax").numpy.zeros(3)


def test_what_is_missing_may_be_named_while_tests_are_collected(monkeypatch):
    monkeypatch.setattr(frameworks, "_collecting", True)
    absent = Missing("torch")

    class Module(absent.nn.Module):
        pass

    assert isinstance(absent.zeros(3), Missing) and Module.__mro__ == (Module, object)


def test_a_file_needs_what_it_imports_first(tmp_path):
    path = tmp_path / "test_x.py"
    path.write_text("import numpy\nfrom maskattn_torch import rng\n\ndef test():\n    import jax\n")
    assert frameworks.of_file(path) == {"torch"}
    assert frameworks.of_file(ROOT / "maskattn_jax" / "rng.py") == {"jax"}
    assert frameworks.of_file(ROOT / "maskattn" / "arrays.py") == set()
