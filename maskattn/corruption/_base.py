"""What every corruption scheme is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from maskattn._declared import Declared
from maskattn._problems import Problems

Result = TypeVar("Result")  # what `apply` of a scheme gives


class Scheme(Declared, Generic[Result]):
    """What is hidden from a model in training, as a function of a key: static sizes and rates, checked when made.

    ``scheme.apply(key, ...)`` runs in NumPy; ``maskattn_jax.corrupt(scheme, key, ...)`` and
    ``maskattn_torch.corrupt(scheme, key, ...)`` give the same result, zero bits different, from the same key. Under jit
    a scheme is static: it is hashable, and the shapes of its results depend on it and on the shapes of its inputs only.
    A key is a seed in [0, 2**31), two uint32 words (`maskattn.rng`), or in JAX a `jax.random.key`.

    Element i of a drawn array depends on the key and on i only: the rows of a batch are the first rows of a larger one.
    """

    #: each scheme documents its own
    apply: ClassVar[Callable[..., Any]]


def batch_size(where: str, batch: Any) -> int:
    """`batch` as an int of at least 0, or the error."""
    problems = Problems(where)
    batch = problems.integer("batch", batch, minimum=0)
    problems.raise_if_any()
    return int(batch)
