"""Whole models compared layer by layer: one number that is wrong is found, and where."""

import numpy as np
import pytest

from maskattn import models
from maskattn.convert import open_model
from maskattn.convert.compare import compare, compared
from maskattn.convert.twins import TorchModel
from maskattn.models import files, saving
from maskattn.models.sample import sample
from tests.frameworks import in_both

WORDS = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 3, "intermediate_size": 20}
HEADS = {**WORDS, "num_attention_heads": 4, "max_position_embeddings": 64}
T5 = {"vocab_size": 97, "d_model": 24, "d_kv": 6, "d_ff": 20, "num_layers": 3, "num_heads": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
CONFIGS = {
    "bert": {**HEADS, "architectures": ["BertForMaskedLM"]},
    "llama": {**HEADS, "num_key_value_heads": 2, "architectures": ["LlamaForCausalLM"]},
    "vit": {
        **HEADS,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 3,
        "num_labels": 5,
        "architectures": ["ViTForImageClassification"],
    },
    "t5": {**T5, "num_decoder_layers": 3, "architectures": ["T5ForConditionalGeneration"]},
    "mixtral": {**HEADS, **EXPERTS, "architectures": ["MixtralForCausalLM"]},
}
#: (model type, tensor of which one number is changed) -> what differs first.
FAULTS = {
    ("bert", "bert.embeddings.position_embeddings.weight"): "before bert.encoder.layer.0",
    ("bert", "bert.encoder.layer.1.intermediate.dense.weight"): "bert.encoder.layer.1",
    ("bert", "bert.encoder.layer.1.output.LayerNorm.bias"): "bert.encoder.layer.1",
    ("bert", "cls.predictions.transform.dense.weight"): "logits",
    ("llama", "model.layers.1.mlp.down_proj.weight"): "model.layers.1",
    ("llama", "model.layers.1.post_attention_layernorm.weight"): "model.layers.1",
    ("llama", "model.norm.weight"): "model.norm",
    ("llama", "lm_head.weight"): "logits",
    ("vit", "vit.embeddings.patch_embeddings.projection.weight"): "before vit.layers.0",
    ("vit", "vit.layers.1.mlp.fc1.weight"): "vit.layers.1",
    ("vit", "classifier.bias"): "logits",
    ("t5", "encoder.block.1.layer.1.DenseReluDense.wo.weight"): "encoder.block.1",
    ("t5", "encoder.final_layer_norm.weight"): "encoder.final_layer_norm",
    ("t5", "decoder.block.1.layer.1.EncDecAttention.v.weight"): "decoder.block.1",
    ("mixtral", "model.layers.1.mlp.experts.down_proj"): "model.layers.1",
    ("mixtral", "model.layers.1.mlp.gate.weight"): "model.layers.1",
}


def drawn(model_type):
    """A table, and random tensors of it in float32."""
    table = models.describe({"model_type": model_type, **CONFIGS[model_type]})
    draws = np.random.default_rng(3)
    tensors = files.tensors_of(table).items()
    made = {name: draws.standard_normal(tensor.shape, np.float32) * np.float32(0.3) for name, tensor in tensors}
    return table, {name: x + np.float32("norm" in name.lower()) for name, x in made.items()}


def changed(tensors, name):
    """With one number, of the first row, changed."""
    other = tensors[name].copy()
    other.reshape(-1)[2] += np.float32(0.1)
    return {**tensors, name: other}


def first(layers):
    return next((each.name for each in layers if not each.held), None)


@pytest.mark.torch
@pytest.mark.parametrize("model_type", CONFIGS)
def test_one_number_is_found_where_it_shows_first(model_type):
    table, tensors = drawn(model_type)
    given = sample(table, {})
    model = TorchModel(table, lambda name, tensor: tensors[name], "float32", blocks=True)
    theirs, right = model(given), model(given, "float64")
    for name, expected in ((name, first) for (kind, name), first in FAULTS.items() if kind == model_type):
        wrong = changed(tensors, name)
        ours = TorchModel(table, lambda name, tensor, held=wrong: held[name], "float32", blocks=True)(given)
        layers = list(compared(ours, theirs, right))
        assert first(layers) == expected, name
        assert [each.name for each in layers if each.name.startswith("before ")]
        assert all(0 <= each.error <= each.limit for each in layers if each.held)


@in_both
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_file_in_jax_is_held_to_its_source_in_pytorch(model_type, tmp_path):
    table, tensors = drawn(model_type)
    name, expected = next((name, first) for (kind, name), first in FAULTS.items() if kind == model_type and "1" in name)
    origin = files.Origin({"model_type": model_type, **CONFIGS[model_type]})
    for folder, held in (("one", tensors), ("two", changed(tensors, name))):
        saving.save(table, origin, held, lambda tensor, array: array, tmp_path / folder)
    told = []
    with open_model(tmp_path / "one") as source, open_model(tmp_path / "two") as written:
        layers = compare(source, written, progress=told.append)
        assert first(layers) == expected
        fine = {each.name: each for each in layers[: [each.name for each in layers].index(expected)]}
        assert all(each.held for each in fine.values()) and "the file in JAX" in told
    assert {"hidden", "logits"} <= {each.name for each in layers}


@pytest.mark.torch
def test_what_one_side_lacks_differs_but_where_it_was_left_out():
    one = np.ones((2, 3, 4), np.float32)
    runs = {"hidden": one, "logits": one, "masked": one > 0}
    assert first(compared({"hidden": one, "masked": one > 0}, runs, runs)) == "logits"
    assert first(compared({**runs, "logits": one[:1]}, runs, runs)) == "logits"
    assert first(compared({**runs, "masked": one < 0}, runs, runs)) == "masked"
    assert first(compared(runs, runs, runs)) is None
