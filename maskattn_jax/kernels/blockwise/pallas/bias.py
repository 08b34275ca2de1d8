"""The kernels of a bias's gradients: sums of the logits' gradients ds, each in an order that the lists state.

    of each row       a table's gradient, by its rows; ALiBi's slopes; an explicit bias without an axis of keys: each
                      program sums over its queries' keys, and XLA then over programs
    of each column    an explicit bias without an axis of queries, likewise
    of each pair      an explicit bias with both: a program for each of its tiles sums over the batch rows and heads
                      that share it

None makes anything of L x S entries but the gradient of a bias that has so many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from maskattn._pairs import restrict
from maskattn.biases import ALiBi, TableBias
from maskattn.schedule import EMPTY
from maskattn_jax.kernels.blockwise.pallas.backward import per_query, weighed
from maskattn_jax.kernels.blockwise.pallas.loops import read_row, settled, visit
from maskattn_jax.kernels.blockwise.pallas.pairs import TRANSPOSED, Head, Job, head
from maskattn_jax.kernels.blockwise.pallas.sides import Ref

#: (the sums so far, the head, ds [queries, keys], numbers of queries and keys) -> the sums with those of a tile.
Add = Callable[[Array, Head, Array, Array, Array], Array]


def sums_kernel(rows_ref: Ref, index_ref: Ref, *rest: Ref, job: Job, by_key: bool, count: int, add: Add) -> None:
    """Writes [count]: what `add` makes of the tiles that one tile of queries visits, or, `by_key`, one of keys."""
    *refs, sums_ref = rest
    tensors, refs = refs[:6], refs[6:]
    of = head(job, refs, pl.program_id(2), pl.program_id(1))
    place = pl.program_id(0)
    row = read_row(rows_ref, place)

    def walk(careful: bool) -> Array:
        def step(tile: Array, sums: Array, masked: bool) -> Array:
            starts = (tile, row.tile) if by_key else (row.tile, tile)
            q_at, k_at = starts[0] * job.queries.block, starts[1] * job.keys.block
            q, k = job.queries.numbers(q_at)[:, None], job.keys.numbers(k_at)[None, :]
            return add(sums, of, _ds(of, tensors, q_at, k_at, (), masked, careful), q, k)

        zeros = jnp.zeros((count,), jnp.float32)
        return visit(row, lambda n: index_ref[place, n], job.ranges, careful, step, zeros)

    sums = settled(walk, lambda sums: [sums], job.may_leak)
    plt.store(sums_ref.at[row.tile, slice(None)], sums)


def pairs_kernel(states_ref: Ref, *rest: Ref, job: Job, shared: tuple[int, int], planes: tuple[int, int]) -> None:
    """Writes a tile of an explicit bias's gradient [queries, keys], summed over the `shared` batch rows and heads.

    `planes`: of how many batch rows and heads there are states.
    """
    *refs, out_ref = rest
    tensors, refs = refs[:6], refs[6:]
    i, j, plane = pl.program_id(1), pl.program_id(0), pl.program_id(2)
    heads = job.tiling.heads // shared[1]  # those of the bias
    first_b, first_h = lax.div(plane, jnp.int32(heads)) * shared[0], lax.rem(plane, jnp.int32(heads)) * shared[1]
    base = head(job, refs, first_b * 0, first_h * 0)
    q_at, k_at = i * job.queries.block, j * job.keys.block
    zeros = jnp.zeros((job.queries.block, job.keys.block), jnp.float32)

    def walk(careful: bool) -> Array:
        def one(n: Array, sums: Array) -> Array:
            b = first_b + lax.div(n, jnp.int32(shared[1]))
            h = first_h + lax.rem(n, jnp.int32(shared[1]))
            of = base._replace(b=base.b + b, h=base.h + h)
            state = states_ref[b if planes[0] > 1 else b * 0, h if planes[1] > 1 else h * 0, i, j]
            at = (b, h, lax.div(h, jnp.int32(job.tiling.heads // job.tiling.kv_heads)))
            return lax.cond(
                state == EMPTY, lambda: sums, lambda: sums + _ds(of, tensors, q_at, k_at, at, True, careful)
            )

        return lax.fori_loop(jnp.int32(0), jnp.int32(shared[0] * shared[1]), one, zeros)

    sums = settled(walk, lambda sums: [sums], job.may_leak)
    inside = None
    if job.queries.ragged or job.keys.ragged:
        inside = (job.queries.numbers(q_at)[:, None] < job.queries.length) & (
            job.keys.numbers(k_at)[None, :] < job.keys.length
        )
    block = out_ref.at[pl.ds(q_at, job.queries.block), pl.ds(k_at, job.keys.block)]
    plt.store(block, sums.astype(out_ref.dtype), mask=inside)


def _ds(of: Head, tensors: Any, q_at: Array, k_at: Array, at: tuple[Any, ...], masked: bool, careful: bool) -> Array:
    """The logits' gradients of a tile [queries, keys]; `at`: (b, h, key/value head) where the references show all."""
    q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref = tensors
    job = of.job
    lead, of_q, of_k = ((), (), ()) if not at else ((at[0],), (at[1],), (at[2],))
    query = job.queries.load(q_ref, q_at, True, job.depth, *of_q, lead=lead)
    d_output = job.queries.load(do_ref, q_at, True, job.v_depth, *of_q, lead=lead)
    key = job.keys.load(k_ref, k_at, masked, job.depth, *of_k, lead=lead)
    value = job.keys.load(v_ref, k_at, masked, job.v_depth, *of_k, lead=lead)
    lse, delta = per_query(job.queries, lse_ref, delta_ref, q_at, True, *lead, *of_q)
    q, k = job.queries.numbers(q_at)[:, None], job.keys.numbers(k_at)[None, :]
    products = job.product(query, key, TRANSPOSED), job.product(d_output, value, TRANSPOSED)
    return weighed(of, *products, of.shift(lse)[:, None], delta[:, None], q, k, masked, careful).ds


