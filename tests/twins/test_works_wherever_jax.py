"""Attention of the JAX twin works wherever `jax.nn.dot_product_attention` does: each mode of JAX with every kernel.

Modes: calls with nothing in them; eval_shape, jit, vmap, grad; scan and cond over masks; strict promotion of dtypes and
of ranks; debug_nans and debug_infs; x64; disable_jit; `jax.shard_map` with its checks on; `jax.export` with batch and
length left open; keys of rbg and unsafe_rbg. What a mode refuses, it refuses while tracing: there each kernel meets
all `MASKS` ("exact" those of `IN_EXACT`), with its gradients, and nothing is compiled. Where numbers are computed,
masks are spread over the kernels, and outputs are held to the oracle. `jax.nn` goes beside: what the mode itself
refuses would be no fault of ours.
"""

import contextlib
import importlib.util

import numpy as np
import pytest

from maskattn import biases, corruption, masks, standards
from maskattn.attention import KernelCannot
from maskattn.config import AttentionConfig
from maskattn.numerics import oracle, rng
from tests.frameworks import jax, jnp, linen, maskattn_jax, nnx, optional
from tests.twin import same

pytestmark = pytest.mark.hurried

jax_linen, losses = optional("maskattn_jax.linen"), optional("maskattn_jax.losses")
export, P = optional("jax.export"), optional("jax.sharding.PartitionSpec")
KERNELS = ["auto", "reference", "fused", "blockwise", "exact"]
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
RNG = np.random.default_rng(3)
B, L, H, K, D = 2, 6, 2, 1, 4
LENGTHS, IDS = np.array([6, 3], np.int32), np.array([[0, 0, 1, 1, 1, -1]] * 2, np.int32)
KEEP, PLACES = RNG.random((B, L)) < 0.6, np.array([[0, 1, 2, 0, 1, 2]] * 2, np.int32)
GRID = RNG.random((B, H, L, L)) < 0.6

