"""Which test needs which framework: found by reading it, shown as a marker, and skipped by name where it is missing.

`pytest -m "torch and not jax"` is the half of PyTorch. A test has the marker of each framework that its code names, or
that the helpers in tests/ it calls name; one over `twin`, of its twin; whoever reaches a framework through the library
says so himself, with `pytest.mark.jax` or `pytest.mark.torch`. Without a framework, a test that has its marker is
skipped, and one that needs it and has not fails.

Where JAX compiles for seconds what another case shows too, `pytest.mark.slow_in("jax")` leaves a test over `twin`, or
one of its parameters, to slow tests in that twin alone.

XLA takes half the time where it does not optimize: `pytestmark = pytest.mark.hurried` says that a file's tests do not
look at what it makes of a program. That exact results are the same bits in optimized ones is in parity_tests/.

Test files import frameworks plainly where every test needs them, and from here where some do not.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import re
import types
from pathlib import Path

import pytest

PACKAGES = {
    "jax": {"equinox", "flax", "jax", "jaxlib", "maskattn_jax", "optax", "orbax"},
    "torch": {"keras", "maskattn_torch", "torch", "transformers"},
}
FRAMEWORK = {package: framework for framework, packages in PACKAGES.items() for package in packages}
MISSING = {FRAMEWORK[name] for name in ("jax", "flax", "torch") if importlib.util.find_spec(name) is None}
#: Names by which tests know modules.
NAMES = {
    "F": "torch.nn.functional",
    "_pytree": "torch.utils._pytree",
    "jax_dropout": "maskattn_jax.dropout",
    "jax_exact": "maskattn_jax.kernels.exact",
    "jax_functional": "maskattn_jax.functional",
    "jax_linen": "maskattn_jax.linen",
    "jax_params": "maskattn_jax.params",
    "jax_rng": "maskattn_jax.rng",
    "jnp": "jax.numpy",
    "linen": "flax.linen",
    "nnx": "flax.nnx",
    "torch_dropout": "maskattn_torch.dropout",
    "torch_exact": "maskattn_torch.kernels.exact",
    "torch_functional": "maskattn_torch.functional",
    "torch_params": "maskattn_torch.params",
    "torch_rng": "maskattn_torch.rng",
    "walk": "maskattn_torch.kernels.blockwise.walk",
}
PLACE = getattr(importlib.util.find_spec("torch"), "origin", "")
CAN_LINK = pytest.mark.skipif(" " in PLACE, reason="inductor cannot link PyTorch from a path with a space")
#: What writes and reads files of these formats.
FORMATS = {".orbax": "jax", ".pt": "torch"}
_collecting = True
_hurried = False
#: Tests that were run.
_run = itertools.count()
#: Linux allows a process 65,530 memory maps. XLA has some for each program that it keeps, and crashes without.
MOST_MAPS = 30_000


def in_both(test: object) -> object:
    """Marks a test that reaches both frameworks through the library."""
    return pytest.mark.jax(pytest.mark.torch(test))


class Missing:
    """Stands for a module of a framework that is missing, and what is in it, while tests are collected."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self._name}.{name}")

    def __call__(self, *given: object, **named: object) -> Missing:
        if not _collecting:
            raise ModuleNotFoundError(f"{self._name} is missing, and the test has no marker that says so")
        return Missing(f"{self._name}()")

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (object,)


def optional(name: str) -> object:
    """The module of this name, or what is so named in one, or what stands for it where its framework is missing."""
    return Missing(name) if FRAMEWORK[name.split(".")[0]] in MISSING else pkgutil.resolve_name(name)


def __getattr__(name: str) -> object:
    if name in NAMES or name in FRAMEWORK:
        return optional(NAMES.get(name, name))
    raise AttributeError(name)


def of_test(item: pytest.Item) -> set[str]:
    """The frameworks that this test needs, as far as its code, or its example, names them."""
    if isinstance(item, pytest.DoctestItem):
        examples = "".join(example.source for example in item.dtest.examples) if item.dtest else ""
        return {name for name in PACKAGES if named(item.path, name) or re.search(rf"\b(maskattn_)?{name}\b", examples)}
    if not isinstance(item, pytest.Function):
        return set()
    twin = item.callspec.params.get("twin") if hasattr(item, "callspec") else None
    if isinstance(twin, str):
        return {twin} & PACKAGES.keys()
    fixtures = tuple(made[-1].func for made in item._fixtureinfo.name2fixturedefs.values())
    given = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
    words = {value for value in given if isinstance(value, str)}
    said = {known[word] for known in (FORMATS, FRAMEWORK) for word in words & known.keys()}
    return of_functions((item.function, *fixtures)) | of_values(given) | said


def named(path: Path, framework: str) -> bool:
    """Whether the file belongs to the twin of this framework."""
    return f"maskattn_{framework}" in path.parts


