"""Models of llama.cpp: .gguf files of the family of Llama, dequantized by the `gguf` package."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskattn import checkpoints
from maskattn._hf_config import Value, nearest
from maskattn.checkpoints import TensorInfo
from maskattn.typing import NumPyArray

#: Kinds of tensors that are read.
PLAIN = ("F32", "F16", "BF16", "F64", "Q4_0", "Q4_1", "Q8_0")
#: Architectures -> the model type, and whether rows of queries and keys are in llama.cpp's order.
_KNOWN = {"llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False)}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Keys of the configuration -> what a file calls them, behind its architecture.
_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
}
_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


class Packed:
    """A .gguf file as a source of tensors (`maskattn.models.files.Source`), which are float32."""

    def __init__(self, path: Path, tensors: Mapping[str, Any], config: Mapping[str, Value], turned: bool) -> None:
        self.where, self.config, self._tensors, self._turned = str(path), config, tensors, turned
        ends = {key: config[key] for key in _TOKENS if key in config}
        self.generation: Mapping[str, Value] = ends
        self.infos = {name: TensorInfo(_shape(each), np.dtype(np.float32)) for name, each in tensors.items()}

    def __getitem__(self, name: str) -> NumPyArray:
        given, shape = self._tensors[name], self.infos[name].shape
        made = importlib.import_module("gguf").quants.dequantize(given.data, given.tensor_type)
        made = np.asarray(made, np.float32).reshape(shape)
        out = checkpoints.KEPT.empty(shape, np.dtype(np.float32))
        heads = self._heads(name)
        if heads:
            pairs = made.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2)
            np.copyto(out.reshape(pairs.shape), pairs)
        else:
            np.copyto(out, made)
        return out

    def _heads(self, name: str) -> int:
        """How many heads' rows are to be put back: llama.cpp has the two of each pair that turns beside each other."""
        if not self._turned or ".self_attn." not in name:
            return 0
        which = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        return int(self.config[which[name.split(".")[-2]]]) if name.split(".")[-2] in which else 0

    def part(self, name: str, index: tuple[slice, ...]) -> NumPyArray:
        return self[name][index]

    def each(self, names: Sequence[str], work: Callable[[str, NumPyArray], None]) -> None:
        """See `Source`."""
        for name in names:
            work(name, self[name])


def found(path: Path) -> Path | None:
    """The .gguf file that is meant: this one, or the only file with weights in a folder."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    others = [file for end in ("safetensors", "bin", "msgpack", "index.json") for file in path.glob(f"*.{end}")]
    return files[0] if len(files) == 1 and not others else None


def read(path: Path) -> Packed:
    """Opens a file.

    Raises:
        ImportError: the `gguf` package is missing.
        ValueError: an architecture, a kind of tensors or a rotary embedding that is not read here, by its name.
    """
    try:
        gguf = importlib.import_module("gguf")
    except ImportError as error:
        raise ImportError(
            f"{path}: reading .gguf files needs the gguf package: pip install 'maskattn[gguf]'"
        ) from error
    reader = gguf.GGUFReader(path)
    told = {name: each.contents() for name, each in reader.fields.items() if not name.startswith("tokenizer.ggml.t")}
    kind = str(told.get("general.architecture", ""))
    if kind not in _KNOWN:
        raise ValueError(f"{path}: architecture {kind!r} of .gguf files is not read here; {nearest(kind, _KNOWN)}")
    model_type, turned = _KNOWN[kind]
    reasons = _unknown(kind, told, reader.tensors)
    tensors: dict[str, Any] = {}
    for each in reader.tensors:
        name = _name(each.name)
        if name is None:
            reasons.append(f"{each.name}: not known of {kind}")
        else:
            tensors[name] = each
    if reasons:
        raise ValueError("\n  ".join([f"{path} cannot be read:", *reasons[:20]]))
    config = {key: told[f"{kind}.{name}"] for key, name in _KEYS.items() if f"{kind}.{name}" in told}
    config |= {key: told[n] for key, end in _TOKENS.items() if (n := f"tokenizer.ggml.{end}_token_id") in told}
    tied = "lm_head.weight" not in tensors
    names = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
    config |= {
        "model_type": model_type,
        "architectures": [name for name, each in names.items() if each == model_type],
        "vocab_size": _shape(tensors["model.embed_tokens.weight"])[0],
        "tie_word_embeddings": tied,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in tensors and model_type != "qwen2",
        "hidden_act": "silu",
    }
    return Packed(path, tensors, config, turned)


def _unknown(kind: str, told: Mapping[str, Value], tensors: Sequence[Any]) -> list[str]:
    """What a file says that is not read here."""
    scaling = told.get(f"{kind}.rope.scaling.type", "none")
    reasons = [] if scaling == "none" else [f"rope.scaling.type {scaling!r}: rotary positions that are scaled"]
    turns, width = told.get(f"{kind}.rope.dimension_count"), told.get(f"{kind}.attention.key_length")
    if width is None and f"{kind}.attention.head_count" in told:
        width = told[f"{kind}.embedding_length"] // told[f"{kind}.attention.head_count"]
    if turns is not None and turns != width:
        reasons.append(f"rope.dimension_count {turns}: only whole heads of {width} turn")
    if told.get(f"{kind}.expert_count"):
        reasons.append(f"expert_count {told[f'{kind}.expert_count']}: mixtures of experts")
    others = sorted({each.tensor_type.name for each in tensors} - {*PLAIN})
    reasons += [f"tensors of kind {name}: read are {', '.join(PLAIN)}" for name in others]
    return reasons


def _name(name: str) -> str | None:
    """What Hugging Face calls a tensor."""
    stem, _, end = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, inner = stem.split(".", 2)
        return f"model.layers.{layer}.{_NAMES[inner]}.{end}" if inner in _NAMES else None
    return f"{_NAMES[stem]}.{end}" if stem in _NAMES else None


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))
