"""Imports point one way, and each package runs with nothing but what it names. Every checker is shown to fail, too."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frameworks import in_both

ROOT = Path(__file__).parents[1]
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
TORCH = {"torch", "torchvision", "functorch", "timm"}
FRAMEWORKS = JAX | TORCH | {"transformers"}
TWINS = {"maskattn_jax": TORCH | {"maskattn_torch"}, "maskattn_torch": JAX | {"maskattn_jax"}}

# What a new interpreter holds after importing modules: the top-level names that are neither its own nor the library's.
LOADED = """
import importlib, json, pkgutil, sys
before = set(sys.modules)
package, left_out = sys.argv[1], sys.argv[2:]
def load(name):
    module = importlib.import_module(name)
    for part in pkgutil.iter_modules(getattr(module, "__path__", ()), name + "."):
        if part.name not in left_out:
            load(part.name)
    return module
root = load(package)
for name in getattr(root, "__all__", ()):
    getattr(root, name)
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(names - set(sys.stdlib_module_names) - {package})))
"""


def python(code, *arguments, path=ROOT):
    """Runs code in a new interpreter, in `path`, and returns what came of it."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, cwd=path, capture_output=True, text=True, timeout=300, check=False)


def loaded(package, *left_out, path=ROOT):
    result = python(LOADED, package, *left_out, path=path)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def test_the_core_loads_numpy_and_ml_dtypes_only():
    assert loaded("maskattn", "maskattn.__main__", "maskattn.cli", "maskattn.parity") <= {"numpy", "ml_dtypes"}


def test_no_module_of_maskattn_loads_a_framework():
    assert not loaded("maskattn") & (FRAMEWORKS | set(TWINS))


@pytest.mark.parametrize("where", ["__init__.py", "deep/module.py"])
def test_a_module_that_loads_a_framework_is_seen(tmp_path, where):
    (tmp_path / "planted" / "deep").mkdir(parents=True)
    (tmp_path / "jax.py").touch()  # stands in for the real one, which takes seconds
    for file in ("__init__.py", "deep/__init__.py", where):
        (tmp_path / "planted" / file).touch()
    (tmp_path / "planted" / where).write_text("import jax")
    assert loaded("planted", path=tmp_path) == {"jax"}


# A twin, run with modules blocked: forward and backward of each kernel it has, as SHA-256 of the bits.
BLOCKED = """
import hashlib, importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
twin = importlib.import_module(sys.argv[1])
"""
ATTEND = """
import numpy as np
from maskattn import masks
mask = masks.Causal() & masks.KeyPadding(np.array([5, 3]))
arrays = np.random.default_rng(0).standard_normal((3, 2, 5, 4, 8)).astype(np.float32)
def show(kernel, *results):
    assert all(np.isfinite(np.asarray(result)).all() for result in results)
    bits = b"".join(np.asarray(result).tobytes() for result in results)
    print(kernel, hashlib.sha256(bits).hexdigest())
"""
RUN = {
    "maskattn_jax": """
import jax
for kernel in ("exact", "reference"):
    out, back = jax.vjp(lambda q, k, v: twin.attention(q, k, v, mask, kernel=kernel), *map(jax.numpy.asarray, arrays))
    show(kernel, out, *back(out))
""",
    "maskattn_torch": """
import torch
for kernel in ("exact", "reference"):
    q, k, v = (torch.tensor(array, requires_grad=True) for array in arrays)
    out = twin.attention(q, k, v, mask, kernel=kernel)
    out.backward(out.detach())
    show(kernel, out.detach(), q.grad, k.grad, v.grad)
""",
}


@in_both
def test_each_twin_runs_without_the_other_framework_and_to_the_same_bits():
    lines = {}
    for twin, blocked in TWINS.items():
        result = python(BLOCKED + ATTEND + RUN[twin], twin, *blocked)
        assert result.returncode == 0, result.stderr
        lines[twin] = result.stdout.split("\n")
        assert [line.split()[0] for line in lines[twin] if line] == ["exact", "reference"]
    assert lines["maskattn_jax"][0] == lines["maskattn_torch"][0]


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_module_that_needs_a_blocked_framework_is_seen(tmp_path, framework):
    (tmp_path / "planted.py").write_text(f"import {framework}.anything")
    result = python(BLOCKED, "planted", *JAX, *TORCH, path=tmp_path)
    assert result.returncode != 0
    assert f"ImportError: {framework} is blocked" in result.stderr


