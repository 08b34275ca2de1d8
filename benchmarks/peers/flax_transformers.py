"""What the Flax classes of transformers 4 compute: tiny models of each, for `tests/models/test_flax_classes.py`.

    python -m venv flax && flax/bin/pip install transformers==4.57.6 jax==0.4.35 flax==0.10.2 'numpy<2.2'
    flax/bin/python benchmarks/peers/flax_transformers.py --json tests/models/flax_transformers.json

transformers 5 has none of them; this runs where an older one is installed, without maskattn. Of every class with a
model it records the configuration that it writes, the tree of its parameters (names and shapes), and the first numbers
of what it makes of inputs and parameters that depend on their names and shapes alone (`numbers`).
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROWS, LENGTH, KEPT = 2, 7, 8
#: Keys of a configuration that say nothing of the model.
UNTOLD = ("transformers_version", "label2id", "task_specific_params", "use_cache")
_TOKENS = {"vocab_size": 37, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 16}
_BERT = {**_TOKENS, **_SIZES, "intermediate_size": 20, "num_labels": 3}
_EACH = {"layers": 1, "attention_heads": 4, "ffn_dim": 20}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 4}
_STACKS = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in _EACH.items()}
_BART = {
    **_TOKENS,
    **_STACKS,
    "d_model": 24,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 2,
    "num_labels": 3,
}
_T5 = {**_TOKENS, "d_model": 24, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_GPT = {**_TOKENS, "n_embd": 24, "n_layer": 1, "n_head": 4, "n_positions": 16, "n_inner": 20}
_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 3}
_IMAGE = {**_BERT, "image_size": 16, "patch_size": 8}
_CONVS = {"conv_dim": [8, 8], "conv_kernel": [5, 3], "conv_stride": [4, 2], "feat_extract_norm": "layer"}
_PLACES = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "do_stable_layer_norm": True}
_CODES = {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4}
_FRAMES = {"num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 16, "classifier_proj_size": 8}
_DISTIL = {"dim": 24, "n_layers": 1, "n_heads": 4, "hidden_dim": 20, "max_position_embeddings": 16}
_TEXT, _PICTURE = ({**each, "projection_dim": 12} for each in (_BERT, _IMAGE))
#: model type -> options of a tiny model.
TINY: Mapping[str, Mapping[str, Any]] = {
    "albert": {**_BERT, "embedding_size": 12, "inner_group_num": 1},
    "bart": _BART,
    "beit": {**_IMAGE, "use_relative_position_bias": True, "use_mask_token": True},
    "bert": _BERT,
    "big_bird": {**_BERT, "attention_type": "original_full", "block_size": 4},
    "bloom": {**_TOKENS, "hidden_size": 24, "n_layer": 1, "n_head": 4},
    "clip": {"text_config": _TEXT, "vision_config": _PICTURE, "projection_dim": 12},
    "clip_text_model": _TEXT,
    "clip_vision_model": _PICTURE,
    "dinov2": {**_IMAGE, "mlp_ratio": 2},
    "distilbert": {**_TOKENS, **_DISTIL},
    "electra": {**_BERT, "embedding_size": 12},
    "gemma": _LLAMA,
    "gpt2": _GPT,
    "gpt_neo": {**_TOKENS, **_NEO, "hidden_size": 24, "intermediate_size": 20, "max_position_embeddings": 16},
    "gptj": {**_GPT, "rotary_dim": 4},
    "llama": _LLAMA,
    "longt5": {**_T5, "local_radius": 3, "encoder_attention_type": "local"},
    "marian": {**_BART, "decoder_start_token_id": 1},
    "mbart": _BART,
    "mistral": _LLAMA,
    "mt5": _T5,
    "opt": {**_TOKENS, **_SIZES, "word_embed_proj_dim": 24, "ffn_dim": 20},
    "pegasus": _BART,
    "roberta": _BERT,
    "t5": _T5,
    "vit": _IMAGE,
    "wav2vec2": {**_BERT, **_CONVS, **_PLACES, **_CODES},
    "whisper": {**_BART, **_FRAMES, "suppress_tokens": None, "begin_suppress_tokens": None},
    "xlm-roberta": _BERT,
}


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of a parameter, or of an input: of its name and shape, float32."""
    made = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    return made * np.float32(0.2) + np.float32(name.endswith(("scale", "LayerNorm/weight", "weight_g")))


