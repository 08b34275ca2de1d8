"""Run by test_functional_meshes.py: attention and modules on a mesh of 2 x 4 virtual devices of a CPU.

Each function of TESTS is a test; with names as arguments only those run. Values are compared with those of one device,
and what is sent between devices is read from the compiled HLO.
"""

import functools
import re
import tempfile

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import maskattn_jax
import maskattn_jax.linen
from maskattn import biases, masks, standards
from tests.scripts import each

RNG = np.random.default_rng(3)
B, L, H, K, D = 4, 64, 8, 4, 8
SENT = re.compile(r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
QUERY, KEY, VALUE, COTANGENT = (RNG.standard_normal((B, L, n, D), np.float32) for n in (H, K, K, H))
LENGTHS = np.asarray([64, 40, 7, 33], np.int32)
IDS = np.sort(RNG.integers(0, 4, (B, L)), axis=1).astype(np.int32)
DENSE = RNG.random((B, 1, L, L)) < 0.7
ROWS, QUERIES = P("data", None, "model"), P("data", "model")  # batch and heads; batch and queries
TILES = {"blockwise": {"blocks": (16, 16)}}


def attend(*arrays, kernel="blockwise", **options):
    return maskattn_jax.attention(*arrays, kernel=kernel, **TILES.get(kernel, {}), **options)


def padded(query, key, value, lengths, kernel="blockwise"):
    return attend(query, key, value, masks.Causal() & masks.KeyPadding(lengths), kernel=kernel)


def with_data(query, key, value, data, kernel="blockwise"):
    """A mask with every kind of data that is divided with the call, and some that is not."""
    lengths, ids, keep = data
    mask = masks.KeyPadding(lengths) & (masks.Segments(ids) | masks.Dense(keep) | masks.Causal().at(lengths - 60))
    return attend(query, key, value, mask & masks.PerHead((masks.Causal(), masks.SlidingWindow(20)) * 4), kernel=kernel)


def gradients(call, **options):
    """The gradients by query, key and value of (query, key, value, cotangent, data), and the output."""

    def loss(query, key, value, cotangent, data):
        out = call(query, key, value, data, **options)
        return (out * cotangent).sum(), out

    return jax.grad(loss, (0, 1, 2), has_aux=True)


def placed(x, spec, kind=AxisType.Auto):
    return jax.device_put(x, NamedSharding(MESH[kind], spec))


def compiled(function, *arguments, kind=AxisType.Auto):
    if kind is AxisType.Auto:
        return jax.jit(function).lower(*arguments).compile()
    with jax.set_mesh(MESH[kind]):
        return jax.jit(function).lower(*arguments).compile()


def sent(program):
    """What the devices send: each array of such an operation as `all-gather f32[4,8]`, sorted."""
    found = SENT.findall(program.as_text())
    return sorted(f"{name} {shape}" for shapes, name in found for shape in re.findall(r"\w+\[[\d,]*\]", shapes))


def of_activations(lines):
    """Those of floats: the numbers of a mask are few."""
    return [line for line in lines if re.search(r"f\d+\[", line)]


def close(got, wanted):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = max(1.0, float(np.abs(np.asarray(other)).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=scale * standards.value("same.gradient"))


DATA = {padded: LENGTHS, with_data: (LENGTHS, IDS, DENSE)}


@functools.cache
def on_one_device(call):
    return jax.jit(gradients(call, kernel="reference"))(QUERY, KEY, VALUE, COTANGENT, DATA[call])


def held(call, spec, kernel="blockwise", kind=AxisType.Auto):
    """What is sent where query, key and value lie so: values are those of one device, and results lie alike."""
    arrays = [placed(x, spec, kind) for x in (QUERY, KEY, VALUE, COTANGENT)]
    given = (*arrays, jax.tree.map(lambda x: placed(x, P(spec[0]), kind), DATA[call]))
    program = compiled(gradients(call, kernel=kernel), *given, kind=kind)
    got = program(*given)
    close(got, on_one_device(call))
    assert got[1].sharding.is_equivalent_to(arrays[0].sharding, 4), got[1].sharding
    return sent(program)


#: What is gathered of keys and values where queries are divided, and how their gradients come home.
KEYS = [*["all-gather f32[2,64,4,8]"] * 2, *["reduce-scatter f32[2,16,4,8]"] * 2]


def blockwise_over_automatic_axes():
    assert held(with_data, ROWS) == []
    assert held(with_data, QUERIES) == KEYS


def mixed_axes():
    assert held(padded, ROWS, kind="mixed") == []


def kernels_that_xla_divides():
    """Over explicit axes too, and queries where they are divided: keys alone are gathered."""
    for kernel in ("reference", "fused"):
        found = of_activations(held(with_data, QUERIES, kernel, AxisType.Explicit))
        assert not any("[2,64,8,64]" in line or "[4,64" in line for line in found), found
    given = [placed(x, ROWS, AxisType.Explicit) for x in (QUERY, KEY, VALUE)]
    data = placed(LENGTHS, P("data"), AxisType.Explicit)
    program = compiled(functools.partial(padded, kernel="exact"), *given, data, kind=AxisType.Explicit)
    close(program(*given, data), on_one_device(padded)[1])
    assert of_activations(sent(program)) == []


def every_argument():
    """Sinks by heads, a table and an array as biases with gradients summed over the devices, dropout by place."""
    table, sinks = RNG.standard_normal((32, H), np.float32), RNG.standard_normal(H, np.float32)
    bias = RNG.standard_normal((1, H, L, L), np.float32)

    def loss(query, key, value, cotangent, floats, kernel="blockwise"):
        options = {"dropout_rate": 0.3, "dropout_key": 5, "sinks": floats[2]}
        one = functools.partial(maskattn_jax.attention, query, key, value, masks.Causal(), kernel=kernel)
        first, second = one(bias=floats[0], **options), one(bias=biases.T5Buckets(floats[1]))
        return ((first + second) * cotangent).sum()

    floats = (bias, table, sinks)
    wanted = jax.jit(jax.grad(functools.partial(loss, kernel="reference"), (0, 1, 2, 4)))(
        QUERY, KEY, VALUE, COTANGENT, floats
    )
    given = (*(placed(x, ROWS) for x in (QUERY, KEY, VALUE, COTANGENT)), floats)
    program = compiled(jax.grad(loss, (0, 1, 2, 4)), *given)
    close(program(*given), wanted)
    assert not any("gather" in line for line in sent(program)), sent(program)


def heads_that_devices_share():
    """Fewer key/value heads than devices; heads divided finer than there are; a batch that does not divide."""
    few = (QUERY, KEY[:, :, :2], VALUE[:, :, :2])

    def loss(query, key, value, kernel="blockwise"):
        return (attend(query, key, value, masks.Causal(), kernel=kernel) ** 2).sum()

    wanted = jax.jit(jax.grad(functools.partial(loss, kernel="reference"), (0, 1, 2)))(*few)
    given = placed(few[0], ROWS), *(placed(x, P("data")) for x in few[1:])
    program = compiled(jax.grad(loss, (0, 1, 2)), *given)
    close(program(*given), wanted)
    assert not any("f32[2,64,8,8]" in line or "f32[4" in line for line in sent(program)), sent(program)

    def projected(x, weight, kernel="blockwise"):
        query = (x @ weight).reshape(B, L, 4, 4)
        query = jax.lax.with_sharding_constraint(query, NamedSharding(MESH[AxisType.Auto], P())) * 1 + query
        return attend(query, query[:, :, :2], query[:, :, 2:], masks.Causal(), kernel=kernel)

    x, weight = RNG.standard_normal((B, L, 8), np.float32), RNG.standard_normal((8, 16), np.float32)
    given = placed(x, P()), placed(weight, P(None, ("model", "data")))
    close(compiled(projected, *given)(*given), projected(x, weight, "reference"))

    def odd(query, key, value):
        arrays = [
            jax.lax.with_sharding_constraint(x * 1, NamedSharding(MESH[AxisType.Auto], P("model", None, "data")))
            for x in (query, key, value)
        ]
        return attend(*arrays, masks.Causal())

    three = [placed(x[:3], P()) for x in (QUERY, KEY, VALUE)]
    close(
        compiled(odd, *three)(*three), attend(*(x[:3] for x in (QUERY, KEY, VALUE)), masks.Causal(), kernel="reference")
    )


def transformations():
    """vmap over the batch of a gradient, a second derivative, calls without jit, donation, `in_shardings`, export."""
    arrays = [placed(x, ROWS) for x in (QUERY, KEY, VALUE, COTANGENT)]
    lengths = placed(LENGTHS, P("data"))

    def of_one(query, key, value, cotangent, lengths):
        given = (x[None] for x in (query, key, value, cotangent, lengths))
        return gradients(padded)(*given)[0]

    program = compiled(jax.vmap(of_one), *arrays, lengths)
    close([x[:, 0] for x in program(*arrays, lengths)], on_one_device(padded)[0])
    assert sent(program) == []

    def curvature(query, key, value, cotangent, lengths, kernel="blockwise"):
        of = lambda query: gradients(padded, kernel=kernel)(query, key, value, cotangent, lengths)[0][0]  # noqa: E731
        return jax.jvp(of, (query,), (query,))[1]

    program = compiled(curvature, *arrays, lengths)
    wanted = jax.jit(functools.partial(curvature, kernel="reference"))(QUERY, KEY, VALUE, COTANGENT, LENGTHS)
    close(program(*arrays, lengths), wanted)
    assert of_activations(sent(program)) == []

    got = padded(*arrays[:3], lengths)
    close(got, on_one_device(padded)[1])
    assert got.sharding.is_equivalent_to(arrays[0].sharding, 4)
    donated = jax.jit(padded, donate_argnums=3, in_shardings=(*[arrays[0].sharding] * 3, lengths.sharding))
    program = donated.lower(QUERY, KEY, VALUE, LENGTHS).compile()
    assert sent(program) == []
    exported = jax.export.export(jax.jit(padded))(*arrays[:3], lengths)
    close(jax.jit(exported.call)(*arrays[:3], lengths), on_one_device(padded)[1])


def inside_of_vmap_and_shard_map():
    """Explicit axes: those that a vmap maps over stay divided, those that a shard_map leaves are right; without jit."""
    kind = AxisType.Explicit
    arrays = [placed(x, ROWS, kind) for x in (QUERY, KEY, VALUE, COTANGENT)]
    given = (*arrays, placed(LENGTHS, P("data"), kind))

    def of_one(*given):
        return gradients(padded)(*(x[None] for x in given))[0]

    program = compiled(jax.vmap(of_one), *given, kind=kind)
    close([x[:, 0] for x in program(*given)], on_one_device(padded)[0])
    assert sent(program) == []

    def partly(*given, kernel):
        run, rows = functools.partial(padded, kernel=kernel), P("data")
        return jax.shard_map(run, mesh=MESH[kind], in_specs=rows, out_specs=rows, axis_names={"data"})(*given)

    for kernel in ("blockwise", "reference"):
        got = compiled(gradients(partly, kernel=kernel), *given, kind=kind)(*given)
        close(got, on_one_device(padded))
        assert got[1].sharding.is_equivalent_to(arrays[0].sharding, 4)
    for mask in (masks.KeyPadding(given[-1]), masks.KeyPadding(LENGTHS)):
        got = attend(*arrays[:3], masks.Causal() & mask)
        close(got, on_one_device(padded)[1])
        assert got.sharding.is_equivalent_to(arrays[0].sharding, 4)


def training_step():
    """Two layers of modules, their kernels in heads: all-reduces alone, of the layers' sums and of the gradients."""
    x = RNG.standard_normal((B, L, 32), np.float32)
    layers = [nnx.split(maskattn_jax.MultiHeadAttention(32, 8, rngs=nnx.Rngs(seed))) for seed in range(2)]
    graphs, states = zip(*layers, strict=True)

    def step(states, x, lengths, kernel="blockwise"):
        def loss(states):
            mask, y = masks.Causal() & masks.KeyPadding(lengths), x
            for graph, state in zip(graphs, states, strict=True):
                y = y + nnx.merge(graph, state)(y, mask=mask, kernel=kernel)
            return (y * y).mean()

        value, gradient = jax.value_and_grad(loss)(states)
        return value, jax.tree.map(lambda x, d: x - d, states, gradient)

    wanted = jax.jit(functools.partial(step, kernel="reference"))(states, x, LENGTHS)
    for kind in (AxisType.Auto, AxisType.Explicit):
        here = jax.tree_util.tree_map_with_path(lambda path, x, kind=kind: in_heads(path, x, kind), states)
        given = here, placed(x, P("data"), kind), placed(LENGTHS, P("data"), kind)
        program = compiled(step, *given, kind=kind)
        got = program(*given)
        close(got, wanted)
        for one, other in zip(jax.tree.leaves(got[1]), jax.tree.leaves(here), strict=True):
            assert one.sharding.is_equivalent_to(other.sharding, one.ndim), (one.sharding, other.sharding)
        found = of_activations(sent(program))
        assert found and all("all-reduce" in line for line in found), found


def in_heads(path, x, kind):
    """A parameter of a module, by its heads."""
    name = jax.tree_util.keystr(path)
    spec = P(None, "model") if "bias" not in name else P("model")
    return placed(x, spec if "out" not in name else P() if "bias" in name else P("model"), kind)


def module_of_linen():
    module, kind = maskattn_jax.linen.MultiHeadAttention(32, 8), AxisType.Explicit
    x = RNG.standard_normal((B, L, 32), np.float32)
    variables = module.init(jax.random.key(0), x[:1, :2])
    here = jax.tree_util.tree_map_with_path(lambda path, x: in_heads(path, x, kind), variables)
    given = here, placed(x, P("data"), kind)
    program = compiled(functools.partial(module.apply, kernel="blockwise"), *given, kind=kind)
    close(program(*given), module.apply(variables, x, kernel="reference"))
    assert sent(program) == [f"all-reduce f32[2,{L},32]"]


def compilation_cache():
    """A program that differs in what is static is another one, where all that XLA knows of it is an address."""
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)  # all addresses are alike
    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
    arrays = [placed(x, ROWS) for x in (QUERY, KEY, VALUE)]
    for scale, window, hit in ((2.0, 9, False), (3.0, 9, False), (2.0, 8, False), (2.0, 9, True)):
        jax.clear_caches()
        hits.clear()
        mask = masks.SlidingWindow(window, 0)
        found = jax.jit(lambda *arrays, mask=mask, scale=scale: attend(*arrays, mask, scale=scale))(*arrays)
        assert bool(hits) is hit, (scale, window, hits)
        close(found, attend(QUERY, KEY, VALUE, mask, scale=scale, kernel="reference"))


def explanations():
    """What `explain` says is gathered is what the compiled programs gather."""
    rows = [placed(x, ROWS) for x in (QUERY, KEY, VALUE)]
    assert maskattn_jax.explain(*rows, kernel="blockwise")[1].endswith("on this mesh is gathered: nothing")
    assert maskattn_jax.explain(QUERY, KEY, VALUE, kernel="blockwise")[1] == "it was asked for by name"
    for kind in (AxisType.Auto, AxisType.Explicit, "mixed"):
        spec = P("data") if kind == "mixed" else QUERIES
        queries = [placed(x, spec, kind) for x in (QUERY, KEY, VALUE)]
        _, why = maskattn_jax.explain(*queries, kernel="exact")
        assert kind == "mixed" or "keys and values along their length, over model; queries along" in why, why
    told = []
    jax.jit(lambda *arrays: told.append(maskattn_jax.explain(*arrays)[1])).lower(*rows)
    jax.shard_map(
        lambda *arrays: (told.append(maskattn_jax.explain(*arrays)[1]), arrays[0])[1],
        mesh=MESH[AxisType.Auto],
        in_specs=P("data"),
        out_specs=P("data"),
        axis_names={"data"},
    )(*rows)
    assert "XLA divides it along batch, heads and queries" in told[0] and "leaves to XLA" in told[1], told
    six = maskattn_jax.explain(placed(QUERY, P(None, None, "model")), KEY[:, :, :1], VALUE[:, :, :1])[1]
    assert six.endswith("nothing"), six


TESTS = [
    blockwise_over_automatic_axes,
    mixed_axes,
    kernels_that_xla_divides,
    every_argument,
    heads_that_devices_share,
    transformations,
    inside_of_vmap_and_shard_map,
    training_step,
    module_of_linen,
    explanations,
    compilation_cache,
]

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    kinds = {kind: (kind,) * 2 for kind in (AxisType.Auto, AxisType.Explicit)}
    kinds["mixed"] = (AxisType.Explicit, AxisType.Auto)
    MESH = {kind: jax.make_mesh((2, 4), ("data", "model"), axis_types=types) for kind, types in kinds.items()}
    each(TESTS)
