"""Checkpoints and layers of attention from one library's names and orders to another's: plan, run, verify.

Read downwards: `_identify` (which form is it in?) -> `_canonical` and `_layer` (the model, free of any library's names)
-> `_plan` (what will be written) -> `_run` (writing it) -> `_verify` (was it right?). Loaded when first used: layouts
cost nothing of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskattn.convert._companions import carry
    from maskattn.convert._hints import refuse_a_shard
    from maskattn.convert._plan import Move, Plan, plan
    from maskattn.convert._probe import probe
    from maskattn.convert._run import run
    from maskattn.convert._tensors import convert_model, convert_tensors
    from maskattn.convert._verify import Verification, verify
    from maskattn.convert._whole import open_model

__all__ = [
    "Move",
    "Plan",
    "Verification",
    "carry",
    "convert_model",
    "convert_tensors",
    "open_model",
    "plan",
    "probe",
    "refuse_a_shard",
    "run",
    "verify",
]

_FILES = {
    "Move": "_plan",
    "Plan": "_plan",
    "Verification": "_verify",
    "carry": "_companions",
    "convert_model": "_tensors",
    "convert_tensors": "_tensors",
    "open_model": "_whole",
    "refuse_a_shard": "_hints",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_FILES.get(name, f'_{name}')}"), name)
    globals()[name] = value
    return value
