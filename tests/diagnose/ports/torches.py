"""PyTorch models of transformers, tiny: what ports of them are compared with."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import transformers as hf
from torch import nn

from maskattn.typing import NumPyArray


def spread(model: nn.Module, gain: float = 1.6) -> nn.Module:
    """The model with weights that tell everything apart: none zero, none one, and each a number that bfloat16 holds."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            noise = 1 + 0.3 * noise
        elif parameter.ndim == 1:
            noise = 0.3 * noise
        elif "embed" not in name and "shared" not in name and "token" not in name:
            noise = gain * noise / parameter[..., 0].numel() ** 0.5 if parameter.ndim == 2 else 0.4 * noise
        parameter.data = noise.bfloat16().float()
    return model.eval()


def decoder() -> nn.Module:
    """Causal, grouped heads, rotary positions, RMSNorm before, a gated MLP."""
    return spread(
        hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=32,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_hidden_layers=3,
                intermediate_size=44,
                vocab_size=50,
                max_position_embeddings=64,
                rms_norm_eps=1e-5,
                attn_implementation="eager",
                tie_word_embeddings=False,
                use_cache=False,
            )  # fmt: skip
        )
    )


def encoder() -> nn.Module:
    """Both ways, positions learned, types of tokens, LayerNorm after, biases, a pooler."""
    return spread(
        hf.BertModel(
            hf.BertConfig(
                hidden_size=24,
                num_attention_heads=3,
                num_hidden_layers=2,
                intermediate_size=40,
                vocab_size=50,
                max_position_embeddings=32,
                layer_norm_eps=1e-12,
                attn_implementation="sdpa",
            )  # fmt: skip
        )
    )


def vision() -> nn.Module:
    """Patches of an image and a class token, LayerNorm before, biases."""
    return spread(
        hf.ViTForImageClassification(
            hf.ViTConfig(
                hidden_size=24,
                num_attention_heads=3,
                num_hidden_layers=2,
                intermediate_size=40,
                image_size=16,
                patch_size=4,
                num_channels=3,
                num_labels=9,
                layer_norm_eps=1e-12,
                attn_implementation="sdpa",
            )  # fmt: skip
        )
    )


def encoder_decoder() -> nn.Module:
    """Positions in buckets, no scale of the scores, no biases, a gated MLP, another table at the output."""
    return spread(
        hf.T5ForConditionalGeneration(
            hf.T5Config(
                d_model=24,
                d_kv=8,
                num_heads=4,
                d_ff=40,
                num_layers=2,
                num_decoder_layers=2,
                vocab_size=50,
                relative_attention_num_buckets=8,
                relative_attention_max_distance=16,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=True,
                attn_implementation="eager",
                use_cache=False,
                decoder_start_token_id=0,
                pad_token_id=0,
            )  # fmt: skip
        ),
        gain=1.0,
    )


def experts() -> nn.Module:
    """A decoder with a window, and four experts, two for each token."""
    return spread(
        hf.MixtralForCausalLM(
            hf.MixtralConfig(
                hidden_size=32,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_hidden_layers=2,
                intermediate_size=28,
                vocab_size=50,
                max_position_embeddings=64,
                num_local_experts=4,
                num_experts_per_tok=2,
                sliding_window=5,
                rms_norm_eps=1e-5,
                attn_implementation="eager",
                tie_word_embeddings=False,
                use_cache=False,
                head_dim=8,
            )  # fmt: skip
        )
    )


def fused() -> nn.Module:
    """Causal, one product for queries, keys and values, positions learned, LayerNorm before, biases."""
    return spread(
        hf.GPT2LMHeadModel(
            hf.GPT2Config(
                n_embd=24,
                n_head=3,
                n_layer=2,
                vocab_size=50,
                n_positions=20,
                attn_implementation="sdpa",
                use_cache=False,
                bos_token_id=1,
                eos_token_id=2,
            )  # fmt: skip
        )
    )


MODELS = {
    "decoder": decoder,
    "encoder": encoder,
    "vision": vision,
    "encoder-decoder": encoder_decoder,
    "experts": experts,
    "fused": fused,
}


@cache
def model(kind: str) -> nn.Module:
    """The PyTorch model of a kind."""
    return MODELS[kind]()


def weights(kind: str) -> dict[str, NumPyArray]:
    """Its numbers, by name."""
    return {name: tensor.numpy().copy() for name, tensor in model(kind).state_dict().items()}


@cache
def inputs(kind: str) -> tuple[dict[str, NumPyArray], list[NumPyArray]]:
    """What PyTorch's side is called with, and the port: the second row of tokens is padded."""
    draw = np.random.default_rng(3)
    ids = draw.integers(3, 50, (2, 12))
    padding = np.ones((2, 12), np.int64)
    # at the end a causal mask hides it anyway; in front there would be rows that attend to nothing
    padding[1, slice(1, 4) if kind in ("decoder", "fused") else slice(9, None)] = 0
    if kind == "encoder":
        types = np.arange(12)[None] // 5 % 2 + np.zeros((2, 1), np.int64)
        given = {"input_ids": ids, "attention_mask": padding, "token_type_ids": types}
    elif kind == "vision":
        given = {"pixel_values": draw.standard_normal((2, 3, 16, 16)).astype(np.float32)}
    elif kind == "encoder-decoder":
        given = {"input_ids": ids, "attention_mask": padding, "labels": draw.integers(3, 50, (2, 9))}
    else:
        given = {"input_ids": ids, "attention_mask": padding}
    return given, list(given.values())
