"""kernel="fused": the vendors' functions with this library's masks, and what each refuses."""

import numpy as np
import pytest

from maskattn import biases, masks, standards
from maskattn.attention import Call
from maskattn.numerics import oracle
from maskattn.parity.attention import adapters, cases, run
from tests.frameworks import in_both, jax, jnp, maskattn_jax, maskattn_torch, optional, torch

fused_jax = optional("maskattn_jax.kernels.fused")
fused_splash = optional("maskattn_jax.kernels.fused.splash")

RNG = np.random.default_rng(5)


def arrays(batch, q_len, kv_len, heads, kv_heads, dim):
    sizes = ((batch, q_len, heads, dim), (batch, kv_len, kv_heads, dim), (batch, kv_len, kv_heads, dim))
    return [RNG.standard_normal(size, np.float32) for size in sizes]


def limit(given, mask, sizes):
    query, key, value = given
    dense = mask.dense(query.shape[1], key.shape[1], sizes[0], sizes[1])
    found = oracle.magnitudes(query, key, value, dense, d_output=np.ones_like(query), d_lse=None)
    length = max(query.shape[1], key.shape[1])
    right = oracle.attention(query, key, value, dense).output
    return right, standards.tier2_limit("float32", float(found.output.max()), found.logit, length)


@in_both
def test_the_cases_that_stand_for_all_hold_where_the_vendor_can_run_them():
    chosen = [case for case in cases.select(tag="smoke") if case.dtype != "float64"][::6]
    result = run.run_cases(chosen, adapters.twins("fused"), kernel="fused")
    assert not result.failures, "\n".join(result.failures)
    held = {twin: sum(o.subject == twin and o.status == "held" for o in result.outcomes) for twin in ("torch", "jax")}
    assert held["torch"] >= 5 and held["jax"] >= 5, held
    assert all(outcome.reasons for outcome in result.not_run)


@pytest.mark.parametrize(
    "mask",
    [
        masks.Full(),
        masks.Causal(128) & masks.SlidingWindow(100),
        masks.KeyPadding(np.array([200, 384])),
        masks.KeyPadding(np.array([380, 130]))
        & masks.Segments(np.repeat(np.arange(2), 128)[None], np.repeat([0, 1, -1], 128)[None]),
    ],
    ids=["full", "band", "lengths", "documents"],
)
def test_splash_attention_interpreted_is_attention(mask):
    given = arrays(2, 256, 384, 4, 2, 64)
    bound = maskattn_jax.lower.bind(mask)
    out = fused_splash.attention(Call(*map(jnp.asarray, given), bound, scale=0.125), interpret=True)
    right, most = limit(given, mask, (2, 4))
    reached = mask.dense(256, 384, 2, 4).any(-1).transpose(0, 2, 1)  # Splash gives anything elsewhere
    assert np.abs(np.asarray(out) - right)[reached].max() <= most


@pytest.mark.parametrize("mask", [masks.Causal(), masks.Causal() & masks.KeyPadding(np.array([200, 256]))], ids=repr)
def test_exported_for_a_tpu_forward_and_backward_it_calls_splash(mask, monkeypatch):
    def loss(q, k, v):
        return maskattn_jax.attention(q, k, v, mask, kernel="fused", softcap=20.0).sum()

    shapes = [jax.ShapeDtypeStruct((2, 256, heads, 64), jnp.bfloat16) for heads in (4, 2, 2)]
    monkeypatch.setattr(fused_jax, "platform", lambda *_: "tpu")
    text = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["tpu"])(*shapes).mlir_module()
    assert text.count("tpu_custom_call") >= 3  # forward, dQ, dK and dV
    assert "4x256x256" not in text  # the scores are never an array


def test_splash_says_what_it_cannot_express(monkeypatch):
    monkeypatch.setattr(fused_jax, "platform", lambda *_: "tpu")
    q, k, v = map(jnp.asarray, arrays(2, 130, 128, 2, 2, 8))
    ids = np.zeros((2, 130), np.int32), np.zeros((2, 128), np.int32)
    mask = masks.Segments(*ids) & masks.Segments(ids[0], ids[1] + 1)
    with pytest.raises(ValueError) as caught:
        maskattn_jax.attention(q, k, v, mask, bias=biases.ALiBi(2), kernel="fused", return_lse=True)
    for part in ("multiples of 128, got query 130", "no bias", "several Segments", "return_lse"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="traced|differs between batch rows"):
        maskattn_jax.attention(k, k, k, masks.QueryMask(np.ones((2, 128), bool)), kernel="fused")


@pytest.mark.parametrize("attend", [maskattn_jax.attention, maskattn_torch.attention], ids=["jax", "torch"])
def test_what_the_vendors_lack_is_refused_by_name(attend):
    make = jnp.asarray if attend is maskattn_jax.attention else torch.as_tensor
    q, k, v = map(make, arrays(1, 3, 4, 2, 2, 8))
    options = {"softcap": 1.0, "empty_rows": "mean", "dropout_rate": 0.5, "dropout_key": 1, "return_lse": True}
    with pytest.raises(ValueError) as caught:
        attend(q, k, v, sinks=make(np.zeros(2, np.float32)), kernel="fused", **options)
    for part in ("softcap", "sinks", 'empty_rows="mean"', "dropout", "return_lse"):
        assert part in str(caught.value)
    if attend is maskattn_jax.attention:
        with pytest.raises(ValueError, match="empty"):
            attend(q[:, :0], k, v, kernel="fused")


