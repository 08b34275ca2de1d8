"""Attention on a GPU beside its peers, in both frameworks: at most four minutes.

    python benchmarks/gpu.py [--json FILE] [--seconds 225] [--only torch|jax]
    python benchmarks/gpu.py --dry    the whole script on a CPU, at tiny sizes: its figures mean nothing

bfloat16, H 16, D 128, at B 2, N 4096 and B 1, N 16384; full, causal, a window of 1024, 8 causal documents a row, and
padding; forward, and forward and backward, with the memory of each above what was there. The peers: SDPA as it chooses
and each of its back ends, compiled FlexAttention, varlen_attn; cuDNN's attention by jax.nn, and XLA's. Then a tiny
call, and documents that are new at each step.

Each framework is a process of its own; both compile at once, and take turns at what is timed. What does not fit into
the time is left out, and said. It needs PyTorch and JAX, NumPy and ml_dtypes, jaxtyping and Flax, from the repository's
root with PYTHONPATH=. and no installation. gpu_table.py draws and tabulates what this finds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEES = {
    "torch": "import torch; assert torch.cuda.is_available(), f'PyTorch {torch.__version__} sees no CUDA device'",
    "jax": "import jax; assert jax.default_backend() == 'gpu', f'JAX {jax.__version__} sees {jax.devices()}'",
}


def missing(frameworks: list[str], environment: dict[str, str]) -> list[str]:
    """What each framework says that finds no GPU."""
    tries = {
        name: subprocess.Popen([sys.executable, "-c", SEES[name]], env=environment, stderr=subprocess.PIPE, text=True)
        for name in frameworks
    }
    said = {name: process.communicate()[1].strip().splitlines() for name, process in tries.items()}
    return [f"{name}: {said[name][-1]}" for name, process in tries.items() if process.returncode]


def measured(frameworks: list[str], dry: bool, seconds: float) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The lines of both halves, and how each ended."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    start = time.time()
    if not dry and (faults := missing(frameworks, environment)):
        raise SystemExit(f"gpu.py: there is no GPU ({'; '.join(faults)}); --dry runs it on a CPU, at tiny sizes")
    with tempfile.TemporaryDirectory() as folder:
        left = seconds - (time.time() - start)
        command = [dry * "dry" or "gpu", str(left), folder]
        halves = {
            name: subprocess.Popen([sys.executable, str(HERE / f"gpu_{name}.py"), name, *command], env=environment)
            for name in frameworks
        }
        ended = {}
        for name, half in halves.items():
            try:
                ended[name] = half.wait(timeout=max(1.0, seconds + 10 - (time.time() - start)))
            except subprocess.TimeoutExpired:
                half.kill()
                ended[name] = half.wait()
        lines = []
        for name in frameworks:
            file = Path(folder) / f"{name}.jsonl"
            lines += [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return lines, ended


def commit() -> str:
    """The code that was measured."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(git, capture_output=True, text=True)
    return found.stdout.strip() or "no repository"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=225.0)
    parser.add_argument("--only", choices=list(SEES))
    parser.add_argument("--dry", action="store_true")
    given = parser.parse_args()
    frameworks = [given.only] if given.only else list(SEES)
    lines, ended = measured(frameworks, given.dry, given.seconds)
    found = {
        "code": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "dry": given.dry,
        "python": platform.python_version(),
        "results": lines,
    }
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    bad = [f"the half of {name} ended with {code}" for name, code in ended.items() if code]
    if bad:
        raise SystemExit("gpu.py: " + "; ".join(bad))


if __name__ == "__main__":
    main()
