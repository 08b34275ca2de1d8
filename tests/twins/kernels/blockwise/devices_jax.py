"""Run by test_devices.py: kernel="blockwise" on 8 virtual devices of a CPU, and what is sent between them.

Each function of TESTS is a test; with names as arguments only those run. The values are compared with those of the
reference kernel on one device, and what is sent between devices is read from the compiled HLO.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import maskattn_jax
from maskattn import biases, masks, standards
from maskattn_jax._platform import assumed
from tests.scripts import each

RNG = np.random.default_rng(3)
attend = functools.partial(maskattn_jax.attention, return_lse=True)
SENT = re.compile(r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def arrays(batch=4, q_len=120, kv_len=160, heads=8, kv_heads=4, dim=8):
    """query, key, value, and the cotangents of the output and of the log-sum-exp."""
    sizes = [(batch, n, h, dim) for n, h in ((q_len, heads), (kv_len, kv_heads), (kv_len, kv_heads), (q_len, heads))]
    return [*(RNG.standard_normal(size, np.float32) for size in sizes), RNG.standard_normal(sizes[0][:3], np.float32)]


def results(call, *given, forward=False):
    """The gradients by query, key, value and floats, of query, key, value, cotangents and floats; then output and
    log-sum-exp. With `forward` no gradients.
    """
    query, key, value, cotangent, d_lse, floats = given

    def loss(query, key, value, floats):
        out, lse = call(query, key, value, floats)
        return (out * cotangent).sum() + (lse * d_lse).sum(), (out, lse)

    if forward:
        return (), call(query, key, value, floats)
    return jax.grad(loss, (0, 1, 2, 3), has_aux=True)(query, key, value, floats)


@functools.cache
def on_one_device(call, forward):
    """What the reference kernel gives; compiled once for calls of the same sizes."""
    return jax.jit(functools.partial(results, functools.partial(call, kernel="reference"), forward=forward))


def held(call, given, specs, floats=(), axis_type=AxisType.Explicit, forward=False):
    """Whether query, key and value, sharded so, give what one device gives with the reference kernel, each result
    sharded as what it belongs to.

    Returns:
        What the devices send: each array of such an operation as `all-gather f32[4,8]`, sorted.
    """
    wanted = on_one_device(call, forward)(*given, floats)
    specs = (*specs, specs[0], P(*specs[0][:3]))
    placed = [jax.device_put(x, NamedSharding(MESH[axis_type], s)) for x, s in zip(given, specs, strict=True)]
    program = jax.jit(functools.partial(results, call, forward=forward)).lower(*placed, floats).compile()
    got = program(*placed, floats)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=standards.value("same.gradient"))
    if axis_type is AxisType.Explicit:
        likes = (*placed[: len(got[0][:3])], *placed[3:])
        for x, like in zip((*got[0][:3], *got[1]), likes, strict=True):
            assert x.sharding.is_equivalent_to(like.sharding, x.ndim), (x.sharding, like.sharding)
    found = SENT.findall(program.as_text())
    return sorted(f"{name} {shape}" for shapes, name in found for shape in re.findall(r"\w+\[[\d,]*\]", shapes))


def causal(query, key, value, floats, kernel="blockwise"):
    return attend(query, key, value, masks.Causal(20), kernel=kernel)


def batch_and_heads():
    for spec in (P("x", None, "y", None), P(("x", "y"), None, None, None)):
        assert held(causal, arrays(batch=8), [spec] * 3) == []


def query_heads_that_share_a_key_head():
    """Keys and values are whole on all devices; each head's gradient is summed over those that read it."""
    masked = masks.PerHead((masks.Causal(20), masks.SlidingWindow(30, 9)) * 4)

    def call(query, key, value, floats, kernel="blockwise"):
        return attend(query, key, value, masked, bias=biases.ALiBi(8), sinks=floats, kernel=kernel)

    sinks = RNG.standard_normal(8, np.float32)
    for kv_heads in (1, 2):
        specs = P(None, None, "y", None), P(), P()
        assert held(call, arrays(kv_heads=kv_heads), specs, sinks) == [f"all-reduce f32[4,160,{kv_heads},8]"] * 2


def automatic_axes():
    """Nothing is sent; nor in a shard_map."""
    specs, mesh = [P("x", None, "y", None)] * 3, MESH[AxisType.Auto]
    assert held(causal, arrays(), specs, axis_type=AxisType.Auto) == []

    def call(query, key, value, floats, kernel="blockwise"):
        if kernel == "reference":
            return causal(query, key, value, floats, kernel)
        part = functools.partial(causal, floats=())
        out_specs = (specs[0], P("x", None, "y"))
        return jax.shard_map(part, mesh=mesh, in_specs=tuple(specs), out_specs=out_specs)(query, key, value)

    assert held(call, arrays(), specs, axis_type=AxisType.Auto) == []


def queries():
    keys, specs = ["all-gather f32[2,160,4,8]"] * 2, [P("x", "y", None, None)] * 3
    assert held(causal, arrays(), specs, forward=True) == keys
    # the gradients of keys and values are summed, and each device keeps its own part
    assert held(causal, arrays(), specs) == [*keys, *["reduce-scatter f32[2,40,4,8]"] * 2]


def queries_alone():
    specs = P("x", "y", None, None), *[P("x", None, None, None)] * 2
    assert held(causal, arrays(), specs) == ["all-reduce f32[2,160,4,8]"] * 2


def queries_and_heads():
    given = arrays()
    assert held(causal, given, [P(None, "y", "x", None)] * 3, forward=True) == ["all-gather f32[4,160,2,8]"] * 2
    everywhere = [P(None, ("x", "y"), None, None)] * 3
    assert held(causal, given, everywhere, forward=True) == ["all-gather f32[4,160,4,8]"] * 2


