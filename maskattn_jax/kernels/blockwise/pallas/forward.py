"""The forward kernel: one program for each tile of queries of a head, as `blockwise/forward.py` has the formulas."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from maskattn_jax.kernels.blockwise.pallas.loops import read_row, settled, visit
from maskattn_jax.kernels.blockwise.pallas.pairs import PLAIN, TRANSPOSED, Job, head
from maskattn_jax.kernels.blockwise.pallas.sides import Ref

Sums = tuple[Array, Array, Array]


def forward_kernel(rows_ref: Ref, index_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref, *rest: Ref, job: Job) -> None:
    """Writes the output [block, Dv], the log-sum-exp [block] and, with a bias, `_found` [block]."""
    outputs = 3 if job.has_bias else 2
    refs, (o_ref, lse_ref, *found_ref) = rest[:-outputs], rest[-outputs:]
    place, local = pl.program_id(0), pl.program_id(1)
    of = head(job, list(refs), pl.program_id(2), local)
    row = read_row(rows_ref, place)
    queries, keys = job.queries, job.keys
    start = row.tile * queries.block
    query = queries.load(q_ref, start, True, job.depth)
    q = queries.numbers(start)[:, None]

    def walk(careful: bool) -> Sums:
        def step(tile: Array, sums: Sums, masked: bool) -> Sums:
            output, highest, total = sums
            at = tile * keys.block
            k = keys.numbers(at)[None, :]
            key = keys.load(k_ref, at, masked, job.depth)
            logits, _ = of.scores(job.product(query, key, TRANSPOSED), q, k, masked)
            higher = jnp.maximum(highest, of.peak(jnp.max(logits, axis=1)))
            # a row that has met no key yet: exp(-inf - 0) = 0, where exp(-inf + inf) were not a number
            base = jnp.where(higher == -jnp.inf, 0.0, higher) if masked or job.may_forbid else higher
            shrink = of.ratio(highest, base)
            e = of.weights(logits, base[:, None])
            total = total * shrink + jnp.sum(e, axis=1)
            value = keys.load(v_ref, at, masked, job.v_depth)
            if careful and (masked or job.may_forbid):
                attended = jnp.max(jnp.where(logits == -jnp.inf, 0, 1), axis=0)
                value = jnp.where(attended[:, None] > 0, value, jnp.zeros_like(value))
            kept = of.kept(q, k)
            e = e if kept is None else e * kept  # the denominator is that without dropout
            output = output * shrink[:, None] + job.product(e.astype(value.dtype), value, PLAIN)
            return output, higher, total

        sums = (
            jnp.zeros((queries.block, job.v_depth[1]), jnp.float32),
            jnp.full((queries.block,), -jnp.inf, jnp.float32),
            jnp.zeros((queries.block,), jnp.float32),
        )
        return visit(row, lambda n: index_ref[place, n], job.ranges, careful, step, sums)

    output, highest, total = settled(walk, lambda sums: [sums[0]], job.may_leak)
    highest = of.natural(highest)
    if of.given.sinks is not None:
        sink = of.given.sinks[local].astype(jnp.float32)
        most = jnp.maximum(highest, sink)
        shrink = jnp.exp(highest - most)
        output, total = output * shrink[:, None], total * shrink + jnp.exp(sink - most)
        highest = most
    empty = total == 0.0
    total = jnp.where(empty, 1.0, total)
    instead = jnp.nan if job.options.empty_rows == "nan" else 0.0
    output = jnp.where(empty[:, None], instead, output / total[:, None])
    lse = jnp.where(empty, -jnp.inf, highest + jnp.log(total))
    queries.store(o_ref, start, output, job.v_depth)
    queries.store_numbers(lse_ref, start, lse)
    if found_ref:
        # see `_found` in blockwise/forward.py
        left = jnp.where(empty, 0.0, jnp.where(empty, 0.0, lse) - jnp.where(empty, 0.0, highest))
        queries.store_numbers(found_ref[0], start, jnp.exp(jnp.log(total) - left))