def along(axis: int) -> Add:
    """Sums over the other axis of a tile: of keys for axis 0, the queries."""

    def add(sums: Array, of: Head, ds: Array, q: Array, k: Array) -> Array:
        return sums + jnp.sum(ds, axis=1 - axis)

    return add


def by_table_row(sums: Array, of: Head, ds: Array, q: Array, k: Array) -> Array:
    """Sums by the row of the table that a pair reads; those that a tile has are near each other, and few."""
    bias: Any = of.given.bias
    assert isinstance(bias, TableBias)
    b, _, q, k = of.places(q, k)
    rows = jnp.broadcast_to(jnp.asarray(bias.rows(b, q, k), jnp.int32), ds.shape)
    count = sums.shape[0]
    least = jnp.min(jnp.where(ds != 0.0, rows, count))
    most = jnp.max(jnp.where(ds != 0.0, rows, -1))
    numbers = lax.iota(jnp.int32, count)

    def one(row: Array, sums: Array) -> Array:
        return sums + jnp.where(numbers == row, jnp.sum(jnp.where(rows == row, ds, 0.0)), 0.0)

    return lax.fori_loop(least, most + 1, one, sums)


def by_slope(sums: Array, of: Head, ds: Array, q: Array, k: Array) -> Array:
    """The sum of ds times what the slope is multiplied by; all entries are the same."""
    bias: Any = of.given.bias
    assert isinstance(bias, ALiBi)
    values = replace_slopes(bias).values(*restrict(bias, *of.places(q, k)))
    return sums + jnp.sum(ds * jnp.broadcast_to(jnp.asarray(values, jnp.float32), ds.shape))


class _Ones:
    """Slopes of 1."""

    def __init__(self, heads: int) -> None:
        self.shape, self.dtype = (heads,), jnp.dtype(jnp.float32)

    def __getitem__(self, index: Any) -> float:
        return 1.0


def replace_slopes(bias: ALiBi) -> ALiBi:
    """The same bias with slopes of 1."""
    leaves, structure = bias.flatten()
    named = zip((name for name, _ in structure[0]), leaves, strict=True)
    return type(bias).unflatten(structure, [_Ones(bias.heads) if name == "slopes" else x for name, x in named])
