"""What a config.json says of a checkpoint: heads, layers, the type of the model. Meta's is params.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskattn.convert._companions import BESIDE, CONFIGS

HEADS = "num_attention_heads|num_heads|n_head|n_heads"
KV_HEADS = "num_key_value_heads|num_kv_heads|n_kv_heads"
"""Where configurations say how many heads there are: keys joined by dots, alternatives by a bar."""


def beside(checkpoint: Path, named: Path | None = None) -> dict[str, Any]:
    """The configuration ``named``, or the one that is the checkpoint's own or in its folder; {} where there is none."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    own = () if checkpoint.is_dir() else (folder / (checkpoint.name + BESIDE),)
    files = [file for file in (*own, *(folder / name for name in CONFIGS)) if file.is_file()]
    if named is None and not files:
        return {}
    file = named or files[0]
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); name another, or give the number of heads") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(data).__name__}")
    return data


def look_up(model_config: Mapping[str, object], paths: str, index: int | None = None) -> Any:
    """The value at the first of ``paths`` that a config.json has; None where it has none.

    Keys are joined by dots, alternatives by bars. A list gives its entry of ``index``: sizes that differ from stage to
    stage.
    """
    for path in paths.split("|"):
        value: Any = model_config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, list):
            value = value[index] if index is not None and 0 <= index < len(value) else None
        if value is not None:
            return value
    return None


def is_params(model_config: Mapping[str, object]) -> bool:
    """Whether it is a params.json of Meta's, which names no type of model."""
    return "model_type" not in model_config and all(type(model_config.get(n)) is int for n in ("dim", "n_layers"))


def as_hugging_face(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """A params.json as the config.json of such a Llama; any other as it is."""
    if not is_params(model_config):
        return dict(model_config)
    dim, vocabulary = model_config["dim"], model_config.get("vocab_size", 0)
    named = {"n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads"}
    made = {"hidden_size": dim, **{key: model_config[name] for name, key in named.items() if name in model_config}}
    made |= {"vocab_size": vocabulary} if vocabulary > 0 else {}
    multiple, factor = model_config.get("multiple_of"), model_config.get("ffn_dim_multiplier") or 1
    if type(multiple) is int and multiple > 0:
        made["intermediate_size"] = -(-int(factor * int(8 * dim / 3)) // multiple) * multiple
    return {**model_config, **made}


def heads(model_config: Mapping[str, object]) -> tuple[int | None, int | None]:
    """Query heads and key/value heads; None where it does not say, or not by a number that they could have."""
    values = [look_up(model_config, paths) for paths in (HEADS, KV_HEADS)]
    number, kv_number = (value if type(value) is int and value > 0 else None for value in values)
    return number, kv_number
