"""The kernels of the gradients, as `blockwise/backward.py` has the formulas: dq by tiles of queries, dk/dv by tiles of
keys. Nothing is added to memory by two programs, so the order of every sum is that of the lists.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from maskattn_jax.kernels.blockwise.pallas.loops import read_row, settled, visit
from maskattn_jax.kernels.blockwise.pallas.pairs import PLAIN, TRANSPOSED, Head, Job, head
from maskattn_jax.kernels.blockwise.pallas.sides import Ref, Side


class Weighed(NamedTuple):
    """A tile's weights, those after dropout, and what the logits' gradients are: after softcap and bias, and before."""

    p: Array
    weights: Array
    ds: Array
    raw: Array


def weighed(
    of: Head,
    products: Array,
    of_values: Array,
    shift: Array,
    delta: Array,
    q: Array,
    k: Array,
    masked: bool,
    careful: bool,
) -> Weighed:
    """From the products of queries with keys and of d_output with values, and each query's `shift`
    and delta, which broadcast to them.
    """
    logits, slope = of.scores(products, q, k, masked)
    p = of.weights(logits, shift)
    kept, weights = of.kept(q, k), p
    if kept is not None:
        weights, of_values = p * kept, of_values * kept
    ds = p * (of_values - delta)
    if careful:
        ds = jnp.where(p == 0.0, 0.0, ds)
    raw = ds if slope is None else ds * (1.0 - slope * slope)
    if careful and slope is not None:
        raw = jnp.where(p == 0.0, 0.0, raw)
    return Weighed(p, weights, ds, raw)


def per_query(
    queries: Side, lse_ref: Ref, delta_ref: Ref, start: Array, bounded: bool, *at: Array | int
) -> tuple[Array, Array]:
    """The log-sum-exp and delta of a tile's queries: beyond the length such that weights and gradients are 0."""
    lse = queries.load_numbers(lse_ref, start, bounded, jnp.inf, *at)
    return lse, queries.load_numbers(delta_ref, start, bounded, 0.0, *at)


def dq_kernel(
    rows_ref: Ref,
    index_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    do_ref: Ref,
    lse_ref: Ref,
    delta_ref: Ref,
    *rest: Ref,
    job: Job,
) -> None:
    """Writes dq [block, D]."""
    *refs, dq_ref = rest
    of = head(job, refs, pl.program_id(2), pl.program_id(1))
    place = pl.program_id(0)
    row = read_row(rows_ref, place)
    queries, keys = job.queries, job.keys
    start = row.tile * queries.block
    query, d_output = queries.load(q_ref, start, True, job.depth), queries.load(do_ref, start, True, job.v_depth)
    lse, delta = per_query(queries, lse_ref, delta_ref, start, True)
    shift = of.shift(lse)[:, None]
    q = queries.numbers(start)[:, None]

    def walk(careful: bool) -> Array:
        def step(tile: Array, dq: Array, masked: bool) -> Array:
            at = tile * keys.block
            k = keys.numbers(at)[None, :]
            key, value = keys.load(k_ref, at, masked, job.depth), keys.load(v_ref, at, masked, job.v_depth)
            products = job.product(query, key, TRANSPOSED), job.product(d_output, value, TRANSPOSED)
            tile_ = weighed(of, *products, shift, delta[:, None], q, k, masked, careful)
            if careful:
                attended = jnp.max(jnp.where(tile_.p == 0.0, 0, 1), axis=0)
                key = jnp.where(attended[:, None] > 0, key, jnp.zeros_like(key))
            return dq + job.product(tile_.raw.astype(key.dtype), key, PLAIN)

        zeros = jnp.zeros((queries.block, job.depth[1]), jnp.float32)
        return visit(row, lambda n: index_ref[place, n], job.ranges, careful, step, zeros)

    dq = settled(walk, lambda dq: [dq], job.may_leak) * job.options.scale
    # a negative scale makes -0 of a row that attends to nothing; whatever an empty one holds is 0
    queries.store(dq_ref, start, jnp.where((dq == 0.0) | (lse == -jnp.inf)[:, None], 0.0, dq), job.depth)


def dkv_kernel(
    rows_ref: Ref,
    index_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    do_ref: Ref,
    lse_ref: Ref,
    delta_ref: Ref,
    *rest: Ref,
    job: Job,
    group: int,
    planes: int,
) -> None:
    """Writes dk [block, D] and dv [block, Dv] of a key/value head: sums over the `group` of query heads that read it.

    `planes`: the number of lists for these heads.
    """
    *refs, dk_ref, dv_ref = rest
    # asked for here: inside a loop it fails
    place, kv_head, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    first = head(job, refs, batch, kv_head * group)
    queries, keys = job.queries, job.keys
    start = rows_ref[place * 0, place, 0] * keys.block
    key, value = keys.load(k_ref, start, True, job.depth), keys.load(v_ref, start, True, job.v_depth)
    k = keys.numbers(start)[:, None]

    def of_head(n: Array | int, sums: tuple[Array, Array], careful: bool) -> tuple[Array, Array]:
        of = first._replace(h=first.h + n)
        # what has one head has no axis for it
        one, plane = ((), place * 0) if group == 1 else ((n,), n if planes > 1 else place * 0)
        row = read_row(rows_ref, plane, place)

        def step(tile: Array, sums: tuple[Array, Array], masked: bool) -> tuple[Array, Array]:
            dk, dv = sums
            at = tile * queries.block
            query = queries.load(q_ref, at, masked, job.depth, *one)
            d_output = queries.load(do_ref, at, masked, job.v_depth, *one)
            lse, delta = per_query(queries, lse_ref, delta_ref, at, masked, *one)
            shift = of.shift(lse)[None, :]
            q = queries.numbers(at)[None, :]
            if careful:
                there = (lse != -jnp.inf)[:, None]
                query, d_output = (jnp.where(there, x, jnp.zeros_like(x)) for x in (query, d_output))
            products = job.product(key, query, TRANSPOSED), job.product(value, d_output, TRANSPOSED)
            tile_ = weighed(of, *products, shift, delta[None, :], q, k, masked, careful)
            dv = dv + job.product(tile_.weights.astype(d_output.dtype), d_output, PLAIN)
            return dk + job.product(tile_.raw.astype(query.dtype), query, PLAIN), dv

        return visit(row, lambda n: index_ref[plane, place, n], job.ranges, careful, step, sums)

    def walk(careful: bool) -> tuple[Array, Array]:
        dk, dv = (jnp.zeros((keys.block, width[1]), jnp.float32) for width in (job.depth, job.v_depth))
        sums = dk, dv
        if group == 1:
            return of_head(0, sums, careful)
        return lax.fori_loop(jnp.int32(0), jnp.int32(group), lambda n, sums: of_head(n, sums, careful), sums)

    dk, dv = settled(walk, list, job.may_leak)
    keys.store(dk_ref, start, dk * job.options.scale, job.depth)
    keys.store(dv_ref, start, dv, job.v_depth)
