"""A function of a layer with its gradient, for any framework: what each twin makes one differentiable function of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from maskattn.numerics.exact import bits, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.pair import Pair

#: At most three; one that a function may do without is None.
Arrays = tuple[Array, ...]
#: The NamedTuple of what is static: floats, words and flags.
Options = tuple[object, ...]


def _first(arrays: Arrays, options: Options) -> tuple[int, ...]:
    return tuple(arrays[0].shape)


class Rule(NamedTuple):
    """A function whose result has the type of its first array, and its shape where ``shape`` does not say otherwise.

    ``forward(ops, arrays, options)`` is the result; ``backward(ops, arrays, d_out, options)`` the gradient of each of
    the first ``differentiable`` arrays, in its shape and type, or None where it is None. ``shape`` and ``products`` are
    given the arrays and the options.
    """

    name: str
    forward: Callable[..., Array]
    backward: Callable[..., tuple[Array | None, ...]]
    options: Callable[..., Options]
    arrays: int = 1
    differentiable: int = 1
    shape: Callable[..., tuple[int, ...]] = _first
    #: the multiply-adds of its matrix products, which profilers count
    products: Callable[..., int] | None = None


def rounded(ops: Ops, x: Pair, like: Array) -> Array:
    """A pair in the type of ``like``, rounded once."""
    return bits.narrow(ops, x.hi, x.lo, ops.dtype(like))


def aligned(ops: Ops, x: Array, beside: Array) -> Array:
    """``x`` with axes of size 1 in front, as many as ``beside`` has more."""
    return ops.reshape(x, (1,) * (len(beside.shape) - len(x.shape)) + tuple(x.shape))


def summed(ops: Ops, gradient: Pair, like: Array) -> Array:
    """The gradient of what was broadcast: summed along those axes, the first first, and rounded once."""
    shape = (1,) * (len(gradient.hi.shape) - len(like.shape)) + tuple(like.shape)
    return ops.reshape(rounded(ops, pair.total_to(ops, gradient, shape), like), like.shape)


def whole(ops: Ops, exact: Pair, plain: Array) -> Pair:
    """``exact``, but ``plain`` where that is 0 or not finite: with the sign of a float product, and its infinities.

    Pairs lose both: the low half of an infinity is NaN, and -0 plus a low half of +0 is +0.
    """
    kept = ops.isfinite(exact.hi) & (exact.hi != 0.0)
    return Pair(ops.where(kept, exact.hi, plain), ops.where(kept, exact.lo, 0.0))
