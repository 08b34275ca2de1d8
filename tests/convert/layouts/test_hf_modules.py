"""Attention modules of Hugging Face, random: weights come back byte for byte and, converted, compute the same."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers as hf
from transformers.models.bert.modeling_bert import BertAttention
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.clip.modeling_clip import CLIPAttention
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention
from transformers.models.falcon.modeling_falcon import FalconAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.phi3.modeling_phi3 import Phi3Attention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.models.swin.modeling_swin import SwinAttention
from transformers.models.swinv2.modeling_swinv2 import Swinv2Attention
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.vit.modeling_vit import ViTAttention

from maskattn import biases, convert_tensors
from maskattn.arrays import to_numpy
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from tests.convert.layouts.float64_layer import angles, layer, share
from tests.twin import same_tensors

B, N = 2, 9
KEYS = 11
PADDING = (np.arange(N) < np.array([N, 4])[:, None])[:, None, None, :]
CAUSAL = PADDING & np.tril(np.ones((N, N), bool))
EAGER: dict[str, Any] = {"attn_implementation": "eager"}


@dataclasses.dataclass(frozen=True)
class Family:
    """A module, what it is called with, and how its layer differs from plain attention."""

    layout: str
    module: Callable[[], torch.nn.Module]
    config: AttentionConfig
    call: Callable[..., Any]  # (module, x, additive mask, key, (cos, sin)) -> output or tuple
    causal: bool = False
    rotary: int = 0
    cross: bool = False
    cosine: bool = False
    norm: tuple[str, float] | None = None
    bias: Callable[[dict[str, Any], Any], Any] = lambda canonical, module: None


def _llama(cls, config_cls, **options):
    sizes = {"hidden_size": 66, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 14}
    return cls(config_cls(**sizes | options, **EAGER), layer_idx=0)


def _swin_v2():
    options = {"image_size": 12, "patch_size": 2, "embed_dim": 35, "depths": [1], "num_heads": [5], "window_size": 3}
    return Swinv2Attention(hf.Swinv2Config(**options, **EAGER), 35, 5, window_size=(3, 3))


def _swin_v2_bias(canonical, module):
    """16 sigmoid(mlp(offsets)), the two layers applied from the canonical tensors."""
    offsets = module.self.relative_coords_table.numpy().astype(np.float64).reshape(-1, 2)
    w = {name: array.astype(np.float64) for name, array in canonical.items()}
    hidden = np.maximum(offsets @ w["cpb_mlp.0.kernel"] + w["cpb_mlp.0.bias"], 0)
    table = 16 / (1 + np.exp(-hidden @ w["cpb_mlp.2.kernel"]))
    return _dense(biases.RelativeTable(table, window=(3, 3)))


def _dense(bias):
    index = np.ix_([0], range(5), range(N), range(N))
    return np.asarray(bias.values(*index), np.float64)


def _plain(module, x, mask, key, turn):
    return module(x, attention_mask=mask)


def _rotary(module, x, mask, key, turn):
    return module(x, position_embeddings=turn, attention_mask=mask)


SQUARE = AttentionConfig(35, 5)
WIDE = AttentionConfig(70, 5)
GROUPED = AttentionConfig(66, 6, num_kv_heads=2, head_dim=14, qkv_bias=False, out_bias=False)
QWEN2 = GROUPED.replace(embed_dim=84, head_dim=None, qkv_bias=True)
SIZE = {"hidden_size": 35, "num_attention_heads": 5}
ALIBI = np.random.default_rng(3).standard_normal((1, 5, 1, N)).astype(np.float32)
FALCON = {"hidden_size": 84, "num_attention_heads": 6, "alibi": False, "multi_query": False, "bias": True}


def _falcon(**options):
    return FalconAttention(hf.FalconConfig(**FALCON | options, **EAGER), layer_idx=0)


def _falcon_call(module, x, mask, key, turn):
    return module(x, None, mask, position_embeddings=turn)


FAMILIES = {
    "BERT": Family(
        "hf-bert",
        lambda: BertAttention(hf.BertConfig(**SIZE, **EAGER)),
        SQUARE,
        lambda m, x, mask, key, turn: m.output.dense(m.self(x, attention_mask=mask)[0]),
    ),
    "ViT": Family("hf-llama", lambda: ViTAttention(hf.ViTConfig(**SIZE, **EAGER)), SQUARE, _plain),
    "DINOv2 without biases": Family(
        "hf-dinov2-memory",
        lambda: Dinov2Attention(hf.Dinov2Config(**SIZE, qkv_bias=False, **EAGER)),
        AttentionConfig(35, 5, qkv_bias=False),
        _plain,
    ),
    "Swin": Family(
        "hf-swin-memory",
        lambda: SwinAttention(hf.SwinConfig(**EAGER), 35, 5, 3),
        SQUARE,
        lambda m, x, mask, key, turn: m(x),
        bias=lambda canonical, module: _dense(biases.RelativeTable(canonical["relative_position_bias.table"], (3, 3))),
    ),
    "Swin v2": Family(
        "hf-swin-v2", _swin_v2, SQUARE, lambda m, x, mask, key, turn: m(x), cosine=True, bias=_swin_v2_bias
    ),
    "GPT-2": Family(
        "hf-gpt2",
        lambda: GPT2Attention(hf.GPT2Config(n_embd=35, n_head=5, **EAGER), layer_idx=0),
        SQUARE,
        _plain,
        causal=True,
    ),
    "GPT-2 cross": Family(
        "hf-gpt2-cross",
        lambda: GPT2Attention(hf.GPT2Config(n_embd=35, n_head=5, **EAGER), is_cross_attention=True, layer_idx=0),
        SQUARE,
        lambda m, x, mask, key, turn: m(x, encoder_hidden_states=key),
        cross=True,
    ),
    "Llama": Family("hf-llama", lambda: _llama(LlamaAttention, hf.LlamaConfig), GROUPED, _rotary, True, 14),
    "Llama with biases": Family(
        "hf-llama",
        lambda: _llama(LlamaAttention, hf.LlamaConfig, attention_bias=True),
        dataclasses.replace(GROUPED, qkv_bias=True, out_bias=True),
        _rotary,
        True,
        14,
    ),
    "Mistral": Family("hf-mistral", lambda: _llama(MistralAttention, hf.MistralConfig), GROUPED, _rotary, True, 14),
    "Qwen2": Family(
        "hf-qwen2", lambda: _llama(Qwen2Attention, hf.Qwen2Config, hidden_size=84), QWEN2, _rotary, True, 14
    ),
    "Qwen3": Family(
        "hf-qwen3", lambda: _llama(Qwen3Attention, hf.Qwen3Config), GROUPED, _rotary, True, 14, norm=("rms", 1e-6)
    ),
    "GPT-OSS, sinks": Family(
        "hf-llama",
        lambda: _llama(GptOssAttention, hf.GptOssConfig),
        GROUPED.replace(qkv_bias=True, out_bias=True, sinks=True),
        lambda m, x, mask, key, turn: _rotary(m, x, mask, key, tuple(part[..., :7] for part in turn)),
        True,
        14,
    ),
    "GPT-NeoX": Family(
        "hf-gpt-neox",
        lambda: GPTNeoXAttention(hf.GPTNeoXConfig(hidden_size=70, num_attention_heads=5, **EAGER), layer_idx=0),
        WIDE,
        _rotary,
        True,
        6,  # partial, as in its models
    ),
    "BLOOM": Family(
        "hf-bloom",
        lambda: BloomAttention(hf.BloomConfig(hidden_size=35, n_head=5), layer_idx=0),
        SQUARE,
        lambda m, x, mask, key, turn: m(x, torch.zeros_like(x), _alibi(), mask),
        causal=True,
        bias=lambda canonical, module: ALIBI,
    ),
    "Falcon, grouped": Family(
        "hf-falcon",
        lambda: _falcon(num_kv_heads=2, new_decoder_architecture=True),
        AttentionConfig(84, 6, num_kv_heads=2),
        _falcon_call,
        True,
        14,
    ),
    "Falcon, heads apart": Family("hf-falcon", lambda: _falcon(), AttentionConfig(84, 6), _falcon_call, True, 14),
    "Falcon, multi-query": Family(
        "hf-falcon", lambda: _falcon(multi_query=True), AttentionConfig(84, 6, num_kv_heads=1), _falcon_call, True, 14
    ),
    "Phi-3": Family(
        "hf-phi3",
        lambda: _llama(Phi3Attention, hf.Phi3Config, hidden_size=84, pad_token_id=0),
        dataclasses.replace(QWEN2, qkv_bias=False),
        _rotary,
        True,
        14,
    ),
    "T5": Family(
        "hf-t5",
        lambda: T5Attention(_t5(), has_relative_attention_bias=True, layer_idx=0),
        AttentionConfig(35, 5, head_dim=3, qkv_bias=False, out_bias=False, scale=1.0),
        lambda m, x, mask, key, turn: m(x, mask=mask),
        bias=lambda canonical, module: _dense(biases.T5Buckets(canonical["relative_attention_bias.table"], 16)),
    ),
    "T5 cross": Family(
        "hf-t5",
        lambda: T5Attention(_t5(), layer_idx=0),
        AttentionConfig(35, 5, head_dim=3, qkv_bias=False, out_bias=False, scale=1.0),
        lambda m, x, mask, key, turn: m(x, key_value_states=key),
        cross=True,
    ),
    "CLIP": Family("hf-clip", lambda: CLIPAttention(hf.CLIPVisionConfig(**SIZE, **EAGER)), SQUARE, _plain),
}


def _t5():
    options = {"relative_attention_num_buckets": 12, "relative_attention_max_distance": 16}
    return hf.T5Config(d_model=35, d_kv=3, num_heads=5, is_decoder=False, **options, **EAGER)


def _alibi():
    return torch.from_numpy(np.repeat(ALIBI, B, axis=0).reshape(B * 5, 1, N))


def randomised(module, seed=0):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 6)
    return module.eval()


def arrays(module):
    """The state dict without what follows the attention."""
    return {name: to_numpy(tensor) for name, tensor in module.state_dict().items() if "LayerNorm" not in name}


def run(family, module):
    """(x, key states or None, the module's output, allowed, (cos, sin) or None)"""
    draw = np.random.default_rng(7)
    width = family.config.embed_dim
    x = draw.standard_normal((B, N, width)).astype(np.float32)
    key = draw.standard_normal((B, KEYS, width)).astype(np.float32) if family.cross else None
    allowed = CAUSAL if family.causal else PADDING
    if family.cross or "swin" in family.layout:
        allowed = np.ones((1, 1, 1, 1), bool)
    mask = torch.from_numpy(np.where(allowed, np.float32(0), np.finfo(np.float32).min))
    cos_sin = angles(N, family.rotary) if family.rotary else None
    turn = cos_sin and tuple(torch.from_numpy(np.tile(a, 2)[None].astype(np.float32)) for a in cos_sin)
    with torch.no_grad():
        given = torch.from_numpy(x), mask, None if key is None else torch.from_numpy(key), turn
        output = family.call(module, *given)
    output = output[0] if isinstance(output, tuple) else output
    allowed = np.broadcast_to(allowed, (B, 1, N, N if key is None else KEYS))
    return x, key, output.numpy(), allowed, cos_sin


def error(family, module, canonical):
    x, key, output, allowed, cos_sin = run(family, module)
    bias = family.bias(canonical, module)
    given = {"key": key, "bias": bias, "scale": family.config.scale}
    right = layer(x, canonical, allowed, rotary=cos_sin, norm=family.norm, cosine=family.cosine, **given)
    return share(output, right, x, canonical, allowed, **given)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_weights_come_back_and_compute_the_same(family):
    module = randomised(family.module())
    tensors = arrays(module)
    to = {"source": family.layout, "target": "canonical", "config": family.config}
    back = {"source": "canonical", "target": family.layout, "config": family.config}
    canonical = convert_tensors(tensors, **to)
    same_tensors(dict(sorted(convert_tensors(canonical, **back).items())), dict(sorted(tensors.items())))
    assert error(family, module, canonical) <= 1
    narrow = arrays(module.to(torch.bfloat16))
    assert next(iter(narrow.values())).dtype == ml_dtypes.bfloat16
    returned = convert_tensors(convert_tensors(narrow, **to), **back)
    same_tensors(dict(sorted(returned.items())), dict(sorted(narrow.items())))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_layout_is_found_from_names_and_shapes(family):
    tensors = {f"layers.3.attention.{name}": array for name, array in arrays(family.module()).items()}
    wanted = layouts.get(family.layout).name
    for given in ((), (family.config,)):
        found = layouts.detect(tensors, *given)
        names = [candidate.layout for candidate in found]
        if wanted == "hf-neox" and not (given and family.config.num_kv_heads == 1):
            assert names == ["hf-neox", "megatron-v0"]
        else:
            assert names == [wanted]


def test_wrong_layouts_are_seen_to_fail():
    llama = FAMILIES["Llama with biases"]
    module = randomised(llama.module())
    canonical = convert_tensors(arrays(module), source="hf-llama", target="canonical", config=llama.config)
    exchanged = canonical | {f"key.{p}": canonical[f"value.{p}"] for p in ("kernel", "bias")}
    exchanged |= {f"value.{p}": canonical[f"key.{p}"] for p in ("kernel", "bias")}
    assert error(llama, module, exchanged) > 100

    plain = FAMILIES["Llama"]
    unbiased = plain.module()
    unbiased.load_state_dict({n: t for n, t in module.state_dict().items() if "bias" not in n}, strict=True)
    weights = {name: array for name, array in canonical.items() if "bias" not in name}
    interleaved = convert_tensors(weights, source="canonical", target="meta-llama", config=GROUPED)
    renamed = {f"{name[1]}_proj.weight": array for name, array in interleaved.items()}
    unturned = convert_tensors(renamed, source="hf-llama", target="canonical", config=GROUPED)
    assert error(plain, unbiased.eval(), weights) <= 1
    assert error(plain, unbiased.eval(), unturned) > 100

    for name in ("GPT-NeoX", "BLOOM", "Falcon, grouped"):
        family = FAMILIES[name]
        module = randomised(family.module())
        blocks = convert_tensors(arrays(module), source="megatron-v0", target="canonical", config=family.config)
        assert error(family, module, blocks) > 100
    family = FAMILIES["T5"]
    module = randomised(family.module())
    canonical = convert_tensors(arrays(module), source="hf-t5", target="canonical", config=family.config)
    canonical["relative_attention_bias.table"] = canonical["relative_attention_bias.table"][::-1]
    assert error(family, module, canonical) > 100
