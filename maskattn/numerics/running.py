"""Float64 numbers that carry how far a computation may be from them, and the way back for gradients.

Each operation gives its value, to first order the error that its inputs' errors and its own rounding can make, and the
map from its result's gradient to those of its inputs. With every factor of that map replaced by its absolute value, it
gives the gradient's size, of which limits of gradients are multiples. So a layer that is written once, with these
operations, has its values, its limits and its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maskattn.numerics import oracle
from maskattn.typing import NumPyArray as Array

#: What the way back does to each factor: nothing, or its absolute value.
Size = Callable[[Array], Array]
#: (gradient of the result, size) -> gradients of the inputs, None where an input has none.
Back = Callable[[Array, Size], Sequence[Array | None]]


@dataclass(eq=False)
class Running:
    """Numbers, how far each may be off, and what they were made of."""

    value: Array
    error: Array
    parents: tuple[Running, ...] = ()
    back: Back | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return tuple(self.value.shape)

    def moved(self, there: Callable[[Array], Array], again: Callable[[Array], Array]) -> Running:
        """The same numbers in other places: `there` moves them, `again` brings a gradient back (sums where a number
        was taken more than once)."""
        return Running(there(self.value), there(self.error), (self,), lambda g, size: (again(g),))

    def reshape(self, *shape: int) -> Running:
        """Of another shape."""
        return self.moved(lambda x: x.reshape(shape), lambda g: g.reshape(self.shape))


def given(value: ArrayLike, error: ArrayLike = 0.0) -> Running:
    """Numbers that were given, exact or with an error."""
    value = np.asarray(value).astype(np.float64)
    return Running(value, np.broadcast_to(np.asarray(error, np.float64), value.shape))


@dataclass(frozen=True)
class Rounding:
    """How the judged computation rounds, each relative.

    Attributes:
        sums: of a sum of products, by the sum of their absolute values; above 512 terms it grows with their root.
        each: of one operation on a number.
        narrow: of a number that is rounded to a narrow dtype, and `dtype` that; 0 where none is.
    """

    sums: float
    each: float
    narrow: float = 0.0
    dtype: Any = np.float64

    def add(self, x: Running, y: Running) -> Running:
        """x + y, broadcast."""
        value = x.value + y.value
        error = x.error + y.error + self.each * np.abs(value)
        return Running(value, error, (x, y), lambda g, size: (_sum_to(g, x.shape), _sum_to(g, y.shape)))

    def times(self, x: Running, y: Running | float) -> Running:
        """x * y, broadcast."""
        y = given(y) if isinstance(y, float) else y
        other = y
        value = x.value * other.value
        error = np.abs(x.value) * other.error + np.abs(other.value) * x.error + self.each * np.abs(value)

        def back(g: Array, size: Size) -> Sequence[Array]:
            return _sum_to(g * size(other.value), x.shape), _sum_to(g * size(x.value), other.shape)

        return Running(value, error, (x, other), back)

    def mean(self, x: Running, axes: tuple[int, ...]) -> Running:
        """The mean over axes, which stay with length 1."""

        def mean(of: Array) -> Array:
            return np.asarray(of.mean(axes, keepdims=True))

        count = math.prod(x.shape[axis] for axis in axes)
        error = mean(x.error) + self._sums(count) * mean(np.abs(x.value))
        return Running(mean(x.value), error, (x,), lambda g, size: (np.broadcast_to(g / count, x.shape),))

    def each_one(self, x: Running, f: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Running:
        """f of each number, whose derivative is `slope`."""
        value, by = f(x.value), slope(x.value)
        error = np.abs(by) * x.error + self.each * np.abs(value)
        return Running(value, error, (x,), lambda g, size: (g * size(by),))

    def product(self, spec: str, x: Running, y: Running) -> Running:
        """`einsum` of two."""
        inputs, out = spec.split("->")
        one, other = inputs.split(",")
        lengths = dict(zip(one + other, x.shape + y.shape, strict=True))
        terms = math.prod(lengths[axis] for axis in lengths if axis not in out)
        sizes = np.abs(x.value), np.abs(y.value)
        error = np.einsum(spec, x.error, sizes[1]) + np.einsum(spec, sizes[0], y.error)
        error = error + self._sums(terms) * np.einsum(spec, *sizes)

        def back(g: Array, size: Size) -> Sequence[Array]:
            return np.einsum(f"{out},{other}->{one}", g, size(y.value)), np.einsum(
                f"{out},{one}->{other}", g, size(x.value)
            )

        return Running(np.einsum(spec, x.value, y.value), error, (x, y), back)

    def rounded(self, x: Running) -> Running:
        """As a narrow dtype keeps it."""
        if not self.narrow:
            return x
        value = x.value.astype(self.dtype).astype(np.float64)
        return Running(value, x.error + self.narrow * np.abs(value), (x,), lambda g, size: (g,))

    def attention(
        self,
        inputs: Sequence[Running],
        allowed: Array | None,
        bias: Running | None,
        sinks: Running | None,
        own: Callable[[float, float, int], float],
        options: Mapping[str, Any],
    ) -> Running:
        """`oracle.attention` of query [B, L, H, D], key and value [B, S, K, D].

        |d out| <= sum p |v - out| |d logit| + sum p |d v|, and what attention itself may be off, `own` of (largest
        output's magnitude, largest logit, S).
        """
        query, key, value = inputs
        arrays = query.value, key.value, value.value
        kept: dict[str, Any] = {
            **options,
            "bias": None if bias is None else bias.value,
            "sinks": None if sinks is None else sinks.value,
        }
        forward = oracle.attention(arrays[0], arrays[1], arrays[2], allowed, **kept)
        sizes = oracle.magnitudes(arrays[0], arrays[1], arrays[2], allowed, **kept)
        groups = query.shape[2] // key.shape[2]
        k, dk, v, dv = (np.repeat(x, groups, 2) for x in (key.value, key.error, value.value, value.error))
        d_logit = np.einsum("blhd,bshd->bhls", query.error, np.abs(k)) + np.einsum(
            "blhd,bshd->bhls", np.abs(query.value), dk
        )
        d_logit = abs(options["scale"]) * d_logit + (0.0 if bias is None else bias.error)
        p = weights(arrays[0], key.value, allowed, kept)
        apart = np.abs(v.transpose(0, 2, 1, 3)[:, :, None] - forward.output.transpose(0, 2, 1, 3)[:, :, :, None])
        carried = np.einsum("bhls,bhlsd->blhd", p * d_logit, apart) + np.einsum("bhls,bshd->blhd", p, dv)
        itself = own(float(sizes.output.max(initial=0)), sizes.logit, key.shape[1])

        def back(g: Array, size: Size) -> Sequence[Array | None]:
            judge: Any = oracle.magnitudes if size is np.abs else oracle.backward
            found = judge(*arrays, allowed, d_output=g, **kept)
            return found.query, found.key, found.value, found.bias, found.sinks

        parents = (query, key, value, given(0.0) if bias is None else bias, given(0.0) if sinks is None else sinks)
        return Running(forward.output, carried + itself, parents, back)

    def _sums(self, terms: int) -> float:
        return self.sums * math.sqrt(max(1.0, terms / 512))


def weights(query: Array, key: Array, allowed: Array | None, options: Mapping[str, Any]) -> Array:
    """The attention weights [B, H, L, S]: attention over the identity as values."""
    eye = np.broadcast_to(np.eye(key.shape[1])[None, :, None], (*key.shape[:3], key.shape[1]))
    return oracle.attention(query, key, eye, allowed, **options).output.transpose(0, 2, 1, 3)


def gradients(result: Running, cotangent: Array, wanted: Mapping[str, Running], size: bool = False) -> dict[str, Array]:
    """Gradients of sum(result * cotangent) by the names of what they are of; with `size` their sizes."""
    how: Size = np.abs if size else _same
    order: list[Running] = []
    seen: set[int] = set()

    def visit(node: Running) -> None:
        if id(node) not in seen:
            seen.add(id(node))
            for parent in node.parents:
                visit(parent)
            order.append(node)

    visit(result)
    held: dict[int, Array] = {id(result): how(np.asarray(cotangent, np.float64))}
    for node in reversed(order):
        if node.back is None or id(node) not in held:
            continue
        for parent, gradient in zip(node.parents, node.back(held[id(node)], how), strict=True):
            if gradient is not None:
                held[id(parent)] = held.get(id(parent), 0.0) + gradient
    return {name: held.get(id(node), np.zeros(node.shape)) for name, node in wanted.items()}


def _same(x: Array) -> Array:
    return x


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the axes along which an array of this shape was broadcast."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return np.asarray(x.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 and x.shape[i] != 1), keepdims=True))
