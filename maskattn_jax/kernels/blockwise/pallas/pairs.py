"""The pairs of one tile in a kernel: their scores, which of them may attend, what dropout keeps of them.

Everything is made for queries along either axis of the tile: forward and dq have [queries, keys], dk/dv the transpose.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from maskattn._pairs import restrict
from maskattn.biases import Bias, DenseBias
from maskattn.masks import Dense, Mask, fold
from maskattn_jax.dropout import keep
from maskattn_jax.kernels.blockwise.own import in_place, own
from maskattn_jax.kernels.blockwise.pallas.operands import Given, Structure
from maskattn_jax.kernels.blockwise.pallas.sides import Ref, Side
from maskattn_jax.kernels.blockwise.tiled_call import Options
from maskattn_jax.kernels.blockwise.tiling import CallTiling

LOG2E, LN2 = math.log2(math.e), math.log(2)
#: (axis of the left operand, of the right one) along which a product sums: left times right, or times its transpose
PLAIN, TRANSPOSED = ((1,), (0,)), ((1,), (1,))


@dataclass(frozen=True)
class Job:
    """What a kernel is made for; static.

    Attributes:
        queries, keys: the sides, in this pass's tiles.
        depth, v_depth: the widths of keys and of values: their own, and padded.
        ranges: see `Lists`.
        has_mask, has_bias: whether there is one.
        may_forbid: whether the bias may be -inf.
        interpret: whether the kernel is interpreted.
    """

    tiling: CallTiling
    options: Options
    structure: Structure
    queries: Side
    keys: Side
    depth: tuple[int, int]
    v_depth: tuple[int, int]
    ranges: bool
    has_mask: bool
    has_bias: bool
    may_forbid: bool
    interpret: bool

    @property
    def plain(self) -> bool:
        """Whether nothing is done to logits but scaling: that is then part of the exponent of 2."""
        return self.options.softcap is None and not self.has_bias and self.options.scale > 0

    @property
    def may_leak(self) -> bool:
        """Whether a tile that is visited may hold keys that none of its queries attends to."""
        return self.has_mask or self.may_forbid

    def product(self, left: Array, right: Array, dims: Any) -> Array:
        """A product in float32; in float32 as `precision` says."""
        precision: Any = None
        if left.dtype == jnp.float32:
            precision = {
                "highest": lax.Precision.HIGHEST,
                # the compiler takes Precision.HIGH for one product of TF32, where three are meant
                "high": lax.Precision.HIGHEST if self.interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
                "default": lax.Precision.DEFAULT,
            }[self.options.precision]
        return lax.dot_general(left, right, (dims, ((), ())), precision=precision, preferred_element_type=jnp.float32)


class Scores(NamedTuple):
    """Logits, -inf where the pair may not attend (not scaled where the job is `plain`), and tanh of the capped ones."""

    logits: Array
    slope: Array | None


class Head(NamedTuple):
    """One head of a batch row in a kernel: its numbers in the whole call, and what decides about its pairs."""

    job: Job
    given: Given
    b: Array
    h: Array

    def peak(self, logits: Array) -> Array:
        """The largest logit of some as a shift: what `weights` and `ratio` subtract."""
        return logits * (self.job.options.scale * LOG2E) if self.job.plain else logits

    def shift(self, lse: Array) -> Array:
        """The log-sum-exp as a shift, 0 in empty rows."""
        lse = jnp.where(lse == -jnp.inf, 0.0, lse)
        return lse * LOG2E if self.job.plain else lse

    def natural(self, shift: Array) -> Array:
        """A shift as a logit."""
        return shift * LN2 if self.job.plain else shift

    def weights(self, logits: Array, shift: Array) -> Array:
        """exp(logits - shift)."""
        if self.job.plain:  # one multiplication and addition
            return jnp.exp2(logits * (self.job.options.scale * LOG2E) - shift)
        return jnp.exp2((logits - shift) * LOG2E)

    def ratio(self, one: Array, other: Array) -> Array:
        """exp(one - other) of two shifts."""
        return jnp.exp2(one - other) if self.job.plain else jnp.exp2((one - other) * LOG2E)

    def scores(self, products: Array, q: Array, k: Array, masked: bool) -> Scores:
        """The logits of a tile, from the products of queries and keys; q, k: int32 numbers along its axes.

        `masked`: the mask is asked, and keys beyond the length are left out.
        """
        options, slope = self.job.options, None
        logits = products if self.job.plain else products * options.scale
        if options.softcap is not None:
            slope = jnp.tanh(logits / options.softcap)
            logits = options.softcap * slope
        forbidden = None
        if self.given.bias is not None:
            added = jnp.broadcast_to(self.bias(self.given.bias, q, k).astype(jnp.float32), logits.shape)
            forbidden = added == -jnp.inf if self.job.may_forbid else None
            logits = logits + added
        if masked:
            allowed = self.allowed(q, k)
            if allowed is not None:
                refused = jnp.broadcast_to(~allowed, logits.shape)
                forbidden = refused if forbidden is None else forbidden | refused
        return Scores(logits if forbidden is None else jnp.where(forbidden, -jnp.inf, logits), slope)

    def allowed(self, q: Array, k: Array) -> Array | None:
        """Where the mask allows and the key exists, broadcasting to the tile; None for everywhere."""
        parts = [k < self.job.keys.length] if self.job.keys.ragged else []
        if self.given.mask is not None:
            places = self.places(q, k)

            def evaluate(mask: Mask) -> Array:
                if isinstance(mask, Dense):
                    return self._tile(mask.keep, mask.shape, q, k)
                mine = in_place(mask, self.job.tiling, self.given.origin)
                return jnp.asarray(mine.allowed(*restrict(mask, *places)))

            parts.append(fold(self.given.mask, evaluate))
        return functools.reduce(operator.and_, parts) if parts else None

    def bias(self, bias: Bias, q: Array, k: Array) -> Array:
        """The bias, broadcasting to the tile."""
        if isinstance(bias, DenseBias):
            return self._tile(bias.array, bias.shape, q, k)
        return jnp.asarray(bias.values(*restrict(bias, *self.places(q, k))))

    def kept(self, q: Array, k: Array) -> Array | None:
        """What weights are multiplied by: 0 or 1 / (1 - rate); None without dropout."""
        dropout = self.given.dropout
        if dropout is None:
            return None
        drawn = keep(dropout, self.b, self.h, *self.places(q, k)[2:], self.job.tiling.whole)
        return jnp.where(drawn, jnp.float32(1.0 / (1.0 - dropout.rate)), jnp.float32(0.0))

    def places(self, q: Array, k: Array) -> tuple[Array, Array, Array, Array]:
        """(b, h, q, k) in the whole call; what lies beyond a length is read as its last one."""
        q = jnp.minimum(q, self.job.queries.length - 1) if self.job.queries.ragged else q
        k = jnp.minimum(k, self.job.keys.length - 1) if self.job.keys.ragged else k
        return self.b, self.h, q + self.given.origin.query, k

    def _tile(self, array: Any, shape: tuple[int, ...], q: Array, k: Array) -> Array:
        """An explicit array on the tile. Its indices are not clamped: what is adjacent is then read as such."""
        queries, keys = self.job.queries, self.job.keys
        inside = (q < queries.length) & (k < keys.length) if queries.ragged or keys.ragged else None
        origin, mine = self.given.origin, own(shape, self.job.tiling, self.job.tiling.q_len)
        places = zip((self.b, self.h, q + origin.query), origin, mine, strict=True)
        return array.reshape(shape).tile((*(x - start if part else x for x, start, part in places), k), inside)


def head(job: Job, refs: list[Ref], b: Array, h: Array) -> Head:
    """The head of these numbers among this device's. Outside of loops: it reads, and asks for the program's number."""
    given = job.structure.loaded(refs, pl.program_id(0) * 0)
    return Head(job, given, b + given.origin.row, h + given.origin.head)
