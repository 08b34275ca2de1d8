"""Programs as tests reach them: scripts for a process of their own, with several devices, say, and benchmarks."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def of_benchmarks(name: str) -> ModuleType:
    """A file of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: Path) -> None:
    """Fails where a script of `each` fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[-1] == "done"


def of_processes(script: Path, count: int, folder: Path) -> list[dict[str, str]]:
    """What a script that is run by several processes at once found in each: what went wrong in each of its checks.

    It is called with its rank, the file where processes meet, and the file that, with ".rank", it writes this to.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder / "store"), str(folder / "found")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(said)
    return [json.loads((folder / f"found.{rank}").read_text(encoding="utf-8")) for rank in range(count)]


def each(tests: Sequence[Callable[[], None]]) -> None:
    """The body of a script: its tests, or those that its arguments name."""
    for test in tests:
        if test.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            print(test.__name__, flush=True)
            test()
    print("done")
