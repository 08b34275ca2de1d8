from __future__ import annotations

from maskattn._arithmetic import negated
from maskattn._declared import declared, number, part
from maskattn._fields import Array
from maskattn._pairs import restrict
from maskattn.biases._base import Bias
from maskattn.masks import Mask


@declared
class Additive(Bias):
    """(1 - allowed) * value: a mask as a finite number added to the score, as BERT (Devlin et al. 2019, modeling.py
    of google-research/bert), the seed module and many others have it.

    Unlike a mask it forbids nothing: a row whose keys are all masked attends as if none were. Every dtype adds the same
    number.

    >>> from maskattn import biases, masks
    >>> bias = biases.Additive(masks.KeyPadding([2]))
    >>> [float(bias.values(0, 0, 0, k)) + 0.0 for k in range(3)]
    [0.0, 0.0, -10000.0]
    """

    mask: Mask = part(Mask, meaning="where nothing is added. True = may attend")
    value: float = number(float32=True, default=-10000.0, meaning="what is added elsewhere, rounded to float32")

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        # 0 * -10000.0 is -0.0, as in the formula
        return negated(self.mask.allowed(*restrict(self.mask, b, h, q, k))) * self.value

    @property
    def depends(self) -> frozenset[str]:
        return self.mask.depends
