"""Old import paths that the documentation named: each still works for one version, and says where to go instead."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MOVED = {
    "maskattn.dropout": "maskattn.numerics.dropout",
    "maskattn.exact": "maskattn.numerics.exact",
    "maskattn.families": "maskattn.convert.families",
    "maskattn.layouts": "maskattn.convert.layouts",
    "maskattn.oracle": "maskattn.numerics.oracle",
    "maskattn.parity.adapters": "maskattn.parity.attention.adapters",
    "maskattn.parity.cases": "maskattn.parity.attention.cases",
    "maskattn.parity.standards": "maskattn.standards",
    "maskattn.pieces": "maskattn.schedule.pieces",
    "maskattn.rng": "maskattn.numerics.rng",
    "maskattn.tiles": "maskattn.schedule.tiles",
    "maskattn_jax.adapter": "maskattn_jax.testing.adapter",
    "maskattn_torch.adapter": "maskattn_torch.testing.adapter",
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
        module = importlib.import_module(spec.loader_state)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        old: Any = module.__spec__
        module.__spec__ = old.loader_state


def install() -> None:
    """Makes the old names importable: first of all, or what lies in an old package would be found, and loaded twice."""
    sys.meta_path.insert(0, _Finder())
