"""`AttentionConfig.from_hf`: rows are read from objects and dicts, new and old, and what is not known is named."""

import math
from types import SimpleNamespace

import pytest

from maskattn import standards
from maskattn.config import AttentionConfig
from maskattn.layer import (
    Clip,
    DynamicNTK,
    LinearScaling,
    Llama3,
    LongRope,
    Norm,
    Rotary,
    Slopes,
    T5Table,
    Temperature,
    WindowTable,
    Yarn,
    from_hf,
)
from maskattn.layer.from_hf._stacks import STACKS

SIZES = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
}


def read(model_type, layer=0, part=None, **fields):
    return AttentionConfig.from_hf({"model_type": model_type, **SIZES, **fields}, layer, part)


@pytest.mark.parametrize("model_type", from_hf.ROWS)
def test_every_row_makes_a_layer_of_what_any_configuration_has(model_type):
    more = {name: 96 for name in ("hidden_size", "d_model", "n_embd", "dim")}
    more |= {name: 4 for name in ("n_head", "n_heads", "num_heads", "rotary_dim", "window_size")}
    more |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "image_size": 32}
    if model_type.startswith("swin"):
        more |= {"embed_dim": 96, "depths": [1, 2], "num_heads": [4, 8]}
    more |= {"head_dim": 24, "d_kv": 24, "rope_theta": 9.0}
    more |= {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
    more["layer_types"] = ["full_attention"] * 3
    part = "decoder" if model_type in STACKS else None
    config = read(model_type, 0, part, **more)
    assert config.embed_dim == 96 and config.num_heads == 4
    other = SimpleNamespace(model_type=model_type, **SIZES | more)
    assert AttentionConfig.from_hf(other, 0, part) == config


def test_heads_of_a_latent_are_turned_in_their_first_part_and_scaled_for_the_rest():
    sizes = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
    scaling = {"type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 0.7}
    config = read("deepseek_v3", **sizes, rope_scaling={**scaling, "original_max_position_embeddings": 8})
    assert (config.head_dim, config.v_head_dim, config.num_kv_heads) == (24, 12, 4)
    assert config.rotary == Rotary(width=8, pairs="interleaved", scaling=Yarn(8.0, 8, attention_factor=1.0))
    assert config.scale == 24**-0.5 * (1 + 0.07 * math.log(8)) ** 2
    assert read("deepseek_v2", **sizes).scale == 24**-0.5
    assert read("deepseek_v3", **sizes, rope_interleave=False).rotary == Rotary(width=8)


@pytest.mark.torch
def test_what_a_file_leaves_out_is_what_transformers_takes_or_is_refused():
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    for model_type in from_hf.ROWS:
        whole, part = mapping[model_type](), "decoder" if model_type in STACKS else None
        sizes = ("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "depths", "num_attention_heads", "n_head")
        sizes += ("n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
        left = {name: value for name, value in whole.to_dict().items() if name in sizes}
        for config in (whole.to_dict(), {"model_type": model_type, **left}):
            try:
                made = AttentionConfig.from_hf(config, 1, part)
            except ValueError as error:
                assert config.keys() <= {*sizes, "model_type"} and "has no" in str(error)
                continue
            assert made == AttentionConfig.from_hf(whole, 1, part), model_type


@pytest.mark.parametrize(
    ("given", "scaling"),
    [
        ({"rope_parameters": {"rope_theta": 7.0}}, None),
        ({"rope_theta": 7.0}, None),
        ({"rotary_emb_base": 7.0}, None),
        ({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2}}, LinearScaling(2.0)),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "dynamic", "factor": 2.0}}, DynamicNTK(2.0, 64)),
        (
            {"rope_theta": 7.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
            Yarn(4.0, 64, whole=False),
        ),
        (
            {
                "rope_parameters": {
                    "rope_theta": 7.0,
                    "rope_type": "longrope",
                    "short_factor": [1] * 6,
                    "long_factor": [2] * 6,
                    "original_max_position_embeddings": 16,
                }
            },
            LongRope((1.0,) * 6, (2.0,) * 6, 16, 4.0),
        ),
        (
            {
                "rope_theta": 7.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            },
            Llama3(8.0, 1.0, 4.0, 32),
        ),
    ],
)
def test_rotary_parameters_are_read_wherever_they_stand(given, scaling):
    assert read("llama", **given).rotary == Rotary(7.0, scaling=scaling)


def test_yarn_takes_its_factor_from_two_scales():
    given = {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9}
    made = read("llama", rope_parameters=given).rotary.scaling.factor()
    grown = 0.1 * math.log(4.0)
    assert abs(made - (1 + 0.7 * grown) / (1 + 0.9 * grown)) <= standards.value("same.average")


def test_files_of_transformers_4_have_one_scaling_for_layers_that_see_everything():
    old = {"layer_types": ["sliding_attention", "full_attention"], "rope_theta": 9.0, "head_dim": 12}
    old["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    assert read("gemma3_text", 0, rope_local_base_freq=5.0, **old).rotary == Rotary(5.0)
    assert read("gemma3_text", 1, rope_local_base_freq=5.0, **old).rotary == Rotary(9.0, scaling=LinearScaling(2.0))
    assert [read("olmo3", n, **old).rotary.scaling for n in range(2)] == [None, LinearScaling(2.0)]
    assert [read("modernbert", n, layer_types=old["layer_types"]).rotary.theta for n in range(2)] == [1e4, 1.6e5]
    for model_type in ("gemma3_text", "olmo3", "modernbert", "cohere2"):
        with pytest.raises(ValueError, match="has no layer_types, by which its layers differ"):
            read(model_type)


def test_layers_differ_where_the_configuration_says_so():
    types = ["sliding_attention", "full_attention", "full_attention"]
    ropes = {"full_attention": {"rope_theta": 9.0}, "sliding_attention": {"rope_theta": 5.0}}
    gemma = [read("gemma3_text", n, layer_types=types, rope_parameters=ropes, head_dim=12).rotary for n in range(2)]
    assert gemma == [Rotary(5.0), Rotary(9.0)]
    cohere = [read("cohere2", n, layer_types=types).rotary for n in range(2)]
    assert cohere == [Rotary(pairs="interleaved"), None]
    given = {"no_rope_layers": [1, 0, 1], "floor_scale": 4, "attn_scale": 0.5, "rms_norm_eps": 0.1}
    one, other = (read("llama4_text", n, **given) for n in range(2))
    assert one.qk_norm == Norm(eps=0.1, scale="none", after_rotary=True) and one.temperature is None
    assert other.qk_norm is None and other.rotary is None and other.temperature == Temperature(0.5, 4.0)
    assert [read("smollm3", n).rotary is None for n in range(3)] == [False] * 3
    assert read("smollm3", 1, no_rope_layer_interval=2).rotary is None
    assert [read("gpt2", n, scale_attn_by_inverse_layer_idx=True).scale for n in range(2)] == [12**-0.5, 12**-0.5 / 2]


@pytest.mark.parametrize(
    ("model_type", "given", "field", "value"),
    [
        ("gemma2", {"query_pre_attn_scalar": 16, "head_dim": 12}, "scale", 0.25),
        ("gemma2", {}, "softcap", 50.0),
        ("gemma2", {"attn_logit_softcapping": None}, "softcap", None),
        ("glm4", {}, "head_dim", 128),
        ("mixtral", {}, "rotary", Rotary(1e6)),
        ("granite", {"attention_multiplier": 0.3}, "scale", 0.3),
        ("olmo", {"clip_qkv": 3.0}, "clip", Clip(3.0)),
        ("olmo", {}, "clip", None),
        ("olmo2", {"rms_norm_eps": 0.1}, "qk_norm", Norm(eps=0.1, over="all", scale="per_head")),
        ("phi", {"partial_rotary_factor": 0.5}, "rotary", Rotary(width=6)),
        ("mpt", {"d_model": 48, "n_heads": 4, "attn_config": {"clip_qkv": 2.0}}, "clip", Clip(2.0)),
        ("bloom", {"n_head": 4}, "position_bias", Slopes()),
        ("falcon", {"multi_query": True}, "num_kv_heads", 1),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, "num_kv_heads", 2),
        ("qwen2_moe", {"qkv_bias": False}, "qkv_bias", False),
        ("mpnet", {"relative_attention_num_buckets": 16}, "position_bias", T5Table(32, 128)),
        ("bert", {"attention_probs_dropout_prob": 0.3}, "dropout_rate", 0.3),
        ("dinov3_vit", {}, "rotary", Rotary(100.0, axes=(3, 3))),
        (
            "beit",
            {"use_shared_relative_position_bias": True, "use_relative_position_bias": False, "image_size": 32},
            "position_bias",
            WindowTable((2, 2), first=True),
        ),
    ],
)
def test_what_a_family_has_of_its_own_is_read(model_type, given, field, value):
    assert getattr(read(model_type, **given), field) == value


def test_a_window_of_an_image_follows_its_stage():
    swin = {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4], "image_size": 16, "patch_size": 2, "window_size": 5}
    assert read("swin", 0, **swin).position_bias == WindowTable((5, 5))
    assert [read("swinv2", n, **swin).position_bias.window for n in range(3)] == [(5, 5), (4, 4), (4, 4)]
    assert read("swinv2", 1, **swin).embed_dim == 16 and read("swinv2", 1, **swin).num_heads == 4
    with pytest.raises(ValueError, match=r"layer must be in \[0, 3\), got 3"):
        read("swin", 3, **swin)


