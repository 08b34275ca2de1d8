"""Models of transformers, small and random in every parameter: a fresh one has norms of 1 and biases of 0."""

import copy
import functools

import torch
import transformers

WORDS, ROWS, TOKENS, TARGETS = 97, 2, 13, 7
SIZES = dict(vocab_size=WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
DECODER = dict(SIZES, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ENCODER = dict(SIZES, max_position_embeddings=64, type_vocab_size=3, hidden_dropout_prob=0.0)
ENCODER |= dict(attention_probs_dropout_prob=0.0, pad_token_id=1)
GPT2 = dict(
    vocab_size=WORDS, n_positions=64, n_embd=32, n_layer=2, n_head=4, n_inner=48, bos_token_id=1, eos_token_id=2
)
PAIR = dict(vocab_size=WORDS, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4)
PAIR |= dict(decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=40, max_position_embeddings=64)
T5 = dict(vocab_size=WORDS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=3)
T5 |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=16, decoder_start_token_id=0)
VISION = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
)
TEXT = {k: v for k, v in SIZES.items()} | dict(max_position_embeddings=20)
LATENT = dict(q_lora_rank=12, kv_lora_rank=10, qk_rope_head_dim=6, qk_nope_head_dim=4, v_head_dim=7)
LATENT |= dict(first_k_dense_replace=1, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, n_group=4)
LATENT |= dict(moe_intermediate_size=24, topk_group=2, num_key_value_heads=4)
SOUND = dict(SIZES, conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 2), num_conv_pos_embeddings=8)
SOUND |= dict(num_conv_pos_embedding_groups=4)
WHISPER = dict(PAIR, num_mel_bins=12, max_source_positions=20, max_target_positions=30, pad_token_id=0, bos_token_id=1)
WHISPER |= dict(eos_token_id=2, decoder_start_token_id=3, begin_suppress_tokens=None)
WHISPER.pop("max_position_embeddings")

#: Type of model: the kind of its class, and its configuration.
MODELS = {
    "llama": ("CausalLM", DECODER),
    "mistral": ("CausalLM", dict(DECODER, sliding_window=5, head_dim=12)),
    "ministral": (
        "CausalLM",
        dict(DECODER, sliding_window=5, head_dim=8, layer_types=["full_attention", "sliding_attention"]),
    ),
    "mixtral": ("CausalLM", dict(DECODER, num_local_experts=4)),
    "qwen2": ("CausalLM", dict(DECODER, use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "qwen2_moe": ("CausalLM", dict(DECODER, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)),
    "qwen3": ("CausalLM", dict(DECODER, head_dim=16)),
    "gemma": ("CausalLM", dict(DECODER, head_dim=16)),
    "gemma2": ("CausalLM", dict(DECODER, head_dim=16, sliding_window=5, attn_logit_softcapping=1.5)),
    "gemma3_text": ("CausalLM", dict(DECODER, head_dim=16, sliding_window=5, num_hidden_layers=7)),
    "phi": ("CausalLM", dict(DECODER, qk_layernorm=True)),
    "phi3": ("CausalLM", dict(DECODER, sliding_window=6)),
    "cohere": ("CausalLM", dict(DECODER, use_qk_norm=True)),
    "cohere2": ("CausalLM", dict(DECODER, sliding_window=5, num_hidden_layers=5)),
    "olmo2": ("CausalLM", DECODER),
    "starcoder2": ("CausalLM", dict(DECODER, sliding_window=5)),
    "granite": ("CausalLM", dict(DECODER, attention_multiplier=0.2)),
    "stablelm": ("CausalLM", dict(DECODER, qk_layernorm=True, use_parallel_residual=True)),
    "smollm3": ("CausalLM", dict(DECODER, use_sliding_window=True, sliding_window=4, num_hidden_layers=5)),
    "glm4": ("CausalLM", dict(DECODER, head_dim=8)),
    "gpt_oss": ("CausalLM", dict(DECODER, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4)),
    "deepseek_v3": ("CausalLM", dict(DECODER, **LATENT)),
    "llama4_text": (
        "CausalLM",
        dict(DECODER, attention_chunk_size=6, num_local_experts=2, head_dim=8, num_hidden_layers=4),
    ),
    "gpt2": ("CausalLM", GPT2),
    "gpt_bigcode": ("CausalLM", GPT2),
    "gpt_neox": ("CausalLM", dict(SIZES, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)),
    "opt": ("CausalLM", {**SIZES, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 16}),
    "bert": ("MaskedLM", ENCODER),
    "roberta": ("MaskedLM", ENCODER),
    "esm": ("MaskedLM", dict(ENCODER, position_embedding_type="rotary", mask_token_id=5)),
    "modernbert": ("MaskedLM", dict(DECODER, num_hidden_layers=4, local_attention=8, cls_token_id=1, sep_token_id=2)),
    "bart": ("Seq2SeqLM", PAIR),
    "m2m_100": ("Seq2SeqLM", PAIR),
    "t5": ("Seq2SeqLM", T5),
    "whisper": ("SpeechSeq2Seq", WHISPER),
    "vit": ("", VISION),
    "beit": ("", dict(VISION, use_relative_position_bias=True)),
    "dinov2": ("", {k: v for k, v in VISION.items() if k != "intermediate_size"}),
    "clip": ("", dict(text_config=dict(TEXT, eos_token_id=96, bos_token_id=1), vision_config=VISION)),
    "siglip": ("", dict(text_config=TEXT, vision_config=VISION)),
    "wav2vec2": ("", SOUND),
}


def make(kind, implementation="eager", **changes):
    """A model in float32, its parameters drawn anew; its gradients are off."""
    suffix, options = MODELS[kind]
    config = transformers.AutoConfig.for_model(kind, **copy.deepcopy(options | changes))
    auto = getattr(transformers, f"AutoModelFor{suffix}" if suffix else "AutoModel")
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation=implementation).eval().requires_grad_(False)
    made = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=made)
        if parameter.ndim > 1:
            parameter.copy_(drawn * 0.25)
        else:
            parameter.add_(drawn * 0.2)
    return model


