"""maskattn: the same masked attention in PyTorch and JAX, and the proof.

Submodules and functions are loaded when first used, so that `import maskattn` costs nothing and loads no framework.
"""

from __future__ import annotations

import importlib
from typing import Any

from maskattn import _moved

_moved.install()

__version__ = "0.2.0"

# name -> where it lives: "package.module" for a submodule, "package.module:name" for something inside one
_EXPORTS = {
    "AttentionConfig": "maskattn.config:AttentionConfig",
    "biases": "maskattn.biases",
    "checkpoints": "maskattn.checkpoints",
    "compare": "maskattn.diagnose:compare",
    "convert_tensors": "maskattn.convert:convert_tensors",
    "corruption": "maskattn.corruption",
    "layouts": "maskattn.convert.layouts",
    "masks": "maskattn.masks",
    "optimizers": "maskattn.optimizers",
    "recipes": "maskattn.recipes",
    "rng": "maskattn.numerics.rng",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    value: Any = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
