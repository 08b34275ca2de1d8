"""AttentionConfig: what it resolves and what it refuses."""

import dataclasses

import numpy as np
import pytest

from maskattn.config import AttentionConfig


def test_defaults_follow_from_the_sizes_given():
    config = AttentionConfig(24, 6)
    assert (config.kv_heads, config.qk_head_dim, config.value_head_dim) == (6, 4, 4)
    assert (config.key_dim, config.value_dim, config.output_dim) == (24, 24, 24)
    assert config.softmax_scale == 0.5
    config = AttentionConfig(24, 6, num_kv_heads=2, head_dim=5, v_head_dim=7, kdim=9, vdim=8, out_dim=3, scale=2)
    assert (config.kv_heads, config.qk_head_dim, config.value_head_dim) == (2, 5, 7)
    assert (config.key_dim, config.value_dim, config.output_dim) == (9, 8, 3)
    assert config.softmax_scale == 2.0
    config = AttentionConfig(24, 6, num_kv_heads=2, v_head_dim=3, project=False)
    assert (config.key_dim, config.value_dim, config.output_dim) == (8, 6, 18)


def test_it_is_frozen_hashable_and_plain_data():
    config = AttentionConfig(np.int64(24), np.int32(6), dropout_rate=0)
    assert config == AttentionConfig(24, 6) and hash(config) == hash(AttentionConfig(24, 6))
    assert AttentionConfig(**dataclasses.asdict(config)) == config
    assert type(config.embed_dim) is int and type(config.dropout_rate) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.embed_dim = 3
    assert [field.name for field in dataclasses.fields(AttentionConfig)] == [
        *("embed_dim", "num_heads", "num_kv_heads", "head_dim", "v_head_dim", "kdim", "vdim", "out_dim"),
        *("qkv_bias", "out_bias", "scale", "dropout_rate", "out_dropout_rate", "project", "empty_rows"),
    ]


@pytest.mark.parametrize(
    ("error", "change", "words"),
    [
        (ValueError, {"embed_dim": 0}, "embed_dim must be a positive integer, got 0"),
        (TypeError, {"num_heads": 2.0}, "num_heads must be a positive integer, got 2.0"),
        (TypeError, {"num_heads": True}, "num_heads must be a positive integer, got True"),
        (TypeError, {"embed_dim": None}, "embed_dim must be a positive integer, got None"),
        (ValueError, {"embed_dim": 10}, "embed_dim 10 is not divisible by num_heads 4"),
        (ValueError, {"num_kv_heads": 3}, "num_heads 4 is not divisible by num_kv_heads 3"),
        (TypeError, {"qkv_bias": 1}, "qkv_bias must be True or False, got 1"),
        (ValueError, {"scale": float("inf")}, "scale must be finite, got inf"),
        (TypeError, {"scale": "a"}, "scale must be a number, got 'a'"),
        (ValueError, {"dropout_rate": 1.0}, r"dropout_rate must lie in \[0, 1\), got 1.0"),
        (ValueError, {"out_dropout_rate": -0.1}, r"out_dropout_rate must lie in \[0, 1\), got -0.1"),
        (ValueError, {"empty_rows": "one"}, "empty_rows must be one of zero, mean, nan, error, got 'one'"),
        (ValueError, {"project": False, "head_dim": 5}, "embed_dim must be heads x head width = 20"),
    ],
)
def test_a_wrong_field_is_named(error, change, words):
    with pytest.raises(error, match=words):
        AttentionConfig(**{"embed_dim": 12, "num_heads": 4, **change})


def test_several_faults_are_listed_together():
    with pytest.raises(ValueError) as caught:
        AttentionConfig(10, 4, num_kv_heads=3)
    assert "2 problems" in str(caught.value) and "num_kv_heads" in str(caught.value)
    with pytest.raises(TypeError) as caught:
        AttentionConfig(0, "4", dropout_rate=2.0, empty_rows="x")
    for word in ("4 problems", "embed_dim", "num_heads", "dropout_rate", "empty_rows"):
        assert word in str(caught.value)
