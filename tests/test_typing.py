"""Signatures say what they take: shapes, options, real types. `mypy` (make lint) checks that they are kept."""

import ast
import importlib
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import AbstractArray, Float

from maskattn import typing as words
from maskattn.typing import EmptyRows, KernelName, NumPyArray, Precision, Reduction, SharedAxis, Width, hints

ROOT = Path(__file__).parents[1]
PACKAGES = ("maskattn", "maskattn_jax", "maskattn_torch")

#: How often `Any` may stand in the packages. It may only go down. (It went up by 200 with what Pallas, XLA's
#: partitioner, FlexAttention and DTensor have no types for; and by 110 with what JAX's primitives are called with.)
MOST = 1650

#: Where each twin has public names beside those of the package itself.
PUBLIC = ("", "dropout", "losses", "lower", "optimizers", "params", "rng", "tables")
#: Of the core, what needs arrays of shapes or has options.
CORE = ("numerics.rng", "numerics.oracle", "numerics.dropout", "numerics.exact", "schedule", "standards", "recipes")

#: A type that is told to type checkers alone: the module that has it takes long to load.
TOLD = {"maskattn_torch.lower.to_block_mask": "BlockMask", "maskattn_jax.lower.to_splash_mask": "MultiHeadMask"}


def uses_of_any(folder):
    files = [file for package in PACKAGES for file in (folder / package).rglob("*.py")]
    assert files
    return sum(len(re.findall(r"\bAny\b", file.read_text(encoding="utf-8"))) for file in files)


def test_any_stands_seldom():
    assert uses_of_any(ROOT) <= MOST


def test_any_is_counted(tmp_path):
    for package, text in zip(PACKAGES, ("Any, Anything", "def f(x: Any) -> Any: ...", "# Any"), strict=True):
        (tmp_path / package / "deep").mkdir(parents=True)
        (tmp_path / package / "deep" / "file.py").write_text(text)
    assert uses_of_any(tmp_path) == 4


def callables(module):
    """The public functions of a module, and how its classes are made and called: (name, function)."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value):
            methods = (vars(value).get(method) for method in ("__init__", "__call__", "forward"))
            yield from ((f"{name}.{m.__name__}", m) for m in methods if inspect.isfunction(m))
        elif inspect.isfunction(inspect.unwrap(value)):
            yield name, inspect.unwrap(value)
            yield from ((name, overload) for overload in typing.get_overloads(value))


#: What an annotation is looked into: unions and what holds values. Not a callable, a type or a generic class.
HOLDERS = (typing.Union, types.UnionType, tuple, list, dict, Mapping, Sequence)


def leaves(annotation):
    """The types that an annotation is made of; a jaxtyping type is one."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        yield annotation
    elif typing.get_origin(annotation) is typing.Unpack:
        for options in typing.get_args(annotation):
            origin = typing.get_origin(options) or options
            names = vars(inspect.getmodule(origin)) | {"A": NumPyArray}
            shaped = {name: getattr(importlib.import_module("jaxtyping"), name) for name in ("Float", "Bool", "UInt32")}
            for field in typing.get_type_hints(origin, names, shaped).values():
                yield from leaves(field)
    elif typing.get_origin(annotation) in HOLDERS:
        for part in typing.get_args(annotation):
            yield from leaves(part)
    else:
        yield annotation


def faults(where, function, arrays):
    """What a signature leaves unsaid: a parameter without a type, `Any`, an array without a shape."""
    said = typing.get_type_hints(function, include_extras=True)
    asked = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    for name in [*asked, "return"]:
        if name not in said:
            yield f"{where}: {name} has no type"
            continue
        for leaf in leaves(said[name]):
            if leaf is typing.Any:
                yield f"{where}: {name} is Any"
            elif leaf in arrays or leaf == NumPyArray:
                yield f"{where}: {name} is an array without a shape"


