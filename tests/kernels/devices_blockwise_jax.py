"""Run by test_blockwise_devices.py: kernel="blockwise" on 8 virtual devices of a CPU, and what is sent between them.

Each function of TESTS is a test; with names as arguments only those run. The values are compared with those of the
reference kernel on one device, and what is sent between devices is read from the compiled HLO.
"""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import maskattn_jax
from maskattn import biases, blocks, masks

RNG = np.random.default_rng(3)
attend = functools.partial(maskattn_jax.attention, return_lse=True)
SENT = re.compile(r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def arrays(batch=4, q_len=120, kv_len=160, heads=8, kv_heads=4, dim=8):
    """query, key, value, and the cotangents of the output and of the log-sum-exp."""
    sizes = [(batch, n, h, dim) for n, h in ((q_len, heads), (kv_len, kv_heads), (kv_len, kv_heads), (q_len, heads))]
    return [*(RNG.standard_normal(size, np.float32) for size in sizes), RNG.standard_normal(sizes[0][:3], np.float32)]


def gradients(call, query, key, value, cotangent, d_lse, floats):
    """The gradients by query, key, value and floats, then what `call` gives: output and log-sum-exp."""

    def loss(query, key, value, floats):
        out, lse = call(query, key, value, floats)
        return (out * cotangent).sum() + (lse * d_lse).sum(), (out, lse)

    return jax.grad(loss, (0, 1, 2, 3), has_aux=True)(query, key, value, floats)


def program(function, *given):
    return jax.jit(function).lower(*given).compile()


def sent(program):
    """The operations between devices, each array of them as `all-gather f32[4,8]`, sorted."""
    found = SENT.findall(program.as_text())
    return sorted(f"{name} {shape}" for shapes, name in found for shape in re.findall(r"\w+\[[\d,]*\]", shapes))


def held(call, given, specs, floats=(), axis_type=AxisType.Explicit, values_only=False):
    """Whether query, key and value, sharded so, give what one device gives with the reference kernel, each result
    sharded as what it belongs to. Returns what is sent by the forward pass alone, and by
    forward and backward pass together; None with `values_only`.
    """
    whole = functools.partial(call, kernel="reference")
    wanted = jax.jit(functools.partial(gradients, whole))(*given, floats)
    specs = (*specs, specs[0], P(*specs[0][:3]))
    placed = [jax.device_put(x, NamedSharding(MESH[axis_type], s)) for x, s in zip(given, specs, strict=True)]
    both = program(functools.partial(gradients, call), *placed, floats)
    got = both(*placed, floats)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
    if axis_type is AxisType.Explicit:
        for x, like in zip((*got[0][:3], *got[1]), (*placed[:3], *placed[3:]), strict=True):
            assert x.sharding.is_equivalent_to(like.sharding, x.ndim), (x.sharding, like.sharding)
    return None if values_only else (sent(program(call, *placed[:3], floats)), sent(both))


def causal(query, key, value, floats, kernel="blockwise"):
    return attend(query, key, value, masks.Causal(20), kernel=kernel)


def batch_and_heads():
    for spec in (P("x", None, "y", None), P(("x", "y"), None, None, None)):
        assert held(causal, arrays(batch=8), [spec] * 3) == ([], [])


def queries():
    keys = ["all-gather f32[2,160,4,8]"] * 2
    # the gradients of keys and values are summed, and each device keeps its own part
    both = [*keys, *["reduce-scatter f32[2,40,4,8]"] * 2]
    assert held(causal, arrays(), [P("x", "y", None, None)] * 3) == (keys, both)


def queries_alone():
    specs = P("x", "y", None, None), *[P("x", None, None, None)] * 2
    assert held(causal, arrays(), specs) == ([], ["all-reduce f32[2,160,4,8]"] * 2)


def queries_and_heads():
    forward, _ = held(causal, arrays(), [P(None, "y", "x", None)] * 3)
    assert forward == ["all-gather f32[4,160,2,8]"] * 2
    forward, _ = held(causal, arrays(), [P(None, ("x", "y"), None, None)] * 3)
    assert forward == ["all-gather f32[4,160,4,8]"] * 2


def shardings_that_are_not_alike():
    held(
        causal, arrays(), [P("x", None, None, None), P("x", "y", None, None), P("x", "y", None, None)], values_only=True
    )
    held(
        causal, arrays(), [P("x", "y", None, None), P("y", "x", None, None), P(None, None, "y", None)], values_only=True
    )


def tiles_that_the_parts_do_not_fill():
    """Small tiles, the last of each device not whole, and every argument that sees indices."""
    given, specs = arrays(q_len=120, kv_len=100), [P("x", "y", None, None)] * 3
    lengths, keep = jnp.asarray([100, 7, 60, 50]), jnp.asarray(RNG.random((120, 100)) < 0.9)
    per_head = masks.PerHead((masks.Causal(20), masks.SlidingWindow(30, 9)) * 4)
    known, traced = masks.SlidingWindow(30, 9), masks.KeyPadding(lengths) & (masks.Dense(keep) | per_head)
    # values that would overflow, were those of another device's queries not left out
    bias, sinks = (RNG.standard_normal(size, np.float32) for size in ((8, 120, 100), (8,)))
    bias[:, ::30] += 200
    options = [
        (known, {}),
        (per_head, {}),
        (traced, {"sinks": sinks}),
        (masks.Causal(20), {"bias": bias, "sinks": sinks}),
        (masks.Full(), {"bias": biases.ALiBi(8)}),
        (known, {"dropout_rate": 0.3, "dropout_key": 5}),
    ]
    for mask, more in options:
        floats = {name: x for name, x in more.items() if isinstance(x, np.ndarray)}

        def call(query, key, value, floats, kernel="blockwise", mask=mask, more=more):
            return attend(query, key, value, mask, kernel=kernel, **{**more, **floats})

        with blocks.forcing(16, 32):
            held(call, given, specs, floats, values_only=True)


def a_part_attends_in_the_callers_shard_map():
    """`mask.at` with an offset that is traced: each device holds some queries, and gathers the keys."""
    spec, lengths = P(None, ("x", "y")), jnp.asarray([160, 7, 100, 90])
    mask = masks.Causal() & masks.KeyPadding(lengths)

    def part(query, key, value):
        start = jax.lax.axis_index(("x", "y")) * query.shape[1]
        key, value = (jax.lax.all_gather(x, ("x", "y"), axis=1, tiled=True) for x in (key, value))
        return attend(query, key, value, mask.at(start), kernel="blockwise")

    def call(query, key, value, floats, kernel="blockwise"):
        if kernel == "reference":
            return attend(query, key, value, mask, kernel=kernel)
        mesh = MESH[AxisType.Auto]
        return jax.shard_map(part, mesh=mesh, in_specs=(spec,) * 3, out_specs=(spec, spec))(query, key, value)

    with blocks.forcing(16, 32):
        forward, _ = held(call, arrays(q_len=160), [P(None, ("x", "y"), None, None)] * 3, axis_type=AxisType.Auto)
    assert forward == ["all-gather f32[4,160,4,8]"] * 2


TESTS = [
    batch_and_heads,
    queries,
    queries_alone,
    queries_and_heads,
    shardings_that_are_not_alike,
    tiles_that_the_parts_do_not_fill,
    a_part_attends_in_the_callers_shard_map,
]

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    MESH = {
        kind: jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2) for kind in (AxisType.Explicit, AxisType.Auto)
    }
    for test in TESTS:
        if test.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            print(test.__name__, flush=True)
            test()
    print("done")
