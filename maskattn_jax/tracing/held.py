"""What a JAX program holds: arrays and modules, by name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

#: What is not the program's own code.
LIBRARIES = ("jax", "flax", "equinox", "haiku", "jaxtyping")


_MODULES = (("flax.nnx", "Module"), ("flax.linen", "Module"), ("equinox", "Module"), ("haiku", "Module"))


def module_types() -> tuple[type, ...]:
    """Classes of modules of the libraries that are there."""
    return _types(tuple(known for known in _MODULES if known[0] in sys.modules))


@functools.cache
def _types(known: tuple[tuple[str, str], ...]) -> tuple[type, ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in known)


def held(function: object) -> tuple[list[tuple[str, Any]], dict[int, str]]:
    """Arrays that a function or module holds, with their names, and the modules among them, by id, with their paths."""
    arrays: list[tuple[str, Any]] = []
    modules: dict[int, str] = {}
    seen: set[int] = set()

    def look(it: Any, name: str) -> None:
        if id(it) in seen:
            return
        seen.add(id(it))
        if isinstance(it, (jax.Array, np.ndarray)):
            arrays.append((name, it))
        elif isinstance(it, functools.partial):
            look(it.func, name)
            for at, one in enumerate(it.args):
                look(one, below(name, str(at)) if len(it.args) > 1 else name)
            for key, one in it.keywords.items():
                look(one, below(name, key))
        elif hasattr(it, "__self__") and hasattr(it, "__func__"):
            look(it.__self__, name)
        elif hasattr(it, "__wrapped__") and callable(it) and not isinstance(it, module_types()):
            look(it.__wrapped__, name)
        elif hasattr(it, "__code__") and hasattr(it, "__globals__"):
            if not _of_library(it):
                cells = it.__closure__ or ()
                for key, cell in zip(it.__code__.co_freevars, cells, strict=True):
                    if _filled(cell):
                        look(cell.cell_contents, below(name, key))
                for key in it.__code__.co_names:
                    if key in it.__globals__:
                        look(it.__globals__[key], below(name, key))
        elif wraps(it):
            look(it.__wrapped__, name)
        elif isinstance(it, module_types()):
            modules[id(it)] = name
            _inside(it, name, arrays, modules, seen, look)
        elif isinstance(it, Mapping):
            for key, one in it.items():
                look(one, below(name, str(key)))
        elif isinstance(it, (list, tuple)):
            for at, one in enumerate(it):
                look(one, below(name, str(at)))
        elif type(it) not in _PLAIN and not isinstance(it, type) and jax.tree_util.all_leaves([it]) is False:
            for path, one in tree_flatten_with_path(it)[0]:
                look(one, below(name, keystr(path, simple=True, separator=".")))

    look(function, "")
    return arrays, modules


_PLAIN = (int, float, str, bool, bytes, type(None))


def _of_library(function: Any) -> bool:
    return (function.__module__ or "").partition(".")[0] in (*LIBRARIES, "numpy", "maskattn_jax")


def wraps(it: object) -> bool:
    """Whether a module is one of Equinox's own around a function: `filter_jit`, `filter_vmap`, a bound method."""
    return type(it).__module__.startswith("equinox._") and isinstance(getattr(type(it), "__wrapped__", None), property)


def home(it: Any, names: Callable[[Any], str | None]) -> str | None:
    """The path of a module that was made anew, as `jit` and `vmap` of libraries do, by an array that it holds.

    Args:
        names: the name of an array where it is a parameter, else None.
    """
    held = vars(it) if hasattr(it, "__dict__") else {}
    for field, one in held.items():
        value = one.get_value() if hasattr(one, "get_value") else one
        name = names(value) if isinstance(value, jax.Array) else None
        if name is not None and name.endswith(field):
            return name.removesuffix(field).removesuffix(".")
    for field, one in held.items():
        for at, inner in enumerate(one) if isinstance(one, (list, tuple)) else [("", one)]:
            if isinstance(inner, module_types()):
                path, end = home(inner, names), f"{field}.{at}".removesuffix(".")
                if path is not None and (path == end or path.endswith(f".{end}")):
                    return path.removesuffix(end).removesuffix(".")
    return None


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def below(name: str, key: str) -> str:
    """A path within another one."""
    return f"{name}.{key}" if name else key


def _inside(
    it: Any, name: str, arrays: list[tuple[str, Any]], modules: dict[int, str], seen: set[int], look: Any
) -> None:
    """What a module holds."""
    if "flax.nnx" in sys.modules:
        nnx = sys.modules["flax.nnx"]
        if isinstance(it, nnx.Module):
            for path, one in nnx.iter_graph(it):
                where = below(name, ".".join(map(str, path))) if path else name
                if isinstance(one, nnx.Variable):
                    value = one.get_value()
                    if (
                        hasattr(value, "dtype")
                        and not jnp.issubdtype(value.dtype, jax.dtypes.extended)
                        and id(value) not in seen
                    ):
                        seen.add(id(value))
                        arrays.append((where, value))
                elif isinstance(one, nnx.Module):
                    modules.setdefault(id(one), where)
            return
    if "flax.linen" in sys.modules and isinstance(it, sys.modules["flax.linen"].Module):
        if it.scope is not None:
            look(it.variables, name)
        return
    for field, one in vars(it).items():
        look(one, below(name, field))