def contracts(root, *only):
    """What `make lint` says of the imports of the packages in `root`, and whether it is content."""
    options = [word for contract in only for word in ("--contract", contract)]
    code = "from importlinter import cli; cli.lint_imports_command()"
    result = python(code, "pyproject.toml", "--no-cache", "--no-logo", *options, path=root)
    return result.stdout + result.stderr, result.returncode == 0


@pytest.fixture
def copy(tmp_path):
    """The packages, to plant something in."""
    for package in ("maskattn", *TWINS):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(root, file, line):
    path = root / file
    path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + f"\n{line}\n", encoding="utf-8")


def test_imports_point_one_way():
    said, held = contracts(ROOT)
    assert held, said


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [
        ("rooms", "maskattn/masks/causal.py", "from maskattn.parity import draws"),
        ("rooms", "maskattn/convert/_verify.py", "def f():\n    from maskattn import cli"),
        ("rooms", "maskattn/parity/draws.py", "from ..cli import main"),
        ("rooms", "maskattn/masks/causal.py", "from maskattn import schedule"),
        ("rooms", "maskattn/recipes/language.py", "from maskattn import biases"),
        ("rooms", "maskattn/nowhere.py", ""),
        ("circles", "maskattn/schedule/tiles.py", "def f():\n    from maskattn.schedule import reach"),
        ("circles", "maskattn_jax/tables.py", "from maskattn_jax import lower"),
        ("frameworks", "maskattn/masks/causal.py", "import torch"),
        ("frameworks", "maskattn/convert/_verify.py", "def f():\n    import maskattn_jax"),
        ("frameworks", "maskattn/convert/twins.py", "def f():\n    import maskattn_jax"),
        ("jax", "maskattn_jax/functional.py", "import torch.nn"),
        ("jax", "maskattn_jax/functional.py", "def f():\n    from maskattn_torch import lower"),
        ("torch", "maskattn_torch/losses.py", "import jax"),
        ("judge", "maskattn_jax/auto.py", "from maskattn.parity import draws"),
        ("kernels", "maskattn_jax/kernels/exact/__init__.py", "from maskattn_jax.kernels import reference"),
        ("kernels", "maskattn_torch/kernels/reference.py", "from .exact import ops"),
        ("private", "maskattn/convert/_verify.py", "from maskattn.checkpoints import _seal"),
        ("private", "maskattn_torch/functional.py", "from maskattn_torch.lower import _binding"),
    ],
)
def test_an_import_against_a_rule_is_seen(copy, contract, file, line):
    plant(copy, file, line)
    said, held = contracts(copy, contract)
    assert not held and "Contracts: 0 kept, 1 broken." in said, said


@pytest.mark.parametrize(
    ("contract", "file", "line"),
    [
        ("kernels", "maskattn_jax/kernels/exact/__init__.py", "from maskattn_jax.kernels.exact import ops"),
        ("kernels", "maskattn_jax/kernels/reference.py", "from maskattn_jax.kernels import merging"),
        ("judge", "maskattn_torch/testing/adapter.py", "from maskattn.parity import draws"),
        ("frameworks", "maskattn/parity/draws.py", "def f():\n    import maskattn_jax"),
    ],
)
def test_an_import_within_the_rules_is_not(copy, contract, file, line):
    plant(copy, file, line)
    said, held = contracts(copy, contract)
    assert held, said


# The files that import themselves through others; the __init__ of a package is a file like any other.
CIRCLES = """
import grimp, json, sys
graph = grimp.build_graph(*sys.argv[1:], cache_dir=None)
pairs = [(one, two) for one in graph.modules for two in graph.find_modules_directly_imported_by(one)]
print(json.dumps(sorted({one for one, two in pairs if graph.chain_exists(importer=two, imported=one)})))
"""


