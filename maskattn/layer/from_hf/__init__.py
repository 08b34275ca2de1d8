"""Layers of Hugging Face models: one row for each model type, that says which keys of a configuration mean what.

>>> from maskattn import AttentionConfig
>>> AttentionConfig.from_hf({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}, 0)
AttentionConfig(64, 4, qkv_bias=False, out_bias=False, rotary=Rotary())

A model type that is not known is added by a row of one's own:

>>> from maskattn.layer import from_hf
>>> from_hf.register("my_llama", {**from_hf.ROWS["llama"], "qkv_bias": True})
>>> AttentionConfig.from_hf({"model_type": "my_llama", "hidden_size": 64, "num_attention_heads": 4}, 0).qkv_bias
True
>>> del from_hf.ROWS["my_llama"]
"""

from __future__ import annotations

from maskattn._hf_config import Reading, Value, row_of
from maskattn.layer.from_hf._decoders import DECODERS
from maskattn.layer.from_hf._encoders import ENCODERS
from maskattn.layer.from_hf._specs import Every, Half, Key, Made, Merged, Named, Root, Rope, Row, When, settled
from maskattn.layer.from_hf._stacks import STACKS
from maskattn.layer.from_hf._vision import VISION, has_table, stage_of

__all__ = [
    "ROWS",
    "Every",
    "Half",
    "Key",
    "Made",
    "Merged",
    "Named",
    "Rope",
    "Root",
    "Row",
    "When",
    "fields_of",
    "has_table",
    "register",
    "settled",
    "stage_of",
]

#: model type -> its row: a field of `AttentionConfig` -> what it is, or a key that says so (`_specs.py`).
ROWS: dict[str, Row] = {**DECODERS, **ENCODERS, **STACKS, **VISION}

#: The attentions of a model with an encoder and a decoder.
PARTS = ("encoder", "decoder", "cross")


def register(model_type: str, row: Row) -> None:
    """Make `AttentionConfig.from_hf` know a model type, by a row such as those of `ROWS`."""
    ROWS[model_type] = row


def fields_of(config: object, layer: int, part: str | None = None) -> dict[str, Value]:
    """The fields of the `AttentionConfig` of one layer.

    Args:
        config: a Hugging Face configuration, or the dict of its config.json.
        layer: from 0.
        part: "encoder", "decoder" or "cross", of models that have an encoder and a decoder.

    Raises:
        TypeError: config is no configuration, or layer no int.
        ValueError: no row of its model type, with the nearest ones; a key is missing; no such layer; the part is
            left open, or the model has one stack.
    """
    reading = Reading(config, layer, "AttentionConfig.from_hf")
    row = row_of(reading, ROWS, "layer")
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"{reading.where}: layer must be an int, got {layer!r}")
    two = reading.model_type in STACKS
    if two != (part in PARTS):
        meant = f"one of {', '.join(PARTS)}" if two else f"None, {reading.model_type!r} is one stack of layers"
        raise ValueError(f"{reading.where}: part must be {meant}, got {part!r}")
    layers = reading.get(*_LAYERS.get(part or "", ()), "num_hidden_layers", "n_layer", "n_layers", default=None)
    if layer < 0 or (isinstance(layers, int) and layer >= layers and reading.get("depths", default=None) is None):
        raise ValueError(f"{reading.where}: layer must be in [0, {layers}), got {layer}")
    made = {name: settled(spec, reading, part or "") for name, spec in row.items()}
    return {name: value for name, value in made.items() if value is not None}


_LAYERS = {
    "encoder": ("encoder_layers", "num_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers", "num_layers"),
    "cross": ("decoder_layers", "num_decoder_layers", "num_layers"),
}
