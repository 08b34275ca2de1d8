"""The precision of JAX's products as one of ours."""

from __future__ import annotations

from typing import Any

import jax
from jax.lax import Precision as LaxPrecision, PrecisionLike

from maskattn._problems import Problems
from maskattn.typing import Precision

__all__ = ["own_precision"]

#: `jax.default_matmul_precision`, and the names of `jax.lax.Precision`, as one of ours.
_PRECISIONS: dict[str | None, Precision] = {
    **dict.fromkeys((None, "default", "fastest", "bfloat16"), "default"),
    **dict.fromkeys(("high", "bfloat16_3x", "tensorfloat32"), "high"),
    **dict.fromkeys(("highest", "float32"), "highest"),
}


def own_precision(problems: Problems, given: PrecisionLike) -> Precision:
    """A precision of JAX as one of ours; a pair of two that are equal as that one, None as what JAX has by default.

    What is none of them is noted in problems.
    """
    one: Any = given[0] if isinstance(given, tuple) and len(set(given)) == 1 else given
    if one is None:
        one = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    name = one.name.lower() if isinstance(one, LaxPrecision) else one
    if isinstance(name, str | None) and name in _PRECISIONS:
        return _PRECISIONS[name]
    problems.value(f'precision must be None, a jax.lax.Precision, "default", "high" or "highest", got {given!r}')
    return "highest"
