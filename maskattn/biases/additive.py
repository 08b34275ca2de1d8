from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn._arithmetic import negated
from maskattn._fields import Array, part
from maskattn._pairs import restrict
from maskattn._problems import Problems, describe
from maskattn.biases._base import Bias
from maskattn.masks import Mask, check_mask


@dataclass(frozen=True)
class Additive(Bias):
    """(1 - allowed) * value: a mask as a finite number added to the score, as BERT and many others publish it.

    Unlike a mask it forbids nothing: a row whose keys are all masked attends as if none were. In `mask`, True = may
    attend. `value` is rounded to float32, so that every dtype adds the same number.

    >>> from maskattn import biases, masks
    >>> bias = biases.Additive(masks.KeyPadding([2]))
    >>> [float(bias.values(0, 0, 0, k)) + 0.0 for k in range(3)]
    [0.0, 0.0, -10000.0]

    Raises:
        TypeError: mask is not a `Mask`, or value is not a number. ValueError: value is not finite in float32.
    """

    mask: Mask = part()
    value: float = -10000.0

    def _check(self, problems: Problems) -> None:
        value: Any = self.value
        check_mask(problems, self.mask)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            problems.type(f"value must be a number, got {describe(value)}")
        elif not abs(float(value)) <= float(np.finfo(np.float32).max):
            problems.value(f"value must be finite in float32 (to forbid, use the mask as mask=), got {value}")
        if not problems:
            self._set(value=float(np.float32(value)))

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        # 0 * -10000.0 is -0.0, as in the formula
        return negated(self.mask.allowed(*restrict(self.mask, b, h, q, k))) * self.value

    @property
    def depends(self) -> frozenset[str]:
        return self.mask.depends