def circles(root):
    result = python(CIRCLES, "maskattn", *TWINS, path=root)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_no_file_imports_itself_through_others():
    assert circles(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        "from maskattn import schedule",
        "def f():\n    from maskattn.schedule import pieces_of",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from maskattn.schedule import pieces",
    ],
)
def test_a_circle_is_seen(copy, line):
    plant(copy, "maskattn/schedule/tiles.py", line)
    assert "maskattn.schedule.tiles" in circles(copy)


def modules(root):
    """dotted name -> file, for every module of the packages under `root`."""
    found = {}
    for package in ("maskattn", *TWINS):
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def named(root):
    """(module, what it names in a string) where the tool cannot see that this is an import, and the rules forbid it."""
    for name, file in modules(root).items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"(maskattn_(jax|torch)|maskattn\.\w+)(\.\w+)*(:\w+)?", node.value):
                    target = node.value.partition(":")[0]
                    package = name.partition(".")[0]
                    above = {"maskattn": ("maskattn.cli", "maskattn.parity", *TWINS)}.get(package, {*TWINS} - {package})
                    # _moved: old names for new ones; the others: the two files of the core that call the twins
                    free = ("maskattn.cli", "maskattn.parity", "maskattn._moved", "maskattn.convert.twins")
                    free += ("maskattn.diagnose.compare",)
                    if within(target, *above) and not within(name, *free):
                        yield name, target


def within(name, *packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_nothing_is_imported_by_name_against_the_rules():
    assert list(named(ROOT)) == []


def room(name, found):
    """Where a module lives: a folder of a package, a kernel, or a package with its own files."""
    parts = name.split(".")
    deep = 3 if parts[1:2] == ["kernels"] else 2
    inside = parts[:deep]
    while len(inside) > 1 and found.get(".".join(inside), Path()).name != "__init__.py" and inside[1:2] != ["kernels"]:
        inside.pop()
    return ".".join(inside)


def trespasses(root):
    """Where a private name of one room (`_name` of a module, not the module itself) is used in another."""
    found = modules(root)
    for name, file in found.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        known = {}  # names of this file -> modules they stand for
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in found:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    if whole in found:
                        known[alias.asname or alias.name] = whole
                    elif private(alias.name) and room(node.module, found) != room(name, found):
                        yield f"{name}: {whole}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and private(node.attr):
                target = known.get(node.value.id)
                if target and room(target, found) != room(name, found):
                    yield f"{name}: {target}.{node.attr}"


def private(name):
    return name.startswith("_") and not name.startswith("__")


def test_private_names_stay_in_their_room():
    assert list(trespasses(ROOT)) == []


@pytest.mark.parametrize(
    ("checker", "file", "line", "caught"),
    [
        (named, "maskattn_torch/__init__.py", "EXPORTS = {'attention': 'maskattn_jax.functional:attention'}", True),
        (named, "maskattn/masks/causal.py", "import_module('maskattn.parity.draws')", True),
        (named, "maskattn/masks/causal.py", "import_module('maskattn.show.stats')", False),
        (named, "maskattn/parity/draws.py", "import_module('maskattn_jax.testing')", False),
        (trespasses, "maskattn/show/stats.py", "from maskattn.masks.causal import _private", True),
        (trespasses, "maskattn/show/stats.py", "from maskattn.masks import causal\ncausal._private", True),
        (trespasses, "maskattn_jax/kernels/reference.py", "from maskattn_jax.rng import _private", True),
        (trespasses, "maskattn_jax/kernels/exact/ops.py", "from maskattn_jax.kernels.exact import _private", False),
        (trespasses, "maskattn_jax/linen.py", "from maskattn_jax.rng import _private", False),
        (trespasses, "maskattn/masks/causal.py", "from maskattn.masks.dense import _private", False),
    ],
)
def test_what_the_tool_cannot_see_is_seen(tmp_path, checker, file, line, caught):
    for module in modules(ROOT).values():
        (tmp_path / module.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module.relative_to(ROOT)).touch()
    plant(tmp_path, file, line)
    assert bool(list(checker(tmp_path))) is caught
