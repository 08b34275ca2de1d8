"""Old import paths that the documentation named: each still works for one version, and says where to go instead."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from operator import attrgetter
from types import ModuleType
from typing import Any

_MOVED = {
    "maskattn.carry_out": "maskattn.convert._run",
    "maskattn.dropout": "maskattn.numerics.dropout",
    "maskattn.exact": "maskattn.numerics.exact",
    "maskattn.families": "maskattn.convert.families",
    "maskattn.layouts": "maskattn.convert.layouts",
    "maskattn.oracle": "maskattn.numerics.oracle",
    "maskattn.parity.conversion": "maskattn.convert._verify",
    "maskattn.parity.adapters": "maskattn.parity.attention.adapters",
    "maskattn.parity.cases": "maskattn.parity.attention.cases",
    "maskattn.parity.standards": "maskattn.standards",
    "maskattn.pieces": "maskattn.schedule.pieces",
    "maskattn.plan": "maskattn.convert._plan",
    "maskattn.rng": "maskattn.numerics.rng",
    "maskattn.tiles": "maskattn.schedule.tiles",
    "maskattn_jax.adapter": "maskattn_jax.testing.adapter",
    "maskattn_torch.adapter": "maskattn_torch.testing.adapter",
}

#: Functions that a module had by another name, or that its new one has not: module -> old name -> where it is.
_RENAMED = {
    "maskattn.convert.layouts": {"faults": "maskattn.convert.layouts:mismatches"},
    "maskattn.pieces": {"pieces": "maskattn.schedule:pieces_of"},
    "maskattn.tiles": {
        "empty_rows": "maskattn.schedule:empty_rows",
        "reached": "maskattn.schedule:reached",
        "schedule": "maskattn.schedule:Schedule.of",
    },
}


class _Finder(MetaPathFinder, Loader):
    """Gives the module of a new name under its old one."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        old = next((old for old in _MOVED if name == old or name.startswith(old + ".")), None)
        if old is None:
            return None
        new = _MOVED[old] + name.removeprefix(old)
        warnings.warn(f"{name} is now {new}; the old name goes with the next version", DeprecationWarning, stacklevel=2)
        return ModuleSpec(name, self, loader_state=new)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module: Any = importlib.import_module(spec.loader_state)
        if spec.name in _RENAMED:
            module.__getattr__ = partial(renamed, spec.name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        old: Any = module.__spec__
        module.__spec__ = old.loader_state


def renamed(module: str, name: str) -> Any:
    """What a module calls otherwise now: the ``__getattr__`` of modules with names of before."""
    if name not in _RENAMED[module]:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    where, _, path = _RENAMED[module][name].partition(":")
    warnings.warn(
        f"{module}.{name} is now {where}.{path}; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=2,
    )
    return attrgetter(path)(importlib.import_module(where))


def install() -> None:
    """Makes the old names importable: first of all, or what lies in an old package would be found, and loaded twice."""
    sys.meta_path.insert(0, _Finder())
