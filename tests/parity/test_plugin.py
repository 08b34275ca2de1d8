"""The pytest plugin, in processes of its own."""

from __future__ import annotations

import subprocess
import sys


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)


def test_loading_the_plugin_imports_no_framework_and_no_suite():
    heavy = "[m for m in ('torch', 'jax', 'numpy', 'maskattn.parity.attention.cases') if m in sys.modules]"
    found = _python("-c", f"import sys, maskattn.parity.plugin; print({heavy})")
    assert found.stdout.strip() == "[]", found.stderr


def test_other_peoples_attention_is_judged():
    """The mean-of-nothing convention of this adapter is reported as a skip with its reason, the rest must hold."""
    impl = "--parity-impl=tests.parity.attention.test_run:Plain"
    tests = "parity_tests/test_parity.py"
    found = _python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", impl, "--parity-samples=0", tests, "-k", "one or row"
    )
    assert found.returncode == 0, found.stdout
    assert "passed" in found.stdout


def test_a_broken_adapter_fails():
    impl = "--parity-impl=tests.parity.attention.test_run:Broken"
    tests = "parity_tests/test_parity.py"
    found = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", impl, tests, "-k", "one")
    assert found.returncode == 1
    assert "no such luck" in found.stdout and "composition/one/float32/2" in found.stdout
