"""AttentionConfig: what it resolves and what it refuses."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from maskattn.config import _PARTS, _RENAMED, AttentionConfig, ConfigOptions


def test_defaults_follow_from_the_sizes_given():
    config = AttentionConfig(24, 6)
    assert (config.num_kv_heads, config.head_dim, config.v_head_dim) == (6, 4, 4)
    assert (config.kdim, config.vdim, config.out_dim) == (24, 24, 24)
    assert config.scale == 0.5
    config = AttentionConfig(24, 6, num_kv_heads=2, head_dim=5, v_head_dim=7, kdim=9, vdim=8, out_dim=3, scale=2)
    assert (config.num_kv_heads, config.head_dim, config.v_head_dim) == (2, 5, 7)
    assert (config.kdim, config.vdim, config.out_dim) == (9, 8, 3)
    assert config.scale == 2.0
    config = AttentionConfig(24, 6, num_kv_heads=2, v_head_dim=3, project=False)
    assert (config.kdim, config.vdim, config.out_dim) == (8, 6, 18)


def test_what_is_said_and_what_follows_are_one_configuration():
    said = AttentionConfig(24, 6, num_kv_heads=6, head_dim=4, v_head_dim=4, kdim=24, vdim=24, out_dim=24, scale=0.5)
    assert said == AttentionConfig(24, 6) and repr(said) == "AttentionConfig(24, 6)"
    for config in (said, AttentionConfig(24, 6, num_kv_heads=2, v_head_dim=3, project=False, softcap=2, sinks=True)):
        assert eval(repr(config)) == config
        assert pickle.loads(pickle.dumps(config)) == copy.copy(config) == config


def test_a_copy_with_other_fields_settles_again_what_followed():
    config = AttentionConfig(24, 6, v_head_dim=3).replace(embed_dim=48, num_heads=4)
    assert config == AttentionConfig(48, 4, v_head_dim=3) and (config.head_dim, config.num_kv_heads) == (12, 4)
    with pytest.raises(ValueError, match="embed_dim 25 is not divisible by num_heads 4"):
        config.replace(embed_dim=25)


def test_names_of_the_version_before_still_read_and_warn():
    config = AttentionConfig(24, 6, num_kv_heads=2)
    for old, new in _RENAMED.items():
        with pytest.warns(DeprecationWarning, match=f"AttentionConfig.{old} is now {new}"):
            assert getattr(config, old) == getattr(config, new)
    with pytest.raises(AttributeError, match="AttentionConfig has no 'kv_head'"):
        _ = config.kv_head


def test_modules_take_each_field_by_name():
    names = [field.name for field in dataclasses.fields(AttentionConfig)]
    assert names == ["embed_dim", "num_heads", *ConfigOptions.__annotations__]


def test_it_is_frozen_hashable_and_plain_data():
    config = AttentionConfig(np.int64(24), np.int32(6), dropout_rate=0)
    assert config == AttentionConfig(24, 6) and hash(config) == hash(AttentionConfig(24, 6))
    assert AttentionConfig(**dataclasses.asdict(config)) == config
    assert type(config.embed_dim) is int and type(config.dropout_rate) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.embed_dim = 3
    assert [field.name for field in dataclasses.fields(AttentionConfig)] == [
        *("embed_dim", "num_heads", "num_kv_heads", "head_dim", "v_head_dim", "kdim", "vdim", "out_dim"),
        *(
            "qkv_bias",
            "out_bias",
            "scale",
            "softcap",
            "sinks",
            *_PARTS,
            "dropout_rate",
            "out_dropout_rate",
            "project",
            "empty_rows",
        ),
    ]


@pytest.mark.parametrize(
    ("error", "change", "words"),
    [
        (ValueError, {"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
        (TypeError, {"num_heads": 2.0}, "num_heads must be an int, got 2.0"),
        (TypeError, {"num_heads": True}, "num_heads must be an int, got True"),
        (TypeError, {"embed_dim": None}, "embed_dim must be an int, got None"),
        (ValueError, {"embed_dim": 10}, "embed_dim 10 is not divisible by num_heads 4"),
        (ValueError, {"num_kv_heads": 3}, "num_heads 4 is not divisible by num_kv_heads 3"),
        (TypeError, {"qkv_bias": 1}, "qkv_bias must be True or False, got 1"),
        (ValueError, {"scale": float("inf")}, "scale .None = 1 . sqrt.D.. must be finite, got inf"),
        (TypeError, {"scale": "a"}, "scale .*must be a number, got .a."),
        (ValueError, {"softcap": 0}, "softcap .* must be positive and finite, got 0.0"),
        (TypeError, {"sinks": 1}, "sinks must be True or False, got 1"),
        (ValueError, {"dropout_rate": 1.0}, r"dropout_rate must be in \[0, 1\), got 1.0"),
        (ValueError, {"out_dropout_rate": -0.1}, r"out_dropout_rate must be in \[0, 1\), got -0.1"),
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
