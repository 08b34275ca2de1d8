"""Random tiny models of transformers' own configurations, as their library saves them; sizes coprime where allowed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

PLAIN = {"hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 37}
GROUPED = {**PLAIN, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
VISION = {"image_size": 8, "patch_size": 4}
WINDOWS = {"image_size": 16, "patch_size": 2, "embed_dim": 12, "depths": [2, 1], "num_heads": [2, 3], "window_size": 2}
MAE = {"decoder_hidden_size": 20, "decoder_num_attention_heads": 4, "decoder_num_hidden_layers": 1}
T5 = {"vocab_size": 53, "d_model": 30, "d_kv": 7, "d_ff": 37, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 5}
FALCON = {"vocab_size": 53, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6}
GPT2 = {"vocab_size": 53, "n_positions": 23, "n_embd": 30, "n_layer": 2, "n_head": 5}
TEXT = {"vocab_size": 53, "max_position_embeddings": 11, **PLAIN}
WORDS = {"vocab_size": 53}

MODELS = {
    "bert": ("hf-bert", "BertForPreTraining", "BertConfig", {**TEXT}),
    "roberta": ("hf-bert", "RobertaForMaskedLM", "RobertaConfig", {**TEXT}),
    "electra": ("hf-bert", "ElectraForPreTraining", "ElectraConfig", {**TEXT, "embedding_size": 14}),
    "vit": ("hf-vit", "ViTForImageClassification", "ViTConfig", {**VISION, **PLAIN}),
    "vit-pooled": ("hf-vit", "ViTModel", "ViTConfig", {**VISION, **PLAIN}),
    "deit": ("hf-deit", "DeiTForImageClassificationWithTeacher", "DeiTConfig", {**VISION, **PLAIN}),
    "mae": ("hf-vit-mae-v5", "ViTMAEForPreTraining", "ViTMAEConfig", {**VISION, **PLAIN, **MAE}),
    "dinov2": ("hf-dinov2", "Dinov2Model", "Dinov2Config", {**VISION, **PLAIN}),
    "dinov2-registers": (
        "hf-dinov2",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {**VISION, **PLAIN, "use_swiglu_ffn": True},
    ),
    "swin": ("hf-swin", "SwinForImageClassification", "SwinConfig", WINDOWS),
    "swinv2": ("hf-swinv2", "Swinv2ForImageClassification", "Swinv2Config", WINDOWS),
    "gpt2": ("hf-gpt2", "GPT2LMHeadModel", "GPT2Config", {**GPT2, "add_cross_attention": True}),
    "llama": ("hf-llama", "LlamaForCausalLM", "LlamaConfig", {**WORDS, **GROUPED, "mlp_bias": True}),
    "mistral": ("hf-llama", "MistralForCausalLM", "MistralConfig", {**WORDS, **GROUPED}),
    "qwen2": ("hf-llama", "Qwen2ForCausalLM", "Qwen2Config", {**WORDS, **GROUPED}),
    "qwen3": ("hf-llama", "Qwen3ForCausalLM", "Qwen3Config", {**WORDS, **GROUPED, "head_dim": 10}),
    "gpt-neox": ("hf-gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", {**WORDS, **PLAIN}),
    "bloom": ("hf-bloom", "BloomForCausalLM", "BloomConfig", {**WORDS, "hidden_size": 30, "n_layer": 2, "n_head": 5}),
    "falcon-40b": (
        "hf-falcon",
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    "falcon-7b": ("hf-falcon", "FalconForCausalLM", "FalconConfig", {**FALCON, "multi_query": True}),
    "falcon-rw": (
        "hf-falcon",
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "phi3": ("hf-phi3", "Phi3ForCausalLM", "Phi3Config", {**WORDS, **GROUPED, "pad_token_id": 0}),
    "t5": ("hf-t5", "T5ForConditionalGeneration", "T5Config", T5),
    "t5-v1.1": (
        "hf-t5",
        "T5ForConditionalGeneration",
        "T5Config",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5-encoder": ("hf-t5-encoder", "T5EncoderModel", "T5Config", T5),
    "clip": (
        "hf-clip",
        "CLIPModel",
        "CLIPConfig",
        {"text_config": TEXT, "vision_config": {**VISION, **PLAIN}, "projection_dim": 13},
    ),
    "clip-vision": ("hf-clip-vision", "CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VISION, **PLAIN}),
    "clip-text": ("hf-clip-text", "CLIPTextModel", "CLIPTextConfig", TEXT),
}


@cache
def build(name: str, dtype: str) -> object:
    """A random model; every parameter is drawn, biases and norms too, so that no two are the same by accident."""
    import torch
    import transformers

    _, model_class, config_class, sizes = MODELS[name]
    torch.manual_seed(len(name))
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.to(getattr(torch, dtype))


def saved(name: str, dtype: str, folder: Path) -> tuple[Path, dict]:
    """The folder that ``save_pretrained`` wrote, and the config.json in it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    build(name, dtype).save_pretrained(folder)
    return folder, json.loads((folder / "config.json").read_text())