@functools.cache
def of_functions(functions: tuple[object, ...]) -> set[str]:
    return of_values(functions)


def of_values(values: object) -> set[str]:
    """The frameworks that these values are of; of tests' own functions and classes, those that their code names."""
    found: set[str] = set()
    seen: set[int] = set()
    left = list(values)
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        inner = getattr(getattr(value, "hypothesis", None), "inner_test", None)
        value = inspect.unwrap(inner or value) if callable(value) and not isinstance(value, Missing) else value
        if isinstance(value, functools.partial):
            left += [value.func, *value.args]
        elif isinstance(value, types.FunctionType) and is_of_tests(value):
            for name in names_in(value.__code__):
                if name in value.__globals__:
                    left.append(value.__globals__[name])
                elif name.split(".")[0] in FRAMEWORK:
                    found.add(FRAMEWORK[name.split(".")[0]])
                else:  # of a helper that is imported as a module
                    left += [vars(m)[name] for m in modules_of_tests(value) if name in vars(m)]
        elif isinstance(value, type) and is_of_tests(value):
            left += [member for member in vars(value).values() if inspect.isroutine(member)]
        else:
            found |= {FRAMEWORK[root] for root in [root_of(value)] if root in FRAMEWORK}
    return found


def is_of_tests(value: object) -> bool:
    return str(getattr(value, "__module__", "")).split(".")[0] in ("tests", "parity_tests")


def names_in(code: types.CodeType) -> set[str]:
    """Every name that a function and the functions in it look up or import."""
    inner = [names_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


def modules_of_tests(function: types.FunctionType) -> list[types.ModuleType]:
    named = (function.__globals__.get(name) for name in names_in(function.__code__))
    return [m for m in named if isinstance(m, types.ModuleType) and m.__name__.startswith("tests.")]


def root_of(value: object) -> str:
    """The package that a value comes from."""
    if isinstance(value, Missing):
        return str(value._name).split(".")[0]
    if isinstance(value, types.ModuleType):
        return value.__name__.split(".")[0]
    return str(getattr(value, "__module__", None) or type(value).__module__).split(".")[0]


@functools.cache
def of_file(path: Path) -> frozenset[str]:
    """The frameworks that a file imports when it is imported, and those of the files of tests that it imports."""
    found = {name for name in PACKAGES if named(path, name)}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
        names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) and not statement.level else []
        found |= {FRAMEWORK[name.split(".")[0]] for name in names if name.split(".")[0] in FRAMEWORK}
        found = found.union(*(of_file(each) for name in names if (each := of_tests(name)).is_file()))
    return frozenset(found)


def of_tests(module: str) -> Path:
    """The file of a module of the tests; of another, where there is none."""
    return Path(__file__).parents[1] / f"{module.replace('.', '/')}.py" if module.startswith("tests.") else Path()


class Absent(pytest.File):
    """A file that cannot be imported, since its framework is missing."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"needs {', '.join(sorted(of_file(self.path) & MISSING))}", allow_module_level=True)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    collectors = yield
    if collectors and file_path.suffix == ".py" and of_file(file_path) & MISSING:
        return [Absent.from_parent(parent, path=file_path)]
    return collectors


def pytest_itemcollected(item):
    for name in sorted(of_test(item)):
        item.add_marker(name)
    absent = sorted(name for name in MISSING if item.get_closest_marker(name))
    if absent:
        item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(absent)}"))
    elif item.get_closest_marker("device") and not accelerators(item):
        item.add_marker(pytest.mark.skip(reason="needs an accelerator"))
    twin = item.callspec.params.get("twin") if hasattr(item, "callspec") else None
    if any(twin in mark.args for mark in item.iter_markers("slow_in")):
        item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish():
    global _collecting
    _collecting = False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """A test that is `hurried` has the options of `maskattn.convert.twins.HURRY`, and leaves no program to others."""
    global _hurried
    wanted = item.get_closest_marker("hurried") is not None
    if wanted != _hurried and "jax" not in MISSING:
        jax = importlib.import_module("jax")
        jax.config.update("jax_disable_most_optimizations", wanted)
        if not wanted:
            jax.clear_caches()
        _hurried = wanted
    if "jax" not in MISSING and next(_run) % 16 == 0 and maps() > MOST_MAPS:
        importlib.import_module("jax").clear_caches()
    return (yield)


def maps() -> int:
    """How many memory maps this process has; 0 where the system does not say."""
    listed = Path("/proc/self/maps")
    return listed.read_bytes().count(b"\n") if listed.exists() else 0


def accelerators(item: pytest.Item) -> bool:
    """Whether a framework that the test is marked with sees more than the CPU."""
    for name in PACKAGES.keys() - MISSING:
        if item.get_closest_marker(name):
            framework = importlib.import_module(name)
            if framework.cuda.is_available() if name == "torch" else framework.default_backend() != "cpu":
                return True
    return False