#: The mask and the bias that one array (or nothing) makes.
MASKS = {
    "nothing": (None, lambda: None),
    "causal": (None, masks.Causal),
    "window": (None, lambda: masks.SlidingWindow(2, 1)),
    "lengths": (LENGTHS, masks.KeyPadding),
    "causal and lengths": (LENGTHS, lambda x: masks.Causal() & masks.KeyPadding(x)),
    "documents": (IDS, masks.Segments),
    "keys": (KEEP, masks.KeyMask),
    "queries": (KEEP, lambda x: masks.QueryMask(x) | ~masks.SlidingWindow(3)),
    "dense": (GRID, masks.Dense),
    "array": (GRID, lambda x: x),
    "prefix": (LENGTHS // 2, masks.PrefixLM),
    "moved": (LENGTHS // 3, lambda x: masks.Causal().at(x, x - 1)),
    "positions": (PLACES, lambda x: masks.Causal().with_positions(x, x)),
    "random blocks": (None, lambda: masks.RandomBlocks(0, 2, 1, 3) | masks.Causal()),
}
#: To "exact" every mask is an array, and every bias is added to the logits: these stand for all.
IN_EXACT = {"nothing", "lengths", "dense", "moved", "table"}
BIASES = {
    "added": (RNG.standard_normal((H, L, L)).astype(np.float32), lambda x: x),
    "slopes": (None, lambda: biases.ALiBi(H)),
    "table": (RNG.standard_normal((32, H)).astype(np.float32), biases.T5Buckets),
}


def made(entry, data):
    return entry[1](*([] if entry[0] is None else [data]))


def data_of(entry):
    return jnp.zeros(()) if entry[0] is None else jnp.asarray(entry[0])


def inputs(dtype="float32"):
    shapes = ((B, L, H, D), (B, L, K, D), (B, L, K, D))
    return [jnp.asarray(np.random.default_rng(4).standard_normal(shape), dtype) for shape in shapes]


def calls(kernel):
    """(name, function of query, key, value and one array, that array): all masks, biases, and options."""
    for name, entry in MASKS.items():
        if kernel == "exact" and name not in IN_EXACT:
            continue
        yield name, lambda q, k, v, x, entry=entry: attend(q, k, v, made(entry, x), kernel=kernel), data_of(entry)
    for name, entry in BIASES.items():
        if kernel == "exact" and name not in IN_EXACT:
            continue

        def biased(q, k, v, x, entry=entry):
            return attend(q, k, v, masks.Causal(), bias=made(entry, x), kernel=kernel)

        yield name, biased, data_of(entry)
    more = {"softcap": 2.0, "dropout_rate": 0.3, "dropout_key": 5}
    causal = masks.Causal()
    yield "options", lambda q, k, v, x: attend(q, k, v, causal, sinks=x, kernel=kernel, **more), jnp.zeros(H)
    yield "lse", lambda q, k, v, x: attend(q, k, v, causal, kernel=kernel, return_lse=True)[0], jnp.zeros(())


def attend(*arrays, **options):
    """Attention, or nothing where a kernel says that it cannot."""
    try:
        return maskattn_jax.attention(*arrays, **options)
    except KernelCannot as error:
        if options.get("kernel") != "fused":
            raise
        assert "dropout" in str(error) or "log-sum-exp" in str(error)
        nothing = jnp.zeros_like(arrays[0]) + sum(x.sum() for x in arrays[:3])
        return (nothing, nothing) if options.get("return_lse") else nothing


def witness(q, k, v, x):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def trace_all(kernel, around=lambda function: function, jit=lambda function: function):
    """Traces every call and its gradients; `around` wraps each before it is differentiated, `jit` before that."""
    shapes = []
    for _, function, x in [*calls(kernel), ("jax.nn", witness, jnp.zeros(()))]:
        wrapped = around(jit(function))
        loss = lambda *given, wrapped=wrapped: wrapped(*given).sum()  # noqa: E731
        shapes.append(jax.eval_shape(jax.grad(loss, (0, 1, 2)), *inputs(), x)[0].shape)
    assert set(shapes) == {(B, L, H, D)}


def held(found, mask):
    """Whether an output is the oracle's, as `standards` asks of a fast kernel."""
    mask = masks.Full() if mask is None else mask if isinstance(mask, masks.Mask) else masks.Dense(mask)
    return held_by(found, inputs(), mask.dense(L, L, B, H))


def held_by(found, arrays, dense):
    query, key, value = map(np.asarray, arrays)
    found_by = oracle.magnitudes(query, key, value, dense, d_output=np.ones_like(query), d_lse=None)
    limit = standards.tier2_limit("float32", float(found_by.output.max()), found_by.logit, L)
    return bool(np.abs(np.asarray(found) - oracle.attention(query, key, value, dense).output).max() <= limit)


def gradients_held(found, mask):
    query, key, value = map(np.asarray, inputs())
    right = oracle.backward(query, key, value, mask.dense(L, L, B, H), d_output=np.ones_like(query), d_lse=None)
    size = oracle.magnitudes(query, key, value, mask.dense(L, L, B, H), d_output=np.ones_like(query), d_lse=None)
    for name, x in zip(("query", "key", "value"), found, strict=True):
        limit = standards.tier2_limit("float32", float(getattr(size, name).max()), size.logit, L)
        if np.abs(np.asarray(x) - getattr(right, name)).max() > limit:
            return False
    return True


@contextlib.contextmanager
def modes(*contexts):
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def attend_in(kernel, name):
    """Output and gradients of one mask, computed."""
    entry = MASKS[name]

    def run(q, k, v, x):
        return maskattn_jax.attention(q, k, v, made(entry, x), kernel=kernel)

    given = (*inputs(), data_of(entry))
    return run(*given), jax.grad(lambda *given: run(*given).sum(), (0, 1, 2))(*given)


SPREAD = dict(zip(KERNELS, ("lengths", "documents", "positions", "dense", "causal and lengths"), strict=True))


@every_kernel
@pytest.mark.parametrize("shape", [(0, L, H, D), (B, 0, H, D), (B, L, 0, D)], ids=str)
def test_nothing(kernel, shape):
    heads = (H if shape[2] else 0, K if shape[2] else 0)
    q, k = jnp.ones((*shape[:2], heads[0], D)), jnp.ones((shape[0], L, heads[1], D))
    try:
        found = maskattn_jax.attention(q, k, k, masks.Causal(), kernel=kernel)
    except KernelCannot as error:
        assert kernel == "fused" and "takes no empty arrays" in str(error)
        return
    assert found.shape == shape
    if shape[2]:
        assert jax.nn.dot_product_attention(q, k, k, is_causal=True).shape == shape


@every_kernel
def test_eval_shape_grad_and_jit(kernel):
    trace_all(kernel, jit=jax.jit)


@every_kernel
def test_strict_promotion_of_dtypes_and_ranks(kernel):
    with modes(jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")):
        trace_all(kernel)
        # rules of derivatives are traced when what they are of is done
        jax.eval_shape(jax.grad(lambda *given: jax.jit(witness_of(kernel))(*given).sum()), *inputs())


@every_kernel
def test_strict_promotion_in_x64(kernel):
    with modes(jax.enable_x64(True), jax.numpy_dtype_promotion("strict")):
        trace_all(kernel)


@every_kernel
def test_shard_map_with_its_checks(kernel):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    # the query is the same everywhere: its gradient is a sum over devices
    specs = {"in_specs": (P(), P("i"), P("i"), P()), "out_specs": P("i")}
    trace_all(kernel, lambda function: jax.shard_map(function, mesh=mesh, **specs))


def witness_of(kernel):
    mask = masks.Causal() & masks.KeyPadding(jnp.asarray(LENGTHS))
    return lambda q, k, v: maskattn_jax.attention(q, k, v, mask, kernel=kernel)


@every_kernel
def test_vmap(kernel):
    stack = lambda x: jnp.stack([x, x])  # noqa: E731
    trace_all(kernel, lambda function: lambda *given: jax.vmap(function)(*map(stack, given))[1])


@every_kernel
def test_jit_and_grad_compute_what_is_right(kernel):
    name = SPREAD[kernel]
    found, gradients = jax.jit(attend_in, static_argnums=(0, 1))(kernel, name)
    mask = made(MASKS[name], MASKS[name][0])
    assert held(found, mask) and gradients_held(gradients, mask)


# "auto" takes one of the others: where every operation is compiled by itself, those stand for it.
@pytest.mark.parametrize("kernel", [pytest.param(x, marks=[pytest.mark.slow] * (x == "auto")) for x in KERNELS])
def test_debug_nans_and_infs(kernel):
    with modes(jax.debug_nans(True), jax.debug_infs(True)):
        for name in (SPREAD[kernel], "moved")[: 1 if kernel == "exact" else 2]:  # "moved" has rows that are empty
            found, _ = attend_in(kernel, name)
            assert held(found, made(MASKS[name], MASKS[name][0]))
        assert np.isfinite(witness(*inputs(), None)).all()


# The parity suite has the exact mode without jit, with gradients.
@pytest.mark.parametrize(
    "kernel", [pytest.param(x, marks=[pytest.mark.slow] * (x in ("auto", "exact"))) for x in KERNELS]
)
def test_disable_jit(kernel):
    arrays = [x[:1, :2] for x in inputs()]
    with jax.disable_jit():
        found = maskattn_jax.attention(*arrays, masks.Causal() & masks.KeyPadding(jnp.array([2])), kernel=kernel)
    dense = masks.Causal().dense(2, 2, 1, H)
    assert held_by(found, arrays, dense)


@every_kernel
def test_scan_and_cond_over_masks(kernel):
    each = [masks.Causal() & masks.KeyPadding(jnp.asarray(lengths)) for lengths in (LENGTHS, LENGTHS // 2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *each)

    def step(carry, mask):
        one = maskattn_jax.attention(*inputs(), mask, kernel=kernel)
        return carry + 1, jax.lax.cond(carry > 0, lambda: one, lambda: one * 1)

    _, found = jax.jit(lambda stacked: jax.lax.scan(step, 0, stacked))(stacked)
    for x, lengths in zip(found, (LENGTHS, LENGTHS // 2), strict=True):
        assert held(x, masks.Causal() & masks.KeyPadding(lengths))


@every_kernel
def test_float64(kernel):
    with jax.enable_x64(True):
        q, k, v = inputs("float64")
        try:
            found = jax.eval_shape(lambda x: maskattn_jax.attention(q, k, v, masks.Segments(x), kernel=kernel), IDS)
        except KernelCannot as error:
            assert kernel == "fused" and "float64" in str(error)
            return
    assert found.dtype == jnp.float64


@every_kernel
def test_export_with_batch_and_length_left_open(kernel):
    sizes = export.symbolic_shape("b, n")
    names = ["causal", SPREAD[kernel]] if kernel == "exact" else [n for n in MASKS if n != "random blocks"]
    for name in names:
        entry = MASKS[name]
        data = data_of(entry)
        open_sizes = {B: sizes[0], L: sizes[1]}
        shape = [size if size == H and i else open_sizes[size] for i, size in enumerate(data.shape)]
        arrays = [jax.ShapeDtypeStruct((*sizes, *x.shape[2:]), x.dtype) for x in inputs()]

        def run(q, k, v, x, entry=entry):
            return maskattn_jax.attention(q, k, v, made(entry, x), kernel=kernel)

        given = (*arrays, jax.ShapeDtypeStruct(shape, data.dtype))
        if kernel == "blockwise":
            with pytest.raises(KernelCannot, match="for sizes that are numbers.*: fused, reference and exact take any"):
                export.export(jax.jit(run))(*given)
            continue
        exported = export.export(jax.jit(run))(*given)
        if importlib.util.find_spec("flatbuffers"):
            exported = export.deserialize(exported.serialize())
        if name in ("causal", SPREAD[kernel]):
            assert held(exported.call(*inputs(), data), made(entry, entry[0]))


def test_export_refuses_what_only_numbers_can_say():
    sizes = export.symbolic_shape("b, n")
    query = jax.ShapeDtypeStruct((*sizes, H, D), jnp.float32)
    for options, says in [
        ({"mask": masks.RandomBlocks(0, 2, 1, 3)}, "expects kv_len of 3 blocks"),
        ({"mask": masks.Dense(GRID)}, "expects q_len 6, got n"),
        ({"mask": masks.Causal(), "empty_rows": "error"}, "cannot be checked for sizes that are left open"),
    ]:
        with pytest.raises(ValueError, match=says):
            export.export(jax.jit(lambda x, options=options: maskattn_jax.attention(x, x, x, **options)))(query)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("kernel", ["auto", "reference", "blockwise"])
def test_keys_of_rbg_drop_what_their_words_drop(kernel, impl):
    key = jax.random.fold_in(jax.random.key(3, impl=impl), 4)
    four = jax.random.key_data(key)
    drop = jax.jit(lambda key: maskattn_jax.attention(*inputs(), dropout_rate=0.4, dropout_key=key, kernel=kernel))
    expected = drop(jnp.asarray(rng.folded(np.asarray(four))))
    same(drop(key), expected)
    same(drop(four), expected)


def test_modules_under_rbg():
    x, config = jnp.ones((B, L, 4)), AttentionConfig(4, 2, dropout_rate=0.3, out_dropout_rate=0.3)
    with jax.default_prng_impl("unsafe_rbg"):
        module = maskattn_jax.MultiHeadAttention(config, rngs=nnx.Rngs(0))
        assert module(x).shape == x.shape
        for layer in (
            jax_linen.MultiHeadAttention(config, deterministic=False),
            linen.MultiHeadDotProductAttention(2, dropout_rate=0.3, deterministic=False),
        ):
            rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
            assert layer.init_with_output(rngs, x)[0].shape == x.shape


def test_modules_losses_and_corruption_under_strict_promotion():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    with modes(jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")):
        config, lengths = AttentionConfig(4, 2, dropout_rate=0.3), jnp.asarray(LENGTHS)
        layer, x = jax_linen.MultiHeadAttention(config, deterministic=False), jnp.ones((B, L, 4))

        def run(variables, kernel):
            mask = masks.Causal() & masks.KeyPadding(lengths)
            return layer.apply(variables, x, mask=mask, dropout_key=jax.random.key(1), kernel=kernel).sum()

        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = jax.eval_shape(layer.init, keys, x)
        for kernel in ("auto", "blockwise", "exact"):
            jax.eval_shape(jax.grad(lambda v, kernel=kernel: run(v, kernel)), variables)
        jax.eval_shape(jax.grad(of_losses), jnp.ones((4, 4)))
        schemes = [lambda k, t: maskattn_jax.corrupt(corruption.MLM(1, 97), k, t).tokens]
        schemes += [lambda k, t: maskattn_jax.corrupt(corruption.T5Spans(), k, t).inputs]
        schemes += [lambda k, t: maskattn_jax.corrupt(corruption.BEiT(), k, len(t)).removed]
        schemes += [lambda k, t: maskattn_jax.corrupt(corruption.IJEPA(), k, len(t)).context_ids]
        schemes += [lambda k, t: maskattn_jax.corrupt(corruption.MAE(), k, len(t), 16)[0]]
        for scheme in schemes:  # each device draws by its own key
            around = jax.shard_map(
                lambda k, t, scheme=scheme: scheme(k[0], t), mesh=mesh, in_specs=P("i"), out_specs=P("i")
            )
            jax.eval_shape(around, jnp.zeros((1, 2), jnp.uint32), jnp.ones((2, 16), jnp.int32))


def of_losses(x):
    keep, images = jnp.ones(4, bool), x.reshape(1, 4, 4, 1)
    patches = losses.patchify(images, 2)
    total = losses.cross_entropy(x, jnp.arange(4), weights=jnp.ones(4), label_smoothing=0.1)
    total += losses.masked_mean(x, keep) + losses.contrastive(x, x + 1, valid=keep)
    total += losses.mae_loss(patches, patches + 1, jnp.ones((1, 4), bool), normalize=True)
    return total + losses.simmim_loss(images, images + 1, jnp.ones((1, 2, 2), bool))


def test_what_stands_for_an_array_is_one():
    added, sinks = nnx.Param(jnp.asarray(BIASES["added"][0])), nnx.Param(jnp.ones(H))
    found = maskattn_jax.attention(*inputs(), bias=added, sinks=sinks)
    same(found, maskattn_jax.attention(*inputs(), bias=added[...], sinks=sinks[...]))
    assert maskattn_jax.explain(*inputs(), bias=added, sinks=sinks)[0] == "blockwise"


def test_the_dtype_of_a_module_without_projections():
    config, x = AttentionConfig(4, 2, project=False), jnp.ones((B, L, 4))
    module = maskattn_jax.MultiHeadAttention(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer = jax_linen.MultiHeadAttention(config, dtype=jnp.bfloat16)
    assert module(x).dtype == layer.apply({}, x).dtype == jnp.bfloat16
