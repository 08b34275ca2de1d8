"""Converted weights compute what the module they come from computes."""

import numpy as np
import pytest

from maskattn import convert_tensors, standards
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from tests.convert.layouts.layout_cases import normal
from tests.frameworks import flax, jax, jnp, nnx, optional, torch

BertConfig = optional("transformers.BertConfig")
BertAttention = optional("transformers.models.bert.modeling_bert.BertAttention")

CONFIG = AttentionConfig(35, 5)
X = np.random.default_rng(7).standard_normal((2, 11, 35)).astype(np.float32)
LENGTHS = np.array([11, 4])
ALLOWED = (np.arange(11) < LENGTHS[:, None])[:, None, None, :]


def judge(output, canonical, config=CONFIG, **inputs):
    right = standards.module_oracle(X, canonical, ALLOWED, "float32", **inputs)
    limit = standards.module_limit(X, canonical, ALLOWED, "float32", **inputs)
    assert (np.abs(output - right) <= limit).all()
    assert float(np.abs(right).max()) > 1000 * float(limit.max())  # a wrong order of numbers would be seen


def numbers(layout, config=CONFIG):
    canonical = {name: array / 6 for name, array in normal("canonical", config).items()}
    return canonical, convert_tensors(canonical, source="canonical", target=layout, config=config)


@pytest.mark.parametrize("widths", [(35, 35), (11, 13)])
def test_torch_mha(widths):
    config = AttentionConfig(35, 5, kdim=widths[0], vdim=widths[1])
    canonical, tensors = numbers("torch-mha", config)
    module = torch.nn.MultiheadAttention(35, 5, kdim=widths[0], vdim=widths[1], batch_first=True)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=True)
    draw = np.random.default_rng(8)
    key, value = (draw.standard_normal((2, 11, width)).astype(np.float32) for width in widths)
    with torch.no_grad():
        padding = torch.from_numpy(~ALLOWED[:, 0, 0])
        output = module(*map(torch.from_numpy, (X, key, value)), key_padding_mask=padding, need_weights=False)[0]
    judge(output.numpy(), canonical, config, key=key, value_input=value)


def test_hf_bert():
    canonical, tensors = numbers("hf-bert")
    options = {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 3, "attn_implementation": "eager"}
    module = BertAttention(BertConfig(**options)).eval()
    state = module.state_dict()
    assert set(state) - set(tensors) == {"output.LayerNorm.weight", "output.LayerNorm.bias"}
    state |= {name: torch.from_numpy(array) for name, array in tensors.items()}
    module.load_state_dict(state, strict=True)
    bias = torch.from_numpy(np.where(ALLOWED, np.float32(0), np.finfo(np.float32).min))
    with torch.no_grad():
        output = module.output.dense(module.self(torch.from_numpy(X), attention_mask=bias)[0])
    judge(output.numpy(), canonical)
    found = layouts.detect({name: tensor.numpy() for name, tensor in state.items()}, CONFIG)
    assert found.layout == "hf-bert" and found[0].layers == ("",)


def test_flax_linen():
    canonical, tensors = numbers("flax-linen")
    module = flax.linen.MultiHeadDotProductAttention(num_heads=5, precision="highest")
    variables = {"params": jax.tree.map(jnp.asarray, layouts.unflatten(tensors))}
    judge(np.asarray(module.apply(variables, X, mask=jnp.asarray(ALLOWED))), canonical)
    nested = convert_tensors(layouts.unflatten(tensors), source="flax-linen", target="canonical", config=CONFIG)
    assert {name: array.tobytes() for name, array in nested.items()} == {n: a.tobytes() for n, a in canonical.items()}


def test_flax_nnx():
    canonical, tensors = numbers("flax-nnx")
    module = nnx.MultiHeadAttention(5, 35, decode=False, precision="highest", rngs=nnx.Rngs(0))
    state = nnx.state(module, nnx.Param)
    flat = {".".join(path): leaf for path, leaf in nnx.to_flat_state(state)}
    assert set(flat) == set(tensors)
    for name, leaf in flat.items():
        leaf.set_value(jnp.asarray(tensors[name]))
    nnx.update(module, state)
    judge(np.asarray(module(X, mask=jnp.asarray(ALLOWED))), canonical)


def test_timm_rows_by_its_own_formula():
    """timm: qkv(x).reshape(B, N, 3, H, D), heads joined again before proj."""
    canonical, tensors = numbers("timm")
    projected = X.astype(np.float64) @ tensors["qkv.weight"].astype(np.float64).T + tensors["qkv.bias"]
    q, k, v = projected.reshape(2, 11, 3, 5, 7).transpose(2, 0, 3, 1, 4)
    scores = np.where(ALLOWED, q @ k.swapaxes(-1, -2) * 7**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    joined = (weights / weights.sum(axis=-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(2, 11, 35)
    judge(joined @ tensors["proj.weight"].astype(np.float64).T + tensors["proj.bias"], canonical)
