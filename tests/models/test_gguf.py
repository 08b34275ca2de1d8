"""Models of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskattn import models
from maskattn.models import files
from tests.twin import twin

__all__ = ["twin"]

gguf = pytest.importorskip("gguf")

pytestmark = pytest.mark.hurried
CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def written(path: Path, kind: str, architecture: str = "llama", **more: Any) -> dict[str, np.ndarray]:
    """A file as llama.cpp's converter writes it; what its numbers are when read, under Hugging Face's names."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_eos_token_id(2)
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    draws, expected = np.random.default_rng(0), {}
    for name, tensor in files.tensors_of(models.describe(CONFIG)).items():
        x = draws.standard_normal(tensor.shape).astype(np.float32)
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0)
        stored = x
        if heads and architecture == "llama":  # as convert_hf_to_gguf.py has it
            stored = x.reshape(heads, 2, 16 // 2, 64).swapaxes(1, 2).reshape(x.shape)
        which = gguf.GGMLQuantizationType["F32" if x.ndim == 1 else kind]
        raw = gguf.quants.quantize(stored, which)
        back = gguf.quants.dequantize(raw, which)
        if heads and architecture == "llama":
            back = back.reshape(heads, 8, 2, 64).swapaxes(1, 2).reshape(x.shape)
        expected[name] = back
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, raw, raw_dtype=which)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
def test_kinds_of_tensors(kind: str, tmp_path: Path, twin: Any) -> None:
    expected = written(tmp_path / "m.gguf", kind)
    model = twin.models.load(tmp_path / "m.gguf")
    twin.models.save(model, tmp_path / "out")
    from maskattn import checkpoints

    with checkpoints.open(tmp_path / "out") as reader:
        assert {name: reader[name].tobytes() for name in reader} == {n: x.tobytes() for n, x in expected.items()}
    assert model.config["tie_word_embeddings"] and model.config["num_key_value_heads"] == 2
    assert model.config["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"architecture": "bloom"}, "architecture 'bloom'"),
        ({"rope_scaling_type": gguf.RopeScalingType.YARN}, "rope.scaling.type 'yarn'"),
        ({"expert_count": 4}, "mixtures of experts"),
    ],
)
def test_what_is_not_read_is_refused_by_name(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    from tests.twin import load

    written(tmp_path / "m.gguf", "F32", **more)
    with pytest.raises(ValueError, match=words):
        load("torch").models.load(tmp_path / "m.gguf")
