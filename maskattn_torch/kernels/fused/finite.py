"""Whether anything that is not finite can have reached the output: most keys and values are finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor as Array

from maskattn.attention import Call

__all__ = ["finite"]


def finite(call: Call[Array], out: Array) -> bool:
    """Whether nothing shows that keys or values that nothing may attend to are not finite."""
    # a gradient may meet what the output does not show: a weight of 0 times a key of infinity
    return _sum_finite(call.key) and _sum_finite(call.value) if out.requires_grad else _sum_finite(out)


def _sum_finite(x: Array) -> bool:
    """Whether the sum is finite, as that of finite numbers is, in a dtype that holds it."""
    x = x.detach() if x.requires_grad else x
    return math.isfinite(x.sum(dtype=torch.float32) if x.dtype == torch.float16 else x.sum())
