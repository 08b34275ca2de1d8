"""The wheel in dist/ in clean environments, with the oldest and the newest of what it allows: `make smoke`.

Each environment has the core alone, JAX, PyTorch or both, and nothing of the checkout: neither its folder nor a path to
it. What `release/smoke.py` finds there, and what was installed, is a table at the end. Oldest are the floors of
pyproject.toml; newest is what pip resolves. Exit code 0: all held.

    python release/environments.py                  # all eight
    python release/environments.py --only 'oldest *' --torch torch==2.13.0
    python release/environments.py --python 'newest torch=/usr/bin/python3.12'
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = {"oldest": ("python3.11",), "newest": ("python3.13", "python3.12", "python3.11")}
KINDS = ("core", "jax", "torch", "all")
#: What the table names, of what was installed.
TOLD = ("numpy", "ml_dtypes", "jax", "flax", "torch")
VERSIONS = """
import importlib.metadata, json
print(json.dumps({one.name: one.version for one in importlib.metadata.distributions()}))
"""


@dataclass(frozen=True)
class Row:
    """An environment, and what came of it."""

    age: str
    kind: str
    python: str
    result: str = "not run"
    versions: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.age} {self.kind}"


def floors(project: Path) -> dict[str, str]:
    """The oldest version that pyproject.toml allows of each package: of the core, and of what its extras bring."""
    told = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    wanted = [*told["dependencies"], *(one for name in ("jax", "torch", "all", "plot", "orbax", "gguf", "dev")
                                       for one in told["optional-dependencies"][name])]  # fmt: skip
    found = (re.match(r"([\w-]+)>=([\w.]+)", text) for text in wanted)
    return {match[1]: match[2] for match in found if match}


def rows(pattern: str, pythons: list[str]) -> Iterator[Row]:
    """The environments whose name matches; of `pythons`, NAME=PATH, the last that matches names the interpreter."""
    for age, defaults in PYTHONS.items():
        for kind in KINDS:
            name = f"{age} {kind}"
            if fnmatch(name, pattern):
                named = [path for one in pythons for glob, _, path in [one.partition("=")] if fnmatch(name, glob)]
                yield Row(age, kind, named[-1] if named else next(filter(runs, defaults), defaults[0]))


def runs(program: str) -> bool:
    """Whether an interpreter starts: version managers put names on the path of some that do not."""
    return (
        shutil.which(program) is not None and not subprocess.run([program, "--version"], capture_output=True).returncode
    )


def tried(row: Row, wheel: Path, torch: str | None) -> tuple[Row, str]:
    """A row with its result, and what was said where it failed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="maskattn-") as folder:
        home = Path(folder)
        run = home / "env" / "bin" / "python"
        extra = "" if row.kind == "core" else f"[{row.kind}]"
        wanted = [f"{wheel}{extra}", "pytest>=9.0", *([torch] if torch and row.kind in ("torch", "all") else [])]
        known = floors(ROOT / "pyproject.toml") if row.age == "oldest" else {}
        named = re.split(r"[^\w-]", torch)[0] if torch else None
        pins = home / "oldest.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in known.items() if name != named))
        shutil.copy(ROOT / "release" / "smoke.py", home)
        told = ""
        for what, command in {
            "not made": [row.python, "-m", "venv", str(home / "env")],
            "not installed": [str(run), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                              "--only-binary", ":all:", "--constraint", str(pins), *wanted],
            "pip check": [str(run), "-m", "pip", "check"],
            "versions": [str(run), "-c", VERSIONS],
            "FAILED": [str(run), "smoke.py", row.kind],
        }.items():  # fmt: skip
            environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
            try:
                done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
            except FileNotFoundError as error:
                return replace(row, result=what), str(error)
            if done.returncode:
                row = replace(row, result=what, seconds=time.monotonic() - start)
                return row, done.stdout + done.stderr
            if what == "versions":
                has = json.loads(done.stdout)
                told = ", ".join(f"{name} {has[name]}" for name in TOLD if name in has)
                row = replace(row, versions=told)
    return replace(row, result=done.stdout.splitlines()[-1], seconds=time.monotonic() - start), ""


def main() -> int:
    """Tries every environment that is asked for; the number of those that did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", metavar="GLOB", help="for example 'oldest *', or '* core'")
    parser.add_argument("--python", action="append", default=[], metavar="GLOB=PATH", help="the interpreter of these")
    parser.add_argument(
        "--torch", metavar="REQUIREMENT", help="PyTorch as pip is asked for it, where a plain one is not a CPU build"
    )
    given = parser.parse_args()
    wheels = list((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"expected one wheel in dist/, found {len(wheels)}: make dist builds it")
    console, done = Console(), []
    chosen = list(rows(given.only, given.python))
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        for row in chosen:
            bar.update(task, description=f"{row.name}, {row.python}")
            row, said = tried(row, wheels[0], given.torch)
            done.append(row)
            had = f" ({row.versions})" if row.versions else ""
            console.print(f"{row.name}, {Path(row.python).name}: {row.result}{had}", highlight=False, soft_wrap=True)
            if said:
                console.print(said, markup=False, highlight=False, soft_wrap=True)
    table = Table("versions", "with", "Python", "installed", "smoke test", "seconds")
    for row in done:
        table.add_row(row.age, row.kind, Path(row.python).name, row.versions, row.result, f"{row.seconds:.0f}")
    console.print(table)
    return sum("held" not in row.result for row in done) + (not done)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