@pytest.mark.parametrize(
    ("config", "layer", "part", "words"),
    [
        ({"model_type": "lama"}, 0, None, "no layer is known of model type 'lama'; the nearest are llama"),
        ({"model_type": "clip", "text_config": {}}, 0, None, "give config.text_config"),
        ({}, 0, None, "with a model_type"),
        (3, 0, None, "with a model_type"),
        (
            {"model_type": "mistral", "hidden_size": 48, "num_attention_heads": 4},
            0,
            None,
            "the configuration of 'mistral' has no num_key_value_heads",
        ),
        ({"model_type": "gpt_oss", **SIZES}, 0, None, "has no rope_theta"),
        ({"model_type": "bert", **SIZES, "position_embedding_type": "relative_key"}, 0, None, "no part of a layer"),
        ({"model_type": "llama"}, 0, None, "the configuration of 'llama' has no hidden_size"),
        ({"model_type": "llama", **SIZES}, 3, None, r"layer must be in \[0, 3\), got 3"),
        ({"model_type": "llama", **SIZES}, -1, None, r"layer must be in \[0, 3\), got -1"),
        ({"model_type": "llama", **SIZES}, "0", None, "layer must be an int, got '0'"),
        ({"model_type": "llama", **SIZES}, 0, "encoder", "part must be None, 'llama' is one stack"),
        ({"model_type": "t5", "d_model": 48, "num_heads": 4}, 0, None, "part must be one of encoder, decoder, cross"),
        (
            {"model_type": "llama", **SIZES, "rope_scaling": {"rope_type": "spiral"}},
            0,
            None,
            "no rotary scaling 'spiral' is known, only linear",
        ),
        (
            {"model_type": "llama", **SIZES, "rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            0,
            None,
            "needs low",
        ),
    ],
)
def test_what_cannot_be_read_is_named(config, layer, part, words):
    with pytest.raises((TypeError, ValueError), match=words):
        AttentionConfig.from_hf(config, layer, part)