@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_the_public_functions_of_a_twin_say_types_and_shapes(twin):
    array = getattr(importlib.import_module(twin), "Array" if twin == "jax" else "Tensor")
    found = []
    for part in PUBLIC:
        module = importlib.import_module(f"maskattn_{twin}.{part}".rstrip("."))
        for name, function in callables(module):
            where = f"{module.__name__}.{name}"
            if where in TOLD:
                assert function.__annotations__["return"] == TOLD[where]
                continue
            found += faults(where, function, (array,))
    assert found == []


def test_hints_reads_the_signatures_of_the_core():
    read = []
    for part in CORE:
        module = importlib.import_module(f"maskattn.{part}")
        functions = [value for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"]
        for function in functions:
            if function.__module__.startswith(f"maskattn.{part}"):
                read.append((function.__name__, hints(function)))
    assert {"attention", "bernoulli", "empty_rows", "module_oracle"} <= {name for name, _ in read}
    shaped = [name for name, said in read if any(leaf for t in said.values() for leaf in leaves(t) if is_shape(leaf))]
    assert {"attention", "backward", "bernoulli", "dense", "module_limit"} <= set(shaped)


def is_shape(leaf):
    return isinstance(leaf, type) and issubclass(leaf, AbstractArray)


@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_options_are_those_that_the_twins_have(twin):
    assert typing.get_args(KernelName) == ("auto", *importlib.import_module(f"maskattn_{twin}.kernels").KERNELS)


@pytest.mark.parametrize("options", [EmptyRows, Precision, Reduction, SharedAxis])
def test_an_option_stands_once(options):
    """Whoever checks it at run time asks the type: no second list of the same words."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    again = {file.name for file in files if lists(file.read_text(encoding="utf-8"), typing.get_args(options))}
    assert "typing.py" in again
    assert again <= {"typing.py", "fault_list.py", "options.py"}, "the last two in parity, which says what it tries"


def lists(text, values):
    """Whether a text has these values as a tuple, a list or a set."""
    kinds = (ast.Tuple, ast.List, ast.Set)
    written = (node.elts for node in ast.walk(ast.parse(text)) if isinstance(node, kinds))
    return any({getattr(entry, "value", None) for entry in entries} == set(values) for entries in written)


def test_a_second_list_is_seen():
    assert lists('KNOWN = ("sum", "mean", "none")', typing.get_args(Reduction))
    assert not lists('"""("mean", "sum", "none")"""', typing.get_args(Reduction))


def test_every_word_is_exported_and_explained():
    public = {name for name, value in vars(words).items() if name[0].isupper() and not inspect.ismodule(value)}
    own = public - {"Any", "Callable", "Literal", "Protocol", "TypeAlias"}
    assert own | {"hints"} == set(words.__all__)
    text = Path(words.__file__).read_text(encoding="utf-8")
    for name in own - {"Array"}:
        assert re.search(rf'^{name}: TypeAlias = .*\n"""', text, re.MULTILINE), name
    assert typing.get_args(Width) == (8, 16, 32, 64)


def planted(
    x: NumPyArray, y, z: typing.Any = None, *, good: Float[NumPyArray, "B L"] | None = None
) -> int | typing.Any:
    return 0


def test_what_a_signature_leaves_unsaid_is_seen():
    assert list(faults("f", planted, (np.ndarray,))) == [
        "f: x is an array without a shape",
        "f: y has no type",
        "f: z is Any",
        "f: return is Any",
    ]


def test_an_unsaid_option_is_seen(monkeypatch):
    import torch

    import maskattn_torch

    assert list(faults("f", maskattn_torch.explain, (torch.Tensor,))) == []
    options = importlib.import_module("maskattn.attention").Options
    monkeypatch.setitem(options.__annotations__, "scale", typing.Any)
    assert list(faults("f", maskattn_torch.explain, (torch.Tensor,))) == ["f: keywords is Any"]


def test_hints_fails_for_a_name_that_is_nowhere():
    def function(x: "Floot[Array, 'B']"): ...  # noqa: F821

    with pytest.raises(NameError, match="Floot"):
        hints(function)
