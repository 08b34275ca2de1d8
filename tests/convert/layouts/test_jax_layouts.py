"""Weights in the layouts of JAX's libraries compute what those libraries compute.

Equinox and Flax are installed; the others' modules, which do not run with today's JAX, are written out as their
sources have them: FlaxBert and FlaxGPT2 (transformers 4, models/*/modeling_flax_*.py), alpa (alpa/model/bert_model.py),
MaxText (layers/attentions.py, layers/embeddings.py), Levanter (models/llama.py).
"""

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskattn import convert_tensors
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from tests.convert.layouts.layout_cases import CONFIGS, tensors_for
from tests.convert.layouts.peer_cases import ALLOWED, PLAIN, WIDE, attend, converted, heads, inputs_of, judge
from tests.twin import same_tensors


@pytest.mark.parametrize("config", [WIDE, CONFIGS["no biases"]], ids=["every width its own", "no biases"])
def test_equinox(config):
    canonical, tensors = converted("equinox", config)
    sizes = {"key_size": config.kdim, "value_size": config.vdim, "output_size": config.out_dim}
    sizes |= {"qk_size": config.head_dim, "vo_size": config.v_head_dim}
    flags = {f"use_{role}_bias": config.qkv_bias for role in ("query", "key", "value", "output")}
    key = jax.random.key(0)
    module = equinox.nn.MultiheadAttention(config.num_heads, config.embed_dim, **sizes, **flags, key=key)
    arrays, rest = equinox.partition(module, equinox.is_array)
    paths = [
        jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in jax.tree_util.tree_leaves_with_path(arrays)
    ]
    assert {p: leaf.shape for p, leaf in zip(paths, jax.tree.leaves(arrays), strict=True)} == {
        name: array.shape for name, array in tensors.items()
    }
    filled = jax.tree.unflatten(jax.tree.structure(arrays), [jnp.asarray(tensors[path]) for path in paths])
    module = equinox.combine(filled, rest)
    x = inputs_of(config)
    run = jax.jit(jax.vmap(lambda query, key, value, mask: module(query, key, value, mask=mask)))
    with jax.default_matmul_precision("highest"):
        output = run(*x, np.broadcast_to(ALLOWED[:, 0], (2, 11, 11)))
    judge(output, canonical, config, x)
    assert layouts.detect(tensors, config).layout == "equinox"