@functools.cache
def padding(side):
    """[ROWS, TOKENS] of 1 and 0: the second row is shorter."""
    keep = torch.ones(ROWS, TOKENS, dtype=torch.long)
    if side is not None:
        keep[1, slice(4) if side == "left" else slice(-4, None)] = 0
    return keep


def inputs(model, side=None):
    """What a model of this type is called with."""
    made = torch.Generator().manual_seed(2)
    words = torch.randint(5, WORDS - 1, (ROWS, TOKENS), generator=made)
    kind, text = model.config.model_type, {"input_ids": words, "attention_mask": padding(side)}
    images = {"pixel_values": torch.randn(ROWS, 3, 32, 32, generator=made)}
    if kind in ("vit", "beit", "dinov2"):
        return images
    if kind in ("clip", "siglip"):
        words[:, -1] = 96
        return text | images
    if kind == "wav2vec2":
        return {"input_values": torch.randn(ROWS, 400, generator=made)}
    if kind == "whisper":
        sound = {"input_features": torch.randn(ROWS, 12, 40, generator=made)}
        return sound | {"decoder_input_ids": words, "decoder_attention_mask": padding(side)}
    if model.config.is_encoder_decoder:
        return text | {"decoder_input_ids": words[:, :TARGETS]}
    return text


def result(model, side=None):
    """What is compared: logits, or the last hidden states; where text has padding, its tokens alone."""
    given = {
        name: x.double() if x.is_floating_point() and model.dtype == torch.float64 else x
        for name, x in inputs(model, side).items()
    }
    out = model(**given)
    found = next(
        x
        for x in (getattr(out, name, None) for name in ("logits", "logits_per_text", "last_hidden_state"))
        if x is not None
    )
    whole = found.shape[:2] == (ROWS, TOKENS) and side is not None
    found = found[padding(side).bool()] if whole else found
    return (found.float() if found.dtype == torch.bfloat16 else found).numpy()
