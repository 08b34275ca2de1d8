"""Imports point one way, and each package runs with nothing but what it names. Every checker is shown to fail, too."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
TORCH = {"torch", "torchvision", "functorch", "timm"}
FRAMEWORKS = JAX | TORCH | {"transformers"}
TWINS = {"maskattn_jax": TORCH | {"maskattn_torch"}, "maskattn_torch": JAX | {"maskattn_jax"}}

# What a new interpreter holds after importing modules: the top-level names that are neither its own nor the library's.
LOADED = """
import importlib, json, pkgutil, sys
before = set(sys.modules)
package, left_out = sys.argv[1], tuple(sys.argv[2:])
root = importlib.import_module(package)
for name in getattr(root, "__all__", ()):
    getattr(root, name)
if "everything" not in left_out:
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        if not module.name.startswith(left_out or ("-",)):
            importlib.import_module(module.name)
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
    assert loaded("maskattn", "maskattn.cli", "maskattn.parity") <= {"numpy", "ml_dtypes"}


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


def modules(root):
    """dotted name -> file, for every module of the packages under `root`."""
    found = {}
    for package in ("maskattn", *TWINS):
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name, file):
    """Every module that a file names: in any import statement, or in a string handed to importlib."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"maskattn(_jax|_torch)?(\.\w+)*(:\w+)?", node.value):
                yield node.value.partition(":")[0]


def within(name, *packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def forbidden(importer, target):
    """Why `importer` may not import `target`, or None where it may."""
    for twin, others in TWINS.items():
        kernels = f"{twin}.kernels"
        if within(importer, twin) and within(target, *others):
            return "a twin knows nothing of the other framework"
        if within(importer, kernels) and importer != kernels and within(target, kernels) and target != kernels:
            own, other = (name.removeprefix(kernels + ".").split(".")[0] for name in (importer, target))
            if other != own:
                return "kernels do not import each other"
    if within(importer, "maskattn") and not within(importer, "maskattn.cli", "maskattn.parity"):
        by_name = TWINS if importer == "maskattn.convert.twins" else ()  # the one file of the core that calls them
        if within(target, "maskattn.cli", "maskattn.parity", *TWINS) and not within(target, *by_name):
            return "the core knows nothing of what stands on it"
        if within(target, *FRAMEWORKS) and not within(importer, "maskattn.checkpoints", "maskattn.convert.twins"):
            return "the core knows no framework"
    return None


def violations(root):
    return [
        f"{name} imports {target}: {reason}"
        for name, file in modules(root).items()
        for target in imported(name, file)
        if (reason := forbidden(name, target))
    ]


def test_imports_point_one_way():
    assert {"maskattn.masks", "maskattn_jax.kernels.exact", "maskattn_torch.kernels.reference"} <= set(modules(ROOT))
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "caught"),
    [
        ("maskattn_jax/functional.py", "import torch.nn", True),
        ("maskattn_jax/functional.py", "def f():\n    from maskattn_torch import lower", True),
        ("maskattn_torch/__init__.py", "EXPORTS = {'attention': 'maskattn_jax.functional:attention'}", True),
        ("maskattn_torch/lower.py", "import jax", True),
        ("maskattn_jax/kernels/exact.py", "from maskattn_jax.kernels import reference", True),
        ("maskattn_jax/kernels/exact.py", "from . import reference", True),
        ("maskattn_jax/kernels/exact.py", "from .reference import attention", True),
        ("maskattn_jax/kernels/reference.py", "from maskattn_jax.kernels.exact import ops", True),
        ("maskattn_jax/kernels/exact/__init__.py", "from maskattn_jax.kernels.exact import ops", False),
        ("maskattn_jax/kernels/exact.py", "from .. import lower", False),
        ("maskattn_jax/kernels/__init__.py", "from . import exact, reference", False),
        ("maskattn/masks/causal.py", "import torch", True),
        ("maskattn/masks/causal.py", "from maskattn.parity import cases", True),
        ("maskattn/masks/causal.py", "from .. import cli", True),
        (
            "maskattn/parity/cases.py",
            "import importlib\nimportlib.import_module('maskattn_jax.testing')",
            False,
        ),
        ("maskattn/masks/causal.py", "from . import _base", False),
    ],
)
def test_an_import_against_the_rules_is_seen(tmp_path, file, line, caught):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line)
    assert bool(violations(tmp_path)) is caught
