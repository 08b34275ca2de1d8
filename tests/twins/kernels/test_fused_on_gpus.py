"""kernel="fused" and "auto" in JAX as on a GPU: what JAX's own checks for cuDNN say, and what is lowered for CUDA.

No GPU is needed: the checks run while a function is traced, its gradient included.
"""

import numpy as np
import pytest

from maskattn import biases, masks
from maskattn.parity.attention import cases
from tests.frameworks import jax, jnp, maskattn_jax, optional

platforms = optional("maskattn_jax._platform")
cudnn = optional("maskattn_jax.kernels.fused.cudnn")
checks = optional("jax._src.cudnn.fused_attention_stablehlo")

pytestmark = pytest.mark.jax
RNG = np.random.default_rng(3)
B, H, K = 2, 4, 2


@pytest.fixture(autouse=True)
def on_a_hopper(monkeypatch):
    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(checks, "check_compute_capability", lambda capability: float(capability) <= 9)
    monkeypatch.setattr(checks, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
    with platforms.assumed("gpu"):
        yield


def operands(q_len, kv_len, width=16, v_width=None, dtype="bfloat16"):
    sizes = ((q_len, H, width), (kv_len, K, width), (kv_len, K, v_width or width))
    return [jax.ShapeDtypeStruct((B, *size), jnp.dtype(dtype)) for size in sizes]


def gradient(mask, given, *, bias=None, kernel="fused", **options):
    """The gradient's jaxpr, as text: JAX's checks are made on the way."""
    sharp = () if bias is None else (3,)

    def loss(query, key, value, *added):
        bias_ = bias if not added or not hasattr(bias, "dtype") else added[0]
        return maskattn_jax.attention(query, key, value, mask, bias=bias_, kernel=kernel, **options).astype(float).sum()

    given = [*given, *([bias] if hasattr(bias, "dtype") else [])]
    sharp = tuple(range(len(given)))
    return str(jax.make_jaxpr(jax.grad(loss, sharp))(*given))


def is_cudnn(text):
    return "dot_product_attention_bwd" in text


MASKS = {
    "none": None,
    "causal": masks.Causal(),
    "window": masks.SlidingWindow(5, 0),
    "window to the right": masks.SlidingWindow(5, 2),
    "window of the future": masks.SlidingWindow(None, 3),
    "shifted": masks.Causal(4),
    "end-aligned, one query": masks.Causal(46),
    "lengths": masks.KeyPadding(np.array([3, 40])),
    "causal lengths": masks.Causal() & masks.KeyPadding(np.array([3, 40])),
    "holes": masks.KeyMask(RNG.random((B, 47)) < 0.5),
    "rows": masks.QueryMask(RNG.random((B, 33)) < 0.5),
    "heads": masks.PerHead((masks.Causal(), masks.Full(), masks.Chunked(4), masks.Causal())),
    "documents": masks.Segments(np.sort(RNG.integers(0, 4, (B, 33))), np.sort(RNG.integers(0, 4, (B, 47)))),
    "array": masks.Dense(RNG.random((1, 1, 33, 47)) < 0.5),
}


@pytest.mark.parametrize("name", MASKS)
def test_cudnn_takes_every_mask_at_odd_lengths(name):
    assert is_cudnn(gradient(MASKS[name], operands(33, 47)))


@pytest.mark.parametrize("width", [5, 80, 129, 256])
def test_cudnn_takes_every_head_size(width):
    assert is_cudnn(gradient(MASKS["documents"], operands(33, 47, width)))


def test_cudnn_takes_values_of_another_width_and_a_bias_with_a_gradient():
    assert is_cudnn(gradient(None, operands(33, 47, 24, 40)))
    bias = jnp.asarray(RNG.standard_normal((1, H, 33, 47)), jnp.bfloat16)
    assert is_cudnn(gradient(masks.Causal(), operands(33, 47), bias=bias))


def test_what_cudnn_cannot_take_goes_to_xla():
    wide = jnp.asarray(RNG.standard_normal((1, H, 33, 47)), jnp.float32)
    assert not is_cudnn(gradient(None, operands(33, 47), bias=wide))  # it would be rounded
    assert not is_cudnn(gradient(None, operands(33, 47, 264)))
    assert not is_cudnn(gradient(None, operands(33, 47, dtype="float32")))


def test_every_case_of_the_suite_is_traced_or_refused_by_name():
    """When they first met a GPU, 41 of 97 raised an error of cuDNN's."""
    traced = 0
    for case in cases.select("*/float32/*")[::3]:
        if case.config is not None or case.empty_rows == "error":
            continue
        s, options = case.shape, {"empty_rows": case.empty_rows, "softcap": case.softcap}
        sizes = (
            (s.q_len, s.heads, s.head_dim),
            (s.kv_len, s.kv_heads, s.head_dim),
            (s.kv_len, s.kv_heads, s.v_head_dim),
        )
        given = [jax.ShapeDtypeStruct((s.batch, *size), jnp.bfloat16) for size in sizes]
        bias = jnp.zeros(s.scores, jnp.bfloat16) if isinstance(case.bias, str) else case.bias
        try:
            gradient(case.mask, given, bias=bias, **options)
        except ValueError as refusal:
            assert 'kernel="fused"' in str(refusal), case
        else:
            traced += 1
    assert traced > 40


@pytest.mark.parametrize(
    ("mask", "options", "chosen"),
    [
        (None, {}, "fused"),
        (masks.Causal(), {}, "fused"),
        (masks.SlidingWindow(255, 0), {}, "fused"),
        (masks.Causal() & masks.KeyPadding(np.array([700, 1024])), {}, "fused"),
        (masks.Causal() & masks.Segments(np.arange(1024)[None] // 100), {}, "blockwise"),
        (masks.SlidingWindow(20, 20), {}, "blockwise"),
        (masks.Causal(), {"softcap": 20.0}, "blockwise"),
        (masks.Causal(), {"return_lse": True}, "blockwise"),
        (masks.Causal(), {"dropout_rate": 0.5, "dropout_key": 1}, "blockwise"),
        (masks.Causal(), {"bias": biases.ALiBi(H)}, "blockwise"),
    ],
    ids=str,
)
def test_auto_takes_cudnn_where_it_has_words_and_tiles_elsewhere(mask, options, chosen):
    given = [jnp.zeros((B, 1024, heads, 16), jnp.bfloat16) for heads in (H, K, K)]
    assert maskattn_jax.explain(*given, mask, **options)[0] == chosen
    wide = [x.astype(jnp.float32) for x in given]
    assert maskattn_jax.explain(*wide, mask, **options)[0] == "blockwise"


def test_where_there_is_no_tile_kernel_few_scores_are_made_and_many_are_not():
    def chosen(length, width, dtype):
        given = [jax.ShapeDtypeStruct((1, length, 2, width), dtype)] * 3
        found = []
        jax.eval_shape(lambda *x: found.extend(maskattn_jax.explain(*x, masks.Causal())), *given)
        return found

    with jax.enable_x64(True):
        assert chosen(1024, 16, jnp.float64)[0] == "reference"
        assert chosen(16384, 16, jnp.float64)[0] == "blockwise"
    assert chosen(1024, 288, jnp.bfloat16)[0] == "fused"
    kernel, why = chosen(32768, 288, jnp.bfloat16)
    assert kernel == "blockwise" and "loops of XLA" in why and "288" in why


def test_arrays_that_lie_as_cudnn_cannot_take_them_are_left_to_tiles():
    mesh = jax.sharding.AbstractMesh((2, 2), ("d", "s"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    alike = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d", None, "s"))
    along = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d", "s"))
    found = []
    for query, key in ((alike, alike), (along, along), (alike, along)):
        given = [jax.ShapeDtypeStruct((B, 1024, K, 16), jnp.bfloat16, sharding=x) for x in (query, key, key)]
        jax.eval_shape(lambda *x: found.append(maskattn_jax.explain(*x, masks.Causal())[0]), *given)
    # over automatic axes it is not known how they lie
    mesh = jax.sharding.AbstractMesh((2, 2), ("d", "s"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    auto = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    unknown = [jax.ShapeDtypeStruct((B, 1024, K, 16), jnp.bfloat16, sharding=auto)] * 3
    jax.eval_shape(lambda *x: found.append(maskattn_jax.explain(*x, masks.Causal())[0]), *unknown)
    assert found == ["fused", "blockwise", "blockwise", "blockwise"]
    with pytest.raises(ValueError, match="divided alike"):
        jax.eval_shape(lambda *x: maskattn_jax.attention(*x, kernel="fused"), *given)


def test_where_cudnn_has_words_no_array_of_all_pairs_is_made():
    given = operands(513, 770)
    for mask in (masks.Causal(), masks.SlidingWindow(30, 0), masks.Causal() & masks.KeyPadding(np.array([700, 768]))):
        text = gradient(mask, given, kernel="auto")
        assert is_cudnn(text) and "513,770" not in text and "513,768" not in text


def test_lowered_for_cuda_the_calls_are_cudnns():
    def loss(query, key, value):
        return maskattn_jax.attention(query, key, value, masks.Causal(), kernel="fused").astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*operands(64, 64))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn$fmhaSoftmax" in text and "cudnn$fmhaSoftmaxBackward" in text


@pytest.mark.parametrize(
    "mask", [masks.Causal(), masks.Causal(2), masks.SlidingWindow(3, 0), masks.SlidingWindow(3, 1)]
)
@pytest.mark.parametrize(("q_len", "kv_len"), [(7, 11), (11, 7), (5, 5)])
def test_what_words_say_is_reached_as_the_dense_mask_has_it(mask, q_len, kv_len):
    words = optional("maskattn_jax.lower.words")
    lengths = masks.KeyPadding(np.array([0, 3])), masks.QueryMask(np.arange(q_len) < np.array([[2], [q_len]]))
    whole = mask & lengths[0] & lengths[1]
    rows, keys = words.reached(words.in_words(whole), (2, 1, q_len, kv_len))
    dense = whole.dense(q_len, kv_len, 2, 1)
    np.testing.assert_array_equal(np.broadcast_to(rows, (2, 1, q_len)), dense.any(-1))
    np.testing.assert_array_equal(np.broadcast_to(keys, (2, 1, kv_len)), dense.any(-2))
