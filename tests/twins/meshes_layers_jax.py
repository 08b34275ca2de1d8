"""Run by test_multihead_meshes.py: layers with parts on a mesh of 2 x 2 virtual devices of a CPU.

Each function of TESTS is a test; with names as arguments only those run. Values are compared with those of one device,
and what is sent between devices is read from the compiled HLO.
"""

import functools
import re
from types import NoneType

import jax
import numpy as np
from flax import linen as nn, nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import maskattn_jax
import maskattn_jax.linen
from maskattn import AttentionConfig, masks, standards
from maskattn.layer import (
    Clip,
    ContinuousTable,
    Cosine,
    Disentangled,
    DynamicNTK,
    ExtraKeys,
    Gate,
    GlobalTokens,
    Norm,
    Rotary,
    T5Table,
    Temperature,
)
from maskattn.modules.parameters import parameters
from maskattn.parity.against.hurry import HURRY
from maskattn_jax._layers import paths
from maskattn_jax.cache import Cache
from tests.scripts import each
from tests.twins.meshes_jax import of_activations, sent

RNG = np.random.default_rng(3)
B, L, E = 4, 12, 16
X = RNG.standard_normal((B, L, E), np.float32)
LENGTHS = np.asarray([12, 9, 3, 7], np.int32)
GLOBALS = np.arange(B * L).reshape(B, L) % 5 == 0
MASK = masks.Causal()


def _config(**parts):
    return AttentionConfig(E, 4, **parts)


#: name -> (configuration, what a call is given beside x and lengths; arrays of batch rows are divided by them)
LAYERS = {
    "norms": (
        _config(
            rotary=Rotary(theta=100.0, width=2, pairs="interleaved"),
            qk_norm=Norm("layer", over="all", scale="per_head", bias=True),
            clip=Clip(0.9),
            gate=Gate(bias=True),
            sinks=True,
            num_kv_heads=2,
        ),
        {},
    ),
    "positions": (
        _config(
            rotary=Rotary(scaling=DynamicNTK(2.0, trained=6)),
            qk_norm=Norm(after_rotary=True),
            temperature=Temperature(0.3, 2.0),
            position_bias=T5Table(8, 6),
            gate=Gate("head", "silu"),
            num_kv_heads=1,
        ),
        {"positions": np.tile(np.arange(L), (B, 1)) * 2},
    ),
    "swin v2": (_config(cosine=Cosine(), position_bias=ContinuousTable((3, 4), hidden=8)), {}),
    "extra": (
        _config(extra_keys=ExtraKeys(zero=True), num_kv_heads=2),
        {"bias": RNG.standard_normal((4, L, L), np.float32)},
    ),
    "deberta": (_config(position_bias=Disentangled(5)), {"relative": RNG.standard_normal((10, E), np.float32)}),
    "longformer": (_config(global_tokens=GlobalTokens(), num_kv_heads=2), {"global_tokens": GLOBALS}),
}


def placed(x, spec, kind):
    return jax.device_put(x, NamedSharding(MESH[kind], spec))


def module_of(config):
    module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    shapes = {name: np.shape(x) for name, x in maskattn_jax.params.dump(module).items()}
    drawn = {
        n: (rng.standard_normal(s) * (0.3 if "kernel" in n else 0.5)).astype(np.float32) for n, s in shapes.items()
    }
    maskattn_jax.params.load(module, drawn)
    return module


def in_heads(config, state, kind):
    """The parameters of a module of NNX, or of Linen, divided along their heads."""
    axes = {path: parameters(config)[name].heads for name, (path, _) in paths(config).items()}

    def place(path, x):
        keys = tuple(key for key in re.findall(r"\['(\w+)'\]", jax.tree_util.keystr(path)) if key != "params")
        if keys[0] in ("query", "key", "value", "out"):
            axis = {"kernel": 0 if keys[0] == "out" else 1, "bias": None if keys[0] == "out" else 0}[keys[1]]
            axis = ("key" if keys[0] in ("key", "value") else "query", axis)
        else:
            axis = axes[keys]
        few = axis is not None and axis[0] == "key" and config.num_kv_heads % 2
        spec = P() if axis is None or axis[1] is None or few else P(*[None] * axis[1], "model")
        return placed(x, spec, kind)

    return jax.tree_util.tree_map_with_path(place, state)


