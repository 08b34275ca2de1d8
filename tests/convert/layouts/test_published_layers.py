"""Layers of timm, Swin's authors and Meta, whose code is not at hand: computed from what is stored, as papers say.

And PyTorch's and Flax's modules with what they hold beside projections.
"""

import numpy as np

from maskattn import biases, convert_tensors
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.layouts._buffers import position_index
from tests.convert.layouts.float64_layer import angles, layer, share
from tests.convert.layouts.layout_cases import extra_shapes
from tests.frameworks import jnp, nnx, torch

CONFIG = AttentionConfig(35, 5)
X = np.random.default_rng(7).standard_normal((2, 9, 35)).astype(np.float32)
ALL = np.ones((2, 1, 9, 9), bool)


def drawn(layout, config=CONFIG, *, every=False, seed=0):
    draw = np.random.default_rng(seed)
    shapes = layouts.get(layout).shapes(config, extra_shapes(layout, config, every=every))
    return {name: (draw.standard_normal(shape) / 6).astype(np.float32) for name, shape in shapes.items()}


def converted(tensors, source, target="canonical", config=CONFIG):
    return convert_tensors(tensors, source=source, target=target, config=config)


def attended(tensors, bias, *, qkv_bias, norm=lambda q, k: (q, k)):
    """qkv(x) as (3, H, D), scores + bias, proj: in float32, as a module of PyTorch computes."""
    t = {name: torch.from_numpy(array) for name, array in tensors.items() if array.dtype == np.float32}
    fused = torch.nn.functional.linear(torch.from_numpy(X), t["qkv.weight"], qkv_bias(t))
    q, k, v = fused.reshape(2, 9, 3, 5, 7).permute(2, 0, 3, 1, 4)
    q, k = norm(q, k)
    heads = torch.softmax(q @ k.transpose(-2, -1) + bias, dim=-1) @ v
    joined = heads.transpose(1, 2).reshape(2, 9, 35)
    if "norm.weight" in t:
        joined = torch.nn.functional.layer_norm(joined, (35,), t["norm.weight"], t["norm.bias"])
    return torch.nn.functional.linear(joined, t["proj.weight"], t["proj.bias"]).numpy()


def judge(output, canonical, **options):
    right = layer(X, canonical, ALL, **options)
    assert share(output, right, X, canonical, ALL, bias=options.get("bias")) <= 1
    exchanged = canonical | {"query.kernel": canonical["value.kernel"], "value.kernel": canonical["query.kernel"]}
    assert share(output, layer(X, exchanged, ALL, **options), X, canonical, ALL, bias=options.get("bias")) > 100


def test_timm_with_norms_of_queries_keys_and_heads():
    tensors = drawn("timm", every=("query_norm", "key_norm", "norm"))

    def norm(q, k):
        q, k = (
            torch.nn.functional.layer_norm(
                part, (7,), *(torch.from_numpy(tensors[f"{n}_norm.{p}"]) for p in ("weight", "bias"))
            )
            for n, part in (("q", q), ("k", k))
        )
        return q * 7**-0.5, k

    output = attended(tensors, 0, qkv_bias=lambda t: t["qkv.bias"], norm=norm)
    judge(output, converted(tensors, "timm"), norm=("layer", 1e-5))


def test_swin_of_its_authors():
    tensors = drawn("timm-swin")
    tensors["relative_position_bias_table"] = np.random.default_rng(1).standard_normal((25, 5)).astype(np.float32)
    tensors["relative_position_index"] = position_index(3, 3)
    rows = tensors["relative_position_bias_table"][tensors["relative_position_index"].reshape(-1)]
    bias = torch.from_numpy(rows.reshape(9, 9, 5).transpose(2, 0, 1).copy())
    output = attended(tensors, bias, qkv_bias=lambda t: t["qkv.bias"], norm=lambda q, k: (q * 7**-0.5, k))
    canonical = converted(tensors, "swin")
    table = biases.RelativeTable(canonical["relative_position_bias.table"], window=(3, 3))
    index = np.ix_([0], range(5), range(9), range(9))
    judge(output, canonical, bias=np.asarray(table.values(*index), np.float64))
    assert layouts.detect(tensors).layout == "swin"
    without = {name: array for name, array in tensors.items() if "index" not in name}
    assert layouts.detect(without).layout == "timm-swin"


