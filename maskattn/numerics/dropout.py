"""Which attention weights dropout keeps, in NumPy: what `maskattn_jax.dropout` and `maskattn_torch.dropout` draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from maskattn._problems import Problems, show
from maskattn.numerics import rng
from maskattn.numerics.rng_arguments import check_key
from maskattn.typing import NumPyArray as Array, SharedAxis

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt32

__all__ = ["check_dropout", "dense"]


def dense(
    rate: float, key: int | UInt32[Array, " 2"], sizes: Sequence[int], shared: Sequence[SharedAxis] = ()
) -> Bool[Array, "#B #H L S"]:
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
    words = key if isinstance(key, np.ndarray) and key.ndim else rng.key(int(key))
    drawn = [1 if axis in shared else n for axis, n in zip(("batch", "heads", "", ""), sizes, strict=True)]
    return rng.bernoulli(words, 1.0 - rate, drawn)


def check_dropout(problems: Problems, rate: object, key: object, broadcast: object) -> None:
    """Note in problems what is wrong with a rate, the key that a rate above 0 needs, and the axes of broadcast."""
    number = problems.number("dropout_rate", rate)
    if number is not None and not 0.0 <= number < 1.0:
        problems.value(f"dropout_rate must lie in [0, 1), got {number}")
    elif number and key is None:
        problems.value(f"dropout_key must be given where dropout_rate is above 0, got None and {number}")
    if key is not None:
        check_key(problems, "dropout_key", key)
    if isinstance(broadcast, tuple) and not broadcast:
        return
    if not isinstance(broadcast, tuple) or not all(isinstance(axis, str) for axis in broadcast):
        problems.type(f"dropout_broadcast must be a tuple of axis names, got {show(broadcast)}")
    elif not set(broadcast) <= set(get_args(SharedAxis)) or len(set(broadcast)) != len(broadcast):
        problems.value(f"dropout_broadcast may hold {' and '.join(get_args(SharedAxis))}, each once, got {broadcast}")
