"""What a configuration says changes our models as it changes transformers' own, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from maskattn import models
from maskattn.parity.models.tiny import TINY
from tests.parity.models.options import tried

pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

#: What is tried each time; the other rows are marked slow.
FEW = ("gemma2", "stablelm", "gptj", "falcon", "roberta")


@pytest.mark.parametrize("name", [x if x in FEW else pytest.param(x, marks=pytest.mark.slow) for x in TINY])
def test_every_option_is_followed_or_refused(name: str) -> None:
    found = list(tried(name, TINY[name]))
    assert [outcome for *_, outcome in found].count("same") >= 5
    assert not [each for each in found if each[2].startswith("DIFFERS")]


@pytest.mark.parametrize("name", TINY)
def test_a_file_says_what_the_configuration_does(name: str) -> None:
    """Whole, without what is as transformers has it, and with what the tiny row gives alone: defaults are the same."""
    import transformers

    tiny = TINY[name]
    config: Any = transformers.AutoConfig.for_model(name.partition("+")[0], **tiny.config)
    expected = models.describe(config)
    assert models.describe(config.to_dict()) == expected
    for given in (config.to_diff_dict(), {**tiny.config, "model_type": config.model_type}):
        try:
            assert models.describe(given) == expected
        except ValueError as error:  # what has no default
            assert "has no" in str(error)


@pytest.mark.parametrize(
    "near", ["llama4", "qwen4", "gemma3n_text", "olmo9", "gpt_neox_japanese", "modernbert-decoder"]
)
def test_near_types_are_refused_by_name(near: str) -> None:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2, "vocab_size": 97}
    with pytest.raises(ValueError, match=f"{near}.*the nearest are"):
        models.describe({"model_type": near, **sizes})


def test_what_is_refused_says_why() -> None:
    with pytest.raises(ValueError, match="use_bidirectional_attention=True is refused: transformers' own"):
        models.describe({"model_type": "gemma", "use_bidirectional_attention": True})
    with pytest.raises(ValueError, match="add_cross_attention=True is refused: layers with cross-attention"):
        models.describe({"model_type": "bert", "add_cross_attention": True})


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("big_bird", {"is_decoder": True, "attention_type": "block_sparse"}, "is_decoder with .* is refused"),
        ("deepseek_v3", {"n_group": 3}, "equal groups.* got 8 experts in 3 groups"),
        ("deepseek_v3", {"num_experts_per_tok": 5}, "so many are kept that 5 can be picked .* of which 2 are kept"),
        ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "mish"}, "activation must be one of .*, got 'mish'"),
    ],
)
def test_what_transformers_alone_could_say_is_refused(name: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        models.describe({**TINY[name].config, "model_type": name, **more})


def test_t5_says_its_mlp_twice() -> None:
    """`dense_act_fn` and `is_gated_act` count, where they are given."""
    config = {**TINY["t5"].config, "model_type": "t5"}
    for options, activation, gated in (
        ({"feed_forward_proj": "gated-gelu"}, "gelu_tanh", True),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "gelu", True),
        ({"feed_forward_proj": "relu", "is_gated_act": True}, "relu", True),
        ({"feed_forward_proj": "silu"}, "silu", False),
    ):
        mlp = models.describe({**config, **options}).stacks()[0].blocks[0].mlp
        assert (mlp.activation, type(mlp).__name__ == "Gated") == (activation, gated)


def test_an_encoder_alone_is_no_decoder() -> None:
    config = {**TINY["t5+encoder"].config, "model_type": "t5"}
    whole = [f"{path}.{name}" for path, leaf in models.describe(config).leaves() for name in leaf.tensors()]
    names = [name for name in whole if not name.startswith("decoder")]
    assert models.describe(config, names).model_type == "t5"
    with pytest.raises(ValueError, match="is_decoder=True is refused: its encoder would be a decoder"):
        models.describe({**config, "is_decoder": True}, names)
