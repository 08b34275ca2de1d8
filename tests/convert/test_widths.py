"""Half a model, or one whose parts do not fit together, is refused."""

import re

import numpy as np
import pytest

from maskattn.checkpoints import TensorInfo
from maskattn.convert import plan
from maskattn.convert.config_json import as_hugging_face
from tests.convert.test_plan import CONFIG, infos, llama

PARAMS = {"dim": 20, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 13}


CHANGES = {
    "model.norm.weight": (21,),
    "model.embed_tokens.weight": (13, 22),
    "model.layers.1.input_layernorm.weight": (40,),
    "model.layers.2.mlp.down_proj.weight": (20, 30),
    "model.layers.0.mlp.gate_proj.weight": (32, 20),
    "lm_head.weight": (14, 20),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_width_that_does_not_fit_is_named(name):
    planned = infos(llama())
    planned[name] = TensorInfo(CHANGES[name], planned[name].dtype)
    with pytest.raises(ValueError, match=f"{name}: .* expected"):
        plan(planned, target="meta-llama", config=CONFIG)


@pytest.mark.parametrize(("key", "value"), [
    ("hidden_size", 40), ("vocab_size", 12), ("intermediate_size", 30), ("head_dim", 12),
])  # fmt: skip
def test_what_the_configuration_says_is_compared(key, value):
    right = {"hidden_size": 20, "vocab_size": 13, "intermediate_size": 31, "head_dim": 6}
    plan(infos(llama()), target="meta-llama", config=CONFIG | right)
    with pytest.raises(ValueError, match=f"expected {value}: {key} of the configuration"):
        plan(infos(llama()), target="meta-llama", config=CONFIG | right | {key: value})


def half(tensors):
    """One of two shards of Meta's: the rows, or the columns, of a half."""
    columns = ("wo", "w2", "tok_embeddings")

    def cut(name, shape):
        if len(shape) == 1:
            return shape
        return (shape[0], shape[1] // 2) if any(part in name for part in columns) else (shape[0] // 2, shape[1])

    return {name: TensorInfo(cut(name, info.shape), info.dtype) for name, info in tensors.items()}


def test_half_a_model_is_refused_with_all_its_widths():
    whole = plan(infos(llama()), target="meta-llama", config=CONFIG).outputs
    params = PARAMS | {"head_dim": 6}
    plan(whole, target="hf-llama", config=params)
    for config in (params, {"num_attention_heads": 2, "num_key_value_heads": 1}):
        with pytest.raises(ValueError) as error:
            plan(half(whole), target="hf-llama", config=config)
        text = str(error.value)
        assert re.search(r"tok_embeddings.weight: \w+ is 10, expected 20", text)
        assert len(text.splitlines()) <= 20


def test_params_json_says_the_width_of_the_mlp():
    params = {"dim": 4096, "n_layers": 1, "n_heads": 32, "multiple_of": 256, "vocab_size": -1}
    assert as_hugging_face(params)["intermediate_size"] == 11008  # Llama 2 7B
    larger = params | {"n_kv_heads": 8, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}
    assert as_hugging_face(larger)["intermediate_size"] == 14336  # Llama 3


def test_stages_grow_as_they_must():
    width = {"patch_embed.proj.weight": (4, 3, 2, 2), "patch_embed.proj.bias": (4,)}
    for stage, wide in enumerate((4, 8)):
        at = f"layers.{stage}.blocks.0"
        width |= {f"{at}.norm{i}.{part}": (wide,) for i in (1, 2) for part in ("weight", "bias")}
        width |= {f"{at}.attn.qkv.weight": (3 * wide, wide), f"{at}.attn.qkv.bias": (3 * wide,)}
        width |= {f"{at}.attn.proj.weight": (wide, wide), f"{at}.attn.proj.bias": (wide,)}
        width |= {f"{at}.attn.relative_position_bias_table": (9, 2), f"{at}.attn.relative_position_index": (4, 4)}
        inner = 11 * 2**stage
        width |= {f"{at}.mlp.fc1.weight": (inner, wide), f"{at}.mlp.fc1.bias": (inner,)}
        width |= {f"{at}.mlp.fc2.weight": (wide, inner), f"{at}.mlp.fc2.bias": (wide,)}
    width |= {"layers.0.downsample.norm.weight": (16,), "layers.0.downsample.norm.bias": (16,)}
    width |= {"layers.0.downsample.reduction.weight": (8, 16), "norm.weight": (8,), "norm.bias": (8,)}
    integer = {name: np.int64 for name in width if name.endswith("index")}
    given = {name: TensorInfo(shape, np.dtype(integer.get(name, np.float32))) for name, shape in width.items()}
    config = {"num_heads": [2, 2], "embed_dim": 4, "mlp_ratio": 2.75, "patch_size": 2, "depths": [1, 1]}
    config |= {"image_size": 8, "window_size": 2}
    plan(given, target="flax-linen", source="swin", config=config)
    for key, value, said in (
        ("mlp_ratio", 4, r"fc1.weight: width is 11 .*, expected 16: by the configuration"),
        ("patch_size", 8, r"patch_embed.proj.weight: patch_size is 2 .*, expected 8: patch_size of the configuration"),
        ("depths", [1, 2], r"layers of layers.1.blocks.\*: depths is 2, found 1"),
    ):
        with pytest.raises(ValueError, match=said):
            plan(given, target="flax-linen", source="swin", config=config | {key: value})
    given["norm.bias"] = given["norm.weight"] = TensorInfo((4,), np.dtype(np.float32))
    with pytest.raises(ValueError, match=r"norm.weight: width is 4.*, expected 8: by the configuration"):
        plan(given, target="flax-linen", source="swin", config=config)