@pytest.mark.parametrize("attend", [maskattn_jax.attention, maskattn_torch.attention], ids=["jax", "torch"])
@pytest.mark.parametrize("mask", [None, masks.Full(), masks.Causal()], ids=repr)
def test_an_array_as_bias_beside_any_mask(attend, mask):
    given, added = arrays(2, 6, 6, 2, 1, 8), RNG.standard_normal((1, 2, 6, 6), np.float32)
    added[..., 3, 4:] = -np.inf
    make = jnp.asarray if attend is maskattn_jax.attention else torch.as_tensor
    out = attend(*map(make, given), mask, bias=make(added), kernel="fused")
    dense = np.broadcast_to((masks.Full() if mask is None else mask).dense(6, 6, 2, 2), (2, 2, 6, 6))
    right = oracle.attention(*given, dense, bias=added).output
    found = oracle.magnitudes(*given, dense, bias=added, d_output=np.ones_like(right), d_lse=None)
    most = standards.tier2_limit("float32", float(found.output.max()), found.logit, 6)
    assert np.abs(np.asarray(out) - right).max() <= most


def test_bfloat16_is_no_worse_than_twice_the_vendors_own_error():
    given = arrays(2, 33, 47, 4, 2, 16)
    mask = masks.Causal(14) & masks.KeyPadding(np.array([40, 47]))
    dense = mask.dense(33, 47, 2, 1)
    wide = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in given]
    right = oracle.attention(*wide, np.broadcast_to(dense, (2, 4, 33, 47))).output
    in_jax = [jnp.asarray(x, jnp.bfloat16) for x in given]
    in_torch = [torch.as_tensor(x).bfloat16() for x in given]
    heads_first = [x.transpose(1, 2) for x in in_torch]
    vendor = {
        "jax": jax.nn.dot_product_attention(*in_jax, mask=dense),
        "torch": torch.nn.functional.scaled_dot_product_attention(
            *heads_first, attn_mask=torch.as_tensor(dense), enable_gqa=True
        ).transpose(1, 2),
    }
    ours = {
        "jax": maskattn_jax.attention(*in_jax, mask, kernel="fused"),
        "torch": maskattn_torch.attention(*in_torch, mask, kernel="fused"),
    }
    for twin, theirs in vendor.items():
        error, own = (
            np.abs(np.asarray(x.float() if twin == "torch" else x, np.float64) - right).max()
            for x in (ours[twin], theirs)
        )
        assert 0 < error <= 2 * own


def test_pytorchs_own_empty_rows_are_zero_on_the_cpu():
    """What `fused` relies on there, for each of its implementations."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    keep = torch.ones(5, 7, dtype=torch.bool)
    keep[2] = False
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        q, k, v = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (5, 7, 7))
        with sdpa_kernel(backend):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
            (grad,) = torch.autograd.grad(out.sum(), q)
        assert (out[:, :, 2] == 0).all() and (grad[:, :, 2] == 0).all()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's own, of its own function under vmap
def test_compiled_and_vmapped_it_gives_what_it_gives_in_eager_mode():
    q, k, v = (torch.as_tensor(x) for x in arrays(2, 9, 9, 2, 1, 8))
    lengths = torch.tensor([4, 9])
    k[0, 4:] = torch.nan

    def attend(q, k, v, lengths):
        return maskattn_torch.attention(q, k, v, masks.Causal() & masks.KeyPadding(lengths), kernel="fused")

    eager = attend(q, k, v, lengths)
    assert torch.isfinite(eager).all()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)(q, k, v, lengths)
    torch.testing.assert_close(compiled, eager, rtol=0, atol=standards.value("same.compiled"))
    stacked = torch.func.vmap(lambda q, k, v, n: attend(q[None], k[None], v[None], n[None])[0])(q, k, v, lengths)
    torch.testing.assert_close(stacked, eager, rtol=0, atol=standards.value("same.compiled"))


@pytest.mark.torch
def test_a_bool_array_goes_to_blockwise_only_where_its_tiles_are_empty():
    q, k, v = torch.zeros(3, 1, 1024, 4, 64)
    at = torch.arange(1024)
    window = (at[:, None] - at).abs() <= 32
    noise = torch.from_numpy(np.random.default_rng(0).random((4, 1024, 1024)) < 0.5)
    for mask, kernel in ((window, "blockwise"), (noise, "fused"), (masks.Dense(noise) & masks.Causal(3), "fused")):
        assert maskattn_torch.explain(q, k, v, mask)[0] == kernel
    assert maskattn_torch.explain(q, k, v, masks.Dense(window) & masks.Causal(3))[0] == "blockwise"
