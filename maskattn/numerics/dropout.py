"""Which attention weights dropout keeps, in NumPy: what `maskattn_jax.dropout` and `maskattn_torch.dropout` draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskattn._problems import Problems
from maskattn.attention import check_dropout
from maskattn.numerics import rng

Array = np.ndarray[Any, Any]

__all__ = ["dense"]


def dense(rate: float, key: Any, sizes: Sequence[int], shared: Sequence[str] = ()) -> Array:
    """The weights that are kept, True = kept: `bernoulli(key, 1 - rate, [B or 1, H or 1, L, S])`, 1 where shared.

    Args:
        rate: the probability of being dropped, in [0, 1).
        key: a seed in [0, 2**31), or uint32 [2].
        sizes: of the score matrix, (B, H, L, S).
        shared: the axes, of "batch" and "heads", whose entries all share one draw.

    Raises:
        TypeError, ValueError: lists everything wrong with the rate, the key and the axes.
    """
    problems = Problems("dropout")
    check_dropout(problems, rate, key, tuple(shared))
    problems.raise_if_any()
    words = key if isinstance(key, np.ndarray) else rng.key(key)
    drawn = [1 if axis in shared else n for axis, n in zip(("batch", "heads", "", ""), sizes, strict=True)]
    return rng.bernoulli(words, 1.0 - rate, drawn)