@pytest.mark.parametrize("layout", ["haliax", "levanter"])
def test_haliax_with_named_axes(layout):
    """Levanter contracts named axes: embed, head_size; heads are kv_heads and q_heads_per_group flattened."""
    config = AttentionConfig(30, 6, num_kv_heads=2, head_dim=7, out_dim=11)
    canonical, tensors = converted(layout, config)
    axes = {"q_proj": ("e", "kgd"), "k_proj": ("e", "kd"), "v_proj": ("e", "kd"), "o_proj": ("hd", "o")}
    sizes = {"e": 30, "k": 2, "g": 3, "d": 7, "h": 6, "o": 11}
    x = inputs_of(config)[:1] * 3

    def linear(x, name, lead):
        inside, outside = axes[name]
        weight = outside + inside if layout == "levanter" else inside + outside
        assert tensors[f"{name}.weight"].shape == tuple(sizes[a] for a in weight)
        assert tensors[f"{name}.bias"].shape == tuple(sizes[a] for a in outside)
        return (
            np.einsum(f"{lead}{inside},{weight}->{lead}{outside}", x, tensors[f"{name}.weight"])
            + tensors[f"{name}.bias"]
        )

    q, k, v = (linear(x[0].astype(np.float64), name, "bl") for name in ("q_proj", "k_proj", "v_proj"))
    scores = np.where(ALLOWED[:, None], np.einsum("blkgd,bskd->bkgls", q, k) * 7**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bkgls,bskd->blkgd", weights, v).reshape(2, 11, 6, 7)
    judge(linear(out, "o_proj", "bl"), canonical, config, x)
    assert layouts.detect(tensors).layout == layout
    assert layouts.get(layout).infer(tensors, None, None).num_kv_heads == 2


def dense(x, tensors, name):
    return x @ tensors[f"{name}/kernel"].astype(np.float64) + tensors[f"{name}/bias"]


def test_flax_bert():
    canonical, tensors = converted("flax-bert", PLAIN)
    x = inputs_of(PLAIN)[:1] * 3
    for name, params in (("self/query", 35), ("output/dense", 35)):
        shapes = jax.eval_shape(nn.Dense(params).init, jax.random.key(0), x[0])["params"]
        assert {part: leaf.shape for part, leaf in shapes.items()} == {
            part: tensors[f"{name}/{part}"].shape for part in ("kernel", "bias")
        }
    q, k, v = (heads(dense(x[0], tensors, f"self/{role}"), 5) for role in ("query", "key", "value"))
    judge(dense(attend(q, k, v), tensors, "output/dense"), canonical, PLAIN, x)
    block = {f"encoder/layer/3/attention/{n}": a for n, a in tensors.items()}
    norm = {"encoder/layer/3/attention/output/LayerNorm/scale": np.ones(35, np.float32)}
    assert layouts.detect(block | norm, PLAIN).layout == "flax-bert"
    there = convert_tensors(block | norm, source="auto", target="hf-bert", config=PLAIN, others="drop")
    assert (there["encoder.layer.3.attention.self.key.weight"] == tensors["self/key/kernel"].T).all()


def conv1d(x, tensors, name):
    return x @ tensors[f"{name}/kernel"].astype(np.float64).T + tensors[f"{name}/bias"]


def test_flax_gpt2():
    canonical, tensors = converted("flax-gpt2", PLAIN)
    x = inputs_of(PLAIN)[:1] * 3
    q, k, v = (heads(part, 5) for part in np.split(conv1d(x[0], tensors, "c_attn"), 3, axis=-1))
    judge(conv1d(attend(q, k, v), tensors, "c_proj"), canonical, PLAIN, x)
    assert layouts.detect({f"h/0/attn/{n}": a for n, a in tensors.items()}).layout == "flax-gpt2"
    there = convert_tensors(tensors, source="flax-gpt2", target="hf-gpt2", config=PLAIN)
    assert (there["c_attn.weight"] == tensors["c_attn/kernel"].T).all()

    canonical, tensors = converted("flax-gpt2-cross", PLAIN)
    x = [x[0], *[inputs_of(PLAIN)[1]] * 2]
    k, v = (heads(part, 5) for part in np.split(conv1d(x[1], tensors, "c_attn"), 2, axis=-1))
    q = heads(conv1d(x[0], tensors, "q_attn"), 5)
    judge(conv1d(attend(q, k, v), tensors, "c_proj"), canonical, PLAIN, x)
    assert layouts.detect({f"h/0/crossattention/{n}": a for n, a in tensors.items()}).layout == "flax-gpt2-cross"


@pytest.mark.parametrize("order", ["qvk", "qkv"])
def test_alpa(order):
    canonical, tensors = converted("alpa", PLAIN)
    x = inputs_of(PLAIN)[:1] * 3
    combined = dense(x[0], tensors, "self/qvk_combined")
    combined = combined.reshape(*combined.shape[:2], -1, 3)
    q, k, v = (heads(combined[..., order.index(letter)], 5) for letter in "qkv")
    judge(dense(attend(q, k, v), tensors, "output/dense"), canonical, PLAIN, x, fault=order == "qkv")
    assert layouts.detect(tensors).layout == "alpa"


def test_the_original_vision_transformer():
    prefix = "Transformer/encoderblock_7/"
    tensors = tensors_for("vit-npz", PLAIN, prefix=f"{prefix}MultiHeadDotProductAttention_1/")
    assert f"{prefix}MultiHeadDotProductAttention_1/out/kernel" in tensors
    rest = {f"{prefix}{name}": np.ones(35, np.float32) for name in ("LayerNorm_0/scale", "MlpBlock_3/Dense_0/bias")}
    there = convert_tensors(tensors | rest, source="vit-npz", target="timm", config=PLAIN, others="keep")
    moved = {
        f"Transformer.encoderblock_7.MultiHeadDotProductAttention_1.{n}" for n in layouts.get("timm").shapes(PLAIN)
    }
    assert there.keys() == moved | rest.keys()
    given = {n: there[n] for n in moved}
    same_tensors(convert_tensors(given, source="timm", target="vit-npz", config=PLAIN), tensors)
    assert layouts.detect(tensors).layout == "flax-linen"


@pytest.mark.parametrize("separator", ["/", "."])
def test_flax_norms_of_query_and_key(separator):
    options = {"num_heads": 5, "qkv_features": 35, "normalize_qk": True}
    if separator == "/":
        held = jax.eval_shape(nn.MultiHeadDotProductAttention(**options).init, jax.random.key(0), inputs_of(PLAIN)[0])
        shapes = layouts.flatten(jax.tree.map(lambda leaf: leaf.shape, held["params"]))
    else:
        module = nnx.eval_shape(
            lambda: nnx.MultiHeadAttention(**options, in_features=35, decode=False, rngs=nnx.Rngs(0))
        )
        state = nnx.to_flat_state(nnx.state(module, nnx.Param))
        shapes = {".".join(path): leaf.get_value().shape for path, leaf in state if leaf.get_value() is not None}
    layout = {"/": "flax-linen", ".": "flax-nnx"}[separator]
    tensors = tensors_for(layout, PLAIN, every=("query_norm.scale", "key_norm.scale"))
    assert {name: array.shape for name, array in tensors.items()} == shapes
    there = convert_tensors(tensors, source=layout, target="timm", config=PLAIN)
    assert there["q_norm.weight"].tobytes() == tensors[f"query_ln{separator}scale"].tobytes()
    same_tensors(convert_tensors(there, source="timm", target=layout, config=PLAIN), tensors)
    with pytest.raises(ValueError, match=r"key_norm\.scale \[7\]: layout keras has no place for it"):
        convert_tensors(tensors, source=layout, target="keras", config=PLAIN)
