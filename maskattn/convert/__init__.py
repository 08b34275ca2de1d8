"""Checkpoints and layers of attention from one library's names and orders to another's: plan, run, verify.

Read downwards: `_identify` (which form is it in?) -> `_canonical` and `_layer` (the model, free of any library's names)
-> `_plan` (what will be written) -> `_run` (writing it) -> `_verify` (was it right?).
"""

from __future__ import annotations

from maskattn.convert._plan import plan
from maskattn.convert._run import carry_out as run
from maskattn.convert._tensors import convert_tensors
from maskattn.convert._verify import verify

__all__ = ["convert_tensors", "plan", "run", "verify"]