def test_swin_v2_of_its_authors():
    tensors = drawn("swin-v2")
    offsets = np.random.default_rng(2).standard_normal((9, 9, 2)).astype(np.float32)
    t = {name: torch.from_numpy(array) for name, array in tensors.items()}
    hidden = torch.relu(
        torch.nn.functional.linear(torch.from_numpy(offsets), t["cpb_mlp.0.weight"], t["cpb_mlp.0.bias"])
    )
    bias = 16 * torch.sigmoid(torch.nn.functional.linear(hidden, t["cpb_mlp.2.weight"])).permute(2, 0, 1)

    def cosine(q, k):
        q, k = (torch.nn.functional.normalize(part, dim=-1) for part in (q, k))
        return q * t["logit_scale"].clamp(max=np.log(100.0)).exp(), k

    fused = lambda t: torch.cat([t["q_bias"], torch.zeros_like(t["q_bias"]), t["v_bias"]])  # noqa: E731
    output = attended(tensors, bias, qkv_bias=fused, norm=cosine)
    w = {name: array.astype(np.float64) for name, array in converted(tensors, "swin-v2").items()}
    hidden = np.maximum(offsets @ w["cpb_mlp.0.kernel"] + w["cpb_mlp.0.bias"], 0)
    right = 16 / (1 + np.exp(-hidden @ w["cpb_mlp.2.kernel"])).transpose(2, 0, 1)
    judge(output, converted(tensors, "swin-v2"), bias=right[None], cosine=True)


def test_meta_llama_turns_neighbouring_numbers():
    """Pairs (0, 1), (2, 3), ... as complex numbers, times exp(i angle)."""
    config = AttentionConfig(66, 6, num_kv_heads=2, head_dim=12, qkv_bias=False, out_bias=False)
    tensors = drawn("meta-llama", config)
    x = np.random.default_rng(3).standard_normal((2, 9, 66)).astype(np.float32)
    causal = np.broadcast_to(np.tril(np.ones((9, 9), bool)), (2, 1, 9, 9))
    cos, sin = angles(9, 12)
    turn = torch.complex(torch.from_numpy(cos), torch.from_numpy(sin)).to(torch.complex64)[:, None]
    q, k, v = (
        (torch.from_numpy(x) @ torch.from_numpy(tensors[f"{name}.weight"]).T).reshape(2, 9, -1, 12)
        for name in ("wq", "wk", "wv")
    )
    q, k = (torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (6, 2))) * turn).flatten(-2) for part in (q, k))
    k, v = (part.repeat_interleave(3, dim=2) for part in (k, v))
    scores = torch.einsum("blhd,bshd->bhls", q, k) * 12**-0.5
    weights = torch.softmax(scores.masked_fill(~torch.from_numpy(causal.copy()), -torch.inf), dim=-1)
    joined = torch.einsum("bhls,bshd->blhd", weights, v).flatten(-2)
    output = (joined @ torch.from_numpy(tensors["wo.weight"]).T).numpy()

    def judged(canonical):
        return share(output, layer(x, canonical, causal, rotary=(cos, sin)), x, canonical, causal)

    canonical = converted(tensors, "meta-llama", config=config)
    assert judged(canonical) <= 1
    renamed = {f"{name[1]}_proj.weight": array for name, array in tensors.items()}
    assert judged(converted(renamed, "hf-llama", config=config)) > 100
    # The key cut into H heads and not K: the mistake of https://github.com/ggml-org/llama.cpp/issues/3364.
    right = converted(canonical, "canonical", "hf-llama", config)
    key = tensors["wk.weight"]
    assert right["k_proj.weight"].tobytes() == key.reshape(2, 6, 2, 66).swapaxes(1, 2).tobytes()
    cut = right | {"k_proj.weight": key.reshape(6, 2, 2, 66).swapaxes(1, 2).reshape(key.shape)}
    assert judged(converted(cut, "hf-llama", config=config)) > 100


def test_torch_mha_with_one_more_key_and_value():
    tensors = drawn("torch-mha", every=True)
    module = torch.nn.MultiheadAttention(35, 5, add_bias_kv=True, batch_first=True).eval()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True)
    with torch.no_grad():
        output = module(*[torch.from_numpy(X)] * 3, need_weights=False)[0]
    judge(output.numpy(), converted(tensors, "torch-mha"))


def test_flax_with_norms_of_queries_and_keys():
    tensors = drawn("flax-nnx", every=("query_norm.scale", "key_norm.scale"))
    module = nnx.MultiHeadAttention(5, 35, decode=False, normalize_qk=True, precision="highest", rngs=nnx.Rngs(0))
    for path, leaf in nnx.iter_graph(module):
        if isinstance(leaf, nnx.Param):
            leaf.set_value(jnp.asarray(tensors[".".join(map(str, path))]))
    judge(np.asarray(module(jnp.asarray(X))), converted(tensors, "flax-nnx"), norm=("layer", 1e-6))