def tokens(name: str) -> np.ndarray:
    """Token ids [ROWS, LENGTH], without special ones."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(5, 37, (ROWS, LENGTH))


def inputs(model_type: str, class_name: str) -> dict[str, np.ndarray]:
    """What a class is called with; the second row's last two tokens are padding."""
    if model_type in ("vit", "beit", "dinov2", "clip_vision_model"):
        return {"pixel_values": numbers("images", (ROWS, 3, 16, 16))}
    if model_type == "wav2vec2":
        return {"input_values": numbers("sound", (ROWS, 120))}
    if model_type == "whisper":
        given: dict[str, np.ndarray] = {"input_features": numbers("features", (ROWS, 4, 16))}
        return given if "Classification" in class_name else given | {"decoder_input_ids": tokens("decoder")}
    mask = np.ones((ROWS, LENGTH), np.int64)
    mask[1, -2:] = 0
    ids = np.where(mask == 1, tokens("tokens"), 1)
    if model_type in ("clip", "clip_text_model", "bart", "mbart"):
        ids[:, -3] = 2  # the end of a text, by which CLIP pools and BART labels
    given = {"input_ids": ids, "attention_mask": mask}
    if model_type == "electra":
        given["token_type_ids"] = np.zeros_like(ids)  # where they are not given, its Flax classes take 1 for 0
    if model_type == "clip":
        given["pixel_values"] = numbers("images", (ROWS, 3, 16, 16))
    writes = ("bart", "mbart", "pegasus", "marian", "t5", "mt5", "longt5")
    if model_type in writes and "Encoder" not in class_name and "CausalLM" not in class_name:
        given["decoder_input_ids"] = tokens("decoder")
    return given


def some(x: np.ndarray) -> np.ndarray:
    """Numbers of an output, from the first to the last of its first row, which has no padding; [KEPT]."""
    row = x[0].reshape(-1) if x.ndim else x.reshape(-1)
    return row[np.linspace(0, row.size - 1, KEPT).astype(int)]


def _mapped(tree: Any, work: Callable[[str, Any], Any], path: str = "") -> Any:
    """The same tree, of what `work` makes of a parameter's name and numbers."""
    if not isinstance(tree, Mapping):
        return work(path, tree)
    return {name: _mapped(each, work, f"{path}/{name}".lstrip("/")) for name, each in tree.items()}


def record(cls: Any) -> dict[str, Any]:
    """One class."""
    import tempfile

    import flax.serialization

    model_type = cls.config_class.model_type
    if model_type not in TINY:
        return {"model_type": model_type}
    options = dict(TINY[model_type])
    if "CausalLM" in cls.__name__ and model_type in ("bert", "big_bird", "electra", "roberta", "xlm-roberta"):
        options["is_decoder"] = True
    if "QuestionAnswering" in cls.__name__:
        options["num_labels"] = 2
    shape = {"wav2vec2": {"input_shape": (1, 120)}, "whisper": {"input_shape": (1, 4, 16)}}.get(model_type, {})
    model = cls(cls.config_class(**options), seed=0, **shape)
    model.params = _mapped(model.params, lambda name, x: numbers(name, x.shape))
    given = inputs(model_type, cls.__name__)
    if "MultipleChoice" in cls.__name__:
        given = {name: x[None] for name, x in given.items()}
    out = model(**given)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        config = {name: value for name, value in config.items() if name not in UNTOLD}
        tree = flax.serialization.msgpack_restore((Path(folder) / "flax_model.msgpack").read_bytes())
    outputs = {name: np.asarray(value, np.float32) for name, value in out.items() if hasattr(value, "shape")}
    return {
        "model_type": model_type,
        "config": config,
        "parameters": _mapped(tree, lambda name, x: x.shape),
        "outputs": {
            name: {"shape": x.shape, "some": [round(float(n), 7) for n in some(x)]} for name, x in outputs.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", required=True)
    parser.add_argument("--only", metavar="NAME")
    arguments = parser.parse_args()
    import flax
    import jax
    import transformers

    base = transformers.FlaxPreTrainedModel
    names = [n for n in dir(transformers) if n.startswith("Flax") and not n.endswith("PreTrainedModel")]
    classes = {n: getattr(transformers, n) for n in names if not arguments.only or arguments.only in n}
    known = {n: cls for n, cls in classes.items() if isinstance(cls, type) and issubclass(cls, base)}
    found = {name: record(cls) for name, cls in known.items()}
    made = {"transformers": transformers.__version__, "jax": jax.__version__, "flax": flax.__version__}
    lines = [f"{json.dumps(name)}: {json.dumps(each, separators=(',', ':'))}" for name, each in found.items()]
    head = ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in made.items())
    text = "{\n" + head + ',\n"classes": {\n' + ",\n".join(lines) + "\n}}\n"
    Path(arguments.json).write_text(text, encoding="utf-8")
    print(len(found), "classes")


if __name__ == "__main__":
    main()