def step(graph, config, given, state, x, lengths, more):
    """(output, gradients) of a loss."""

    def loss(state):
        module = nnx.merge(graph, state)
        mask = masks.KeyPadding(lengths)
        mask = mask & MASK if isinstance(config.position_bias, (T5Table, NoneType)) else mask
        out = module(x, mask=mask, **more, **given)
        return (out * out).sum(), out

    grads, out = jax.grad(loss, has_aux=True)(state)
    return out, grads


def close(got, wanted):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = max(1.0, float(np.abs(np.asarray(other)).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=scale * standards.value("same.gradient"))


#: Small arrays that are gathered: tables of biases; keys that are everywhere the same, as their gradients.
SMALL = {"all-gather f32[8,4]", "all-gather f32[35,4]", "all-gather f32[4,1,1,4]"}


def training_step(name):
    """Over automatic and explicit axes: values, where gradients lie, and that activations are only summed."""
    config, more = LAYERS[name]
    graph, state = nnx.split(module_of(config))
    own = functools.partial(step, graph, config, {"kernel": "blockwise"})
    wanted = jax.jit(functools.partial(step, graph, config, {"kernel": "reference"}), compiler_options=HURRY)(
        state, X, LENGTHS, more
    )
    for kind in (AxisType.Auto, AxisType.Explicit):
        here = in_heads(config, state, kind)
        rows = {n: placed(x, P("data") if x.shape[0] == B and n != "bias" else P(), kind) for n, x in more.items()}
        given = here, placed(X, P("data"), kind), placed(LENGTHS, P("data"), kind), rows
        program = compiled(own, *given, kind=kind)
        got = program(*given)
        close(got, wanted)
        for one, other in zip(jax.tree.leaves(got[1]), jax.tree.leaves(here), strict=True):
            free = kind is AxisType.Auto and config.position_bias is not None  # XLA may leave a table's gradient whole
            assert free or one.sharding.is_equivalent_to(other.sharding, one.ndim), (one.sharding, other.sharding)
        found = of_activations(sent(program))
        assert found and all("all-reduce" in line or line in SMALL for line in found), found


def compiled(function, *arguments, kind):
    with jax.set_mesh(MESH[kind]):
        return jax.jit(function, compiler_options=HURRY).lower(*arguments).compile()


def module_of_linen():
    """Parameters lie as their initialisers say, those of parts too; the module gives what that of NNX does."""
    config, kind = LAYERS["norms"][0], AxisType.Auto
    named = functools.partial(nn.with_partitioning, nn.initializers.normal(0.3))
    inits = {name: named(_names(x)) for name, x in parameters(config).items()}
    made = {"kernel_init": named((None, "model")), "bias_init": named(("model",)), "part_inits": inits}
    made |= {"out_kernel_init": named(("model", None)), "out_bias_init": named((None,))}
    module = maskattn_jax.linen.MultiHeadAttention(config, **made)
    start = functools.partial(module.init, jax.random.key(0), X[:1, :2])
    specs = nn.get_partition_spec(jax.eval_shape(start))["params"]
    learned = {name: functools.reduce(dict.get, path, specs) for name, (path, _) in paths(config).items()}
    for name, spec in learned.items():
        assert spec == P(*_names(parameters(config)[name])) != P(), (name, spec)
    shardings = nn.get_sharding(jax.eval_shape(start), MESH[kind])
    variables = nn.meta.unbox(jax.jit(start, out_shardings=shardings, compiler_options=HURRY)())
    assert variables["params"]["sinks"].sharding.spec == P("model")
    twin = module_of(config)
    loaded = maskattn_jax.params.load(module, maskattn_jax.params.dump(twin))
    given = jax.device_put(loaded, jax.tree.map(lambda x: x.sharding, variables)), placed(X, P("data"), kind)
    program = compiled(functools.partial(module.apply, kernel="blockwise", is_causal=True), *given, kind=kind)
    close(program(*given), twin(X, is_causal=True, kernel="reference"))
    found = of_activations(sent(program))
    assert all("all-reduce" in line for line in found), found


def _names(parameter):
    names = [None] * len(parameter.shape)
    if parameter.heads is not None:
        names[parameter.heads[1]] = "model"
    return tuple(names)


def shardings_of_a_call():
    """Parameters that every device has whole: `qkv_sharding` divides the heads, `out_sharding` says where the output
    lies; weights and log-sum-exp that are asked for."""
    kind, heads = AxisType.Explicit, P("data", None, "model", None)
    for name in ("norms", "extra"):
        config, more = LAYERS[name]
        graph, state = nnx.split(module_of(config))

        def call(state, x, more, given, graph=graph):
            asked = {"return_weights": True, "return_lse": True}
            return nnx.merge(graph, state)(x, is_causal=True, **asked, **given, **more)

        given = jax.tree.map(lambda x: placed(x, P(), kind), state), placed(X, P("data"), kind)
        more = jax.tree.map(lambda x: placed(x, P(), kind), more)
        own = functools.partial(call, given={"qkv_sharding": heads, "out_sharding": P("data", "model", None)})
        program = compiled(own, *given, more, kind=kind)
        found, wanted = program(*given, more), call(state, X, LAYERS[name][1], {"kernel": "reference"})
        close(found, wanted)
        assert found[0].sharding.spec == P("data", "model", None), found[0].sharding
        assert found[2].sharding.spec == P("data", None, "model"), found[2].sharding


def decoding():
    """A cache that is divided over rows and heads stays so, and nothing but sums of the output is sent."""
    for kind, rolling in ((AxisType.Auto, False), (AxisType.Explicit, True), (AxisType.Explicit, False)):
        config = LAYERS["norms"][0].replace(qk_norm=Norm())
        module, mask = module_of(config), MASK & masks.SlidingWindow(4)
        graph, state = nnx.split(module)
        wanted = jax.jit(lambda x, module=module, mask=mask: module(x, mask=mask), compiler_options=HURRY)(X)

        def step(state, x, cache, valid, graph=graph, mask=mask):
            return nnx.merge(graph, state)(x, mask=mask, cache=cache, valid=valid)

        here, cache = in_heads(config, state, kind), Cache.for_config(config, B, 5 if rolling else L, rolling=rolling)
        lie = {4: P("data", None, "model"), 1: P("data")}
        cache = jax.tree.map(lambda x, kind=kind, lie=lie: placed(x, lie[x.ndim], kind), cache)
        run, found = {}, []
        for begin, end in ((0, 4), (4, 5), (5, 6), (6, 12)):
            valid = placed(np.arange(begin, end) < LENGTHS[:, None], P("data"), kind)
            given = here, placed(X[:, begin:end], P("data"), kind), cache, valid
            if end - begin not in run:
                run[end - begin] = compiled(step, *given, kind=kind)
                assert sent(run[end - begin]) == [f"all-reduce f32[2,{end - begin},{E}]"], sent(run[end - begin])
            out, cache = run[end - begin](*given)
            found.append(np.asarray(out))
        real = (np.arange(L) < LENGTHS[:, None])[..., None]
        close(np.where(real, np.concatenate(found, 1), 0), np.where(real, wanted, 0))
        assert np.array_equal(cache.lengths, LENGTHS)
        assert cache.key.sharding.is_equivalent_to(NamedSharding(MESH[kind], lie[4]), 4), cache.key.sharding
        if kind is AxisType.Explicit:
            swapped = jax.jit(lambda cache, rows: cache.reorder(rows))(cache, np.array([1, 0, 3, 2]))
            close(swapped.key, np.asarray(cache.key)[[1, 0, 3, 2]])
            assert np.array_equal(swapped.lengths, LENGTHS[[1, 0, 3, 2]])
            assert swapped.key.sharding == cache.key.sharding, swapped.key.sharding


def _named(name):
    def test():
        training_step(name)

    test.__name__ = name
    return test


TESTS = [*map(_named, LAYERS), module_of_linen, shardings_of_a_call, decoding]

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    kinds = (AxisType.Auto, AxisType.Explicit)
    MESH = {kind: jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2) for kind in kinds}
    each(TESTS)
