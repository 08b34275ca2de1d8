"""What masks and biases are: functions of batch row b, head h, query q and key k, written for index arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maskattn._arithmetic import fill
from maskattn._fields import Array, Spec

AXES = ("batch", "heads", "q_len", "kv_len")


class Pairwise(Spec):
    """Base of `Mask` and `Bias`: which indices are read, and which lengths the data fix."""

    @property
    def depends(self) -> frozenset[str]:
        """Those of "b", "h", "q", "k" that are read."""
        return frozenset("bhqk")

    def sizes(self) -> dict[str, int]:
        """The lengths that the data fix, of "batch", "heads", "q_len", "kv_len"; an axis of size 1 fixes none.

        "batch_multiple" is a number that must divide the batch.

        Raises:
            ValueError: two parts of the expression disagree.
        """
        return merge_sizes(self.children())

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        """Why this cannot be used at these sizes (all four axes; None is not checked); [] where it can."""
        if self.children():
            return [fault for child in self.children() for fault in child.conflicts(sizes)]
        reasons = []
        for axis, expected in self.sizes().items():
            size = sizes["batch" if axis == "batch_multiple" else axis]
            if axis == "batch_multiple":
                if size is not None and size % expected:
                    reasons.append(f"{self!r} expects a batch that is a multiple of {expected}, got {size}")
            # not by `in`: Dynamo then holds an open size to be unlike a number that it equals
            elif size is not None and size != expected:
                reasons.append(f"{self!r} expects {axis} {expected}, got {size}")
        return reasons


def fixed(batch: int = 1, heads: int = 1, **lengths: int) -> dict[str, int]:
    """Sizes for `sizes`: a batch or heads of 1 serve any number."""
    return {axis: size for axis, size in (("batch", batch), ("heads", heads)) if size != 1} | lengths


def merge_sizes(parts: Sequence[Pairwise]) -> dict[str, int]:
    """What all the parts fix together.

    Raises:
        ValueError: two of them disagree.
    """
    merged: dict[str, int] = {}
    owners: dict[str, Pairwise] = {}
    for part in parts:
        for axis, size in part.sizes().items():
            if axis == "batch_multiple":
                merged[axis] = math.lcm(merged.get(axis, 1), size)
            elif axis in merged and merged[axis] != size:
                raise ValueError(f"{axis} is {merged[axis]} in {owners[axis]!r} but {size} in {part!r}")
            else:
                merged[axis], owners[axis] = size, part
    return merged


def restrict(pairwise: Pairwise, b: Array, h: Array, q: Array, k: Array) -> tuple[Array, ...]:
    """The indices, 0 in place of those that a mask or bias does not read: its result then stays small."""
    depends = pairwise.depends
    return (
        b if "b" in depends else 0,
        h if "h" in depends else 0,
        q if "q" in depends else 0,
        k if "k" in depends else 0,
    )


def grid(depends: frozenset[str], shape: tuple[int, ...], arange: Callable[[int], Array]) -> list[Array]:
    """Index arrays of rank 4 for every entry of [batch, heads, q_len, kv_len]; size 1 on axes not read."""
    return [
        arange(size if name in depends else 1).reshape([-1 if i == axis else 1 for i in range(4)])
        for axis, (name, size) in enumerate(zip("bhqk", shape, strict=True))
    ]


def filled(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of index arrays with its result, or each of its results, broadcast to the shape of all of them.

    A class writes its formula and returns whatever shape that gives; callers get the broadcast shape.
    """

    @functools.wraps(method)
    def broadcast(self: object, *args: Array, **named: Array) -> Any:
        indices = (*args, *named.values())
        value = method(self, *args, **named)
        return tuple(fill(each, *indices) for each in value) if isinstance(value, tuple) else fill(value, *indices)

    return broadcast
