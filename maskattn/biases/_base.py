"""`Bias`: what is added to the score of a query and a key."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from maskattn._fields import Array, Spec, fill
from maskattn.masks._base import merge_sizes


class Bias(Spec):
    """What is added to a scaled (and capped) score, before the mask.

    A bias is a `@dataclass(frozen=True)` subclass with a `values` method. Fields are declared as those of a
    `maskattn.masks.Mask`: static, `data()` or `part()`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        if "values" in vars(cls):
            cls.values = _full_values(vars(cls)["values"])  # type: ignore[method-assign]
        super().__init_subclass__(**options)

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        """What is added for query q and key k of batch row b and head h.

        Args:
            b, h, q, k: integer arrays that broadcast together (or ints), all of one framework, the one the data are of.

        Returns:
            float, of the broadcast shape.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define values(b, h, q, k)")

    @property
    def depends(self) -> frozenset[str]:
        """Those of "b", "h", "q", "k" that `values` reads."""
        return frozenset("bhqk")

    def sizes(self) -> dict[str, int]:
        """The lengths that the data fix, of "batch", "heads", "q_len", "kv_len"; an axis of size 1 fixes none."""
        return merge_sizes(self.children())

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        """Why this bias cannot be used at these sizes (all four axes; None is not checked); [] where it can."""
        faults = [fault for child in self.children() for fault in child.conflicts(sizes)]
        if not self.children():
            for axis, expected in self.sizes().items():
                if sizes[axis] not in (None, expected):
                    faults.append(f"{self!r} expects {axis} {expected}, got {sizes[axis]}")
        return faults


def _full_values(method: Callable[..., Array]) -> Callable[..., Array]:
    """`values` with its result broadcast to the shape of all indices together."""

    @functools.wraps(method)
    def values(self: Bias, b: Array, h: Array, q: Array, k: Array) -> Array:
        return fill(method(self, b, h, q, k), b, h, q, k)

    return values
