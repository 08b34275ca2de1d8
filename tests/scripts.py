"""Tests that need a process of their own, with several devices, say: a script, and the test that runs it."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(script: Path) -> None:
    """Fails where a script of `each` fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[-1] == "done"


def each(tests: Sequence[Callable[[], None]]) -> None:
    """The body of a script: its tests, or those that its arguments name."""
    for test in tests:
        if test.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            print(test.__name__, flush=True)
            test()
    print("done")