def shardings_that_are_not_alike():
    held(causal, arrays(), [P("x", None, None, None), P("x", "y", None, None), P("x", "y", None, None)])
    held(causal, arrays(), [P("x", "y", None, None), P("y", "x", None, None), P(None, None, "y", None)])


def tiles_that_the_parts_do_not_fill():
    """Small tiles, the last of each device not whole, and every argument that sees indices."""
    given, specs = arrays(q_len=120, kv_len=100), [P("x", "y", None, None)] * 3
    lengths, keep = jnp.asarray([100, 7, 60, 50]), jnp.asarray(RNG.random((120, 100)) < 0.9)
    per_head = masks.PerHead((masks.Causal(20), masks.SlidingWindow(30, 9)) * 4)
    traced = masks.KeyPadding(lengths) & (masks.Dense(keep) | per_head)
    # values that would overflow, were those of another device's queries not left out
    bias, sinks = (RNG.standard_normal(size, np.float32) for size in ((8, 120, 100), (8,)))
    bias[:, ::30] += 200
    options = [
        (per_head, {"dropout_rate": 0.3, "dropout_key": 5}),
        (traced, {"sinks": sinks}),
        (masks.Causal(20), {"bias": bias, "sinks": sinks}),
        (masks.Full(), {"bias": biases.ALiBi(8)}),
    ]
    for mask, more in options:
        floats = {name: x for name, x in more.items() if isinstance(x, np.ndarray)}

        def call(query, key, value, floats, kernel="blockwise", mask=mask, more=more):
            return attend(query, key, value, mask, kernel=kernel, blocks=(16, 32), **{**more, **floats})

        held(call, given, specs, floats)


def held_in_shard_map(part):
    """What the devices send where each has a part of the queries and of the keys: `part(query, key, value, mask)`."""
    mask, spec = masks.Causal() & masks.KeyPadding(jnp.asarray([160, 7, 100, 90])), P(None, ("x", "y"))

    def call(query, key, value, floats, kernel="blockwise"):
        if kernel == "reference":
            return attend(query, key, value, mask, kernel=kernel)
        own = functools.partial(part, mask=mask)
        mesh = MESH[AxisType.Auto]
        return jax.shard_map(own, mesh=mesh, in_specs=(spec,) * 3, out_specs=(spec, spec))(query, key, value)

    return held(call, arrays(q_len=160), [P(None, ("x", "y"), None, None)] * 3, axis_type=AxisType.Auto)


def a_part_attends_in_the_callers_shard_map():
    """`mask.at` with an offset that is traced: each device holds some queries, and gathers the keys."""

    def part(query, key, value, mask):
        start = jax.lax.axis_index(("x", "y")) * query.shape[1]
        key, value = (jax.lax.all_gather(x, ("x", "y"), axis=1, tiled=True) for x in (key, value))
        return attend(query, key, value, mask.at(start), kernel="blockwise", blocks=(16, 32))

    found = held_in_shard_map(part)
    assert found == [*["all-gather f32[4,160,4,8]"] * 2, *["reduce-scatter f32[4,20,4,8]"] * 2]


def keys_around_a_ring():
    """Each device holds some queries and some keys, and hands its keys on: results are merged, nothing is gathered."""
    names, turn = ("x", "y"), [(n, (n + 1) % 8) for n in range(8)]

    def part(query, key, value, mask):
        device = jax.lax.axis_index(names)

        def over(key, value, turns):
            starts = device * query.shape[1], (device - turns) % 8 * key.shape[1]
            return attend(query, key, value, mask.at(*starts), kernel="blockwise")

        def step(carry, turns):
            key, value = (jax.lax.ppermute(x, names, turn) for x in carry[:2])
            return (key, value, *maskattn_jax.merge(*carry[2:], *over(key, value, turns))), None

        return jax.lax.scan(step, (key, value, *over(key, value, 0)), jnp.arange(1, 8))[0][2:]

    found = held_in_shard_map(part)
    assert found and all(line.startswith("collective-permute f32[4,20,4,8]") for line in found), found


def a_gpus_kernels_interpreted():
    """Over automatic axes each device makes the lists of its own part, and walks them: of its heads, of its queries."""
    ids = np.sort(RNG.integers(0, 3, (2, 32)), axis=1)
    masked = masks.Segments(ids) & masks.PerHead((masks.Causal(), masks.SlidingWindow(9, 4)) * 2)

    def call(query, key, value, floats, kernel="blockwise"):
        return attend(query, key, value, masked, sinks=floats, kernel=kernel, blocks=(16, 16))

    given, sinks = arrays(2, 32, 32, 4, 4), RNG.standard_normal(4, np.float32)
    jax.config.update("jax_disable_most_optimizations", True)
    with assumed("gpu", interpret=True):
        of_queries = held(call, given, [P(None, "x", "y", None)] * 3, sinks, AxisType.Auto, forward=True)
        of_batch = held(call, given, [P("x", None, "y", None)] * 3, sinks, AxisType.Auto)
    jax.config.update("jax_disable_most_optimizations", False)
    assert not [line for line in of_batch if line.startswith("all-gather f32[2,32,")], of_batch
    assert not [line for line in of_queries if "[2,32,4,8]" in line], of_queries


TESTS = [
    batch_and_heads,
    query_heads_that_share_a_key_head,
    automatic_axes,
    queries,
    queries_alone,
    queries_and_heads,
    shardings_that_are_not_alike,
    tiles_that_the_parts_do_not_fill,
    a_part_attends_in_the_callers_shard_map,
    keys_around_a_ring,
    a_gpus_kernels_interpreted,
]

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    MESH = {
        kind: jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2) for kind in (AxisType.Explicit, AxisType.Auto)
    }
    each(TESTS)
