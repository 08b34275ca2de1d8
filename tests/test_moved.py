"""Old import paths work for one version: each warns, naming the new one, and gives the very same module."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from maskattn import _moved

ROOT = Path(__file__).parents[1]

# Imports old paths in a new interpreter, those inside packages too, and prints what was wrong.
IMPORT = """
import importlib, json, pkgutil, sys, warnings
def below(name):
    path = getattr(importlib.import_module(name), "__path__", ())
    return [name, *(part.name for part in pkgutil.walk_packages(path, name + "."))]
faults = []
for old, new in json.loads(sys.argv[1]).items():
    names = [old] if sys.argv[2] == "old first" else [name.replace(new, old, 1) for name in below(new)]
    for name in names:
        target = name.replace(old, new, 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module = importlib.import_module(name)
        said = [str(w.message) for w in caught if issubclass(w.category, DeprecationWarning)]
        if f"{name} is now {target}; the old name goes with the next version" not in said:
            faults.append(f"{name}: no warning, only {said}")
        same = importlib.import_module(target)
        if not (module is sys.modules[name] is same and same.__name__ == same.__spec__.name == target):
            faults.append(f"{name}: another module than {target}")
print(json.dumps(faults))
"""


def run(code, *arguments):
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("order", ["old first", "new first"])
@pytest.mark.parametrize("package", ["maskattn", "maskattn_jax", "maskattn_torch"])
def test_an_old_path_warns_and_gives_the_same_module(package, order):
    moved = {old: new for old, new in _moved._MOVED.items() if old.partition(".")[0] == package}
    assert moved and run(IMPORT, json.dumps(moved), order) == []


def test_functions_that_have_other_names_now_are_found_by_the_old_ones():
    """The names that were documented when a module moved: with a warning each, and only through the old path."""
    code = """
import json, warnings
from maskattn import schedule
warnings.simplefilter("ignore")
from maskattn import pieces, tiles
warnings.simplefilter("error")
said = []
for module, name in ((tiles, "schedule"), (tiles, "reached"), (tiles, "empty_rows"), (pieces, "pieces")):
    try:
        getattr(module, name)
    except DeprecationWarning as warning:
        said.append(str(warning).partition(";")[0])
warnings.simplefilter("ignore")
assert tiles.schedule == schedule.Schedule.of and tiles.reached is schedule.reached
assert tiles.empty_rows is schedule.empty_rows and pieces.pieces is schedule.pieces_of
assert not hasattr(tiles, "nothing")
print(json.dumps(said))
"""
    assert run(code) == [
        "maskattn.tiles.schedule is now maskattn.schedule.Schedule.of",
        "maskattn.tiles.reached is now maskattn.schedule.reached",
        "maskattn.tiles.empty_rows is now maskattn.schedule.empty_rows",
        "maskattn.pieces.pieces is now maskattn.schedule.pieces_of",
    ]
