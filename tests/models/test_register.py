"""`models.register` makes a model type known everywhere that a configuration is read, and `forget` takes it back."""

from __future__ import annotations

import pytest

from maskattn import AttentionConfig, masks, models
from maskattn.layer import from_hf
from maskattn.layer.from_hf import Key
from maskattn.masks.interop import hugging_face_models

CONFIG = {"model_type": "mine", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1}
CONFIG |= {"num_attention_heads": 2, "near": 3}


def test_a_type_is_known_until_it_is_forgotten():
    layer = {**from_hf.ROWS["llama"], "softcap": Key("cap", default=5.0)}
    models.register("mine", {**models.ROWS["llama"], "layers": "blocks.{}"}, layer=layer, mask={"like": "mistral"})
    try:
        table = models.describe(CONFIG)
        assert any(path.startswith("model.blocks.0.") for path, _ in table.leaves())
        assert AttentionConfig.from_hf(CONFIG, 0).softcap == 5.0
        assert masks.for_hf({**CONFIG, "sliding_window": 3}, 0) == masks.Causal() & masks.SlidingWindow(2, None)
    finally:
        models.forget("mine")
    for read in (
        models.describe,
        lambda config: AttentionConfig.from_hf(config, 0),
        lambda config: masks.for_hf(config, 0),
    ):
        with pytest.raises(ValueError, match="mine"):
            read(CONFIG)
    with pytest.raises(KeyError, match="mine"):
        models.forget("mine")


def test_a_mask_that_says_nothing_is_refused_and_nothing_is_registered():
    with pytest.raises(ValueError, match=r'mask must have the key "mask" or "like", got {.window.: 3}'):
        models.register("mine", models.ROWS["llama"], layer=from_hf.ROWS["llama"], mask={"window": 3})
    assert "mine" not in models.ROWS


def test_what_nothing_would_read_is_refused_at_once_with_the_nearest():
    """`{"mask": "casual"}` was a decoder that sees what comes behind, and a key misspelt was left out."""
    row = {**models.ROWS["llama"], "logit_scal": 0.5}
    with pytest.raises(ValueError) as raised:
        models.register("mine", row, layer=from_hf.ROWS["llama"], mask={"mask": "casual", "windows": "near"})
    said = str(raised.value)
    assert "row has no key 'logit_scal'; the nearest are logit_scale" in said
    assert "mask has no key 'windows'; the nearest are window" in said
    assert "mask must be one of causal, everything, bigbird, swin, got 'casual'" in said
    with pytest.raises(ValueError, match=r"like: no row is known of 'mistrl'; the nearest are mistral"):
        models.register("mine", models.ROWS["llama"], layer=from_hf.ROWS["llama"], mask={"like": "mistrl"})
    assert "mine" not in models.ROWS


def test_rows_of_the_library_say_what_is_read():
    for name, row in hugging_face_models._ROWS.items():
        parts = [row] if {"mask", "like"} & row.keys() else row.values()
        assert not [one for part in parts for one in hugging_face_models.mistakes(part)], name


@pytest.mark.parametrize(
    ("twin", "word"), [("jax", "places"), ("jax", "config"), ("torch", "train"), ("torch", "config")]
)
def test_a_tensor_may_not_be_called_as_what_a_model_has(twin, word):
    modules = pytest.importorskip(f"maskattn_{twin}.models")
    row = {**models.ROWS["llama"], "prefix": "", "table": word}
    models.register("mine", row, layer=from_hf.ROWS["llama"], mask={"like": "llama"})
    try:
        with pytest.raises(ValueError, match=f"{word}: a model in .* has '{word}' for something else"):
            modules.Model(models.describe(CONFIG))
    finally:
        models.forget("mine")
