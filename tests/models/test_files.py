"""Models out of files and back: every tensor, byte for byte, whichever form the file has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskattn import checkpoints, convert, models, standards
from maskattn.models import files, forms
from maskattn.parity.models.peer import Peer
from maskattn.parity.models.tiny import TINY
from tests.twin import load as framework, twin

pytestmark = pytest.mark.hurried

__all__ = ["twin"]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}


def drawn(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Numbers for every tensor of a model, by the model's names."""
    draws = np.random.default_rng(0)
    tensors = files.tensors_of(models.describe(config))
    return {name: draws.standard_normal(tensor.shape).astype(np.float32) for name, tensor in tensors.items()}


def written(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], name: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    checkpoints.save(folder / (name or "model.safetensors"), tensors, metadata={"format": "pt"} if not name else None)
    checkpoints.write_json(folder / "config.json", config)
    return folder


def tensors_in(folder: Path) -> dict[str, tuple[Any, ...]]:
    with checkpoints.open(folder) as reader:
        return {name: (reader[name].dtype, reader[name].shape, reader[name].tobytes()) for name in sorted(reader)}


@pytest.mark.parametrize("variants", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["rows", "variants"])
def test_every_row_comes_back_byte_for_byte(twin: Any, tmp_path: Path, variants: bool) -> None:
    """What transformers writes of a tiny model: its names, shapes and bytes, and config.json."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    for name, tiny in TINY.items():
        if ("+" in name) != variants:
            continue
        folder = tmp_path / name
        Peer.of(name, tiny).model.save_pretrained(folder)
        model = twin.models.load(folder)
        twin.models.save(model, folder / "out")
        assert tensors_in(folder / "out") == tensors_in(folder), name
        assert (folder / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes(), name
        assert model.config == json.loads((folder / "config.json").read_bytes())
        shutil.rmtree(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.language_model."])
def test_names_behind_a_prefix_are_told_from_what_is_missing(twin: Any, tmp_path: Path, prefix: str) -> None:
    tensors = {f"{prefix}{name}": array for name, array in drawn(LLAMA).items()}
    tensors["step"] = np.ones(1, np.float32)
    with pytest.raises(ValueError, match=f"names begin with '{prefix}'.*llama.*--strip-prefix {prefix} writes"):
        twin.models.load(written(tmp_path / "a", LLAMA, tensors))


def test_what_is_wrong_is_said_at_once(twin: Any, tmp_path: Path) -> None:
    tensors = drawn(LLAMA)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.1.self_attn.q_prj.weight"] = np.ones(3, np.float32)
    tensors["model.norm.weight"] = np.ones(25, np.float32)
    tensors["model.layers.1.input_layernorm.weight"] = np.ones(24, np.int8)
    with pytest.raises(ValueError, match="is not a whole llama") as error:
        twin.models.load(written(tmp_path / "a", LLAMA, tensors))
    for part in (
        "model.layers.0.mlp.up_proj.weight: missing, expected [20, 24]",
        "model.layers.1.self_attn.q_prj.weight: a llama has no such tensor; the nearest that it has is "
        "model.layers.1.self_attn.q_proj.weight",
        "model.norm.weight: has shape [25], expected [24]",
        "model.layers.1.input_layernorm.weight: is int8",
    ):
        assert part in str(error.value)


def test_loading_says_what_it_took(twin: Any, tmp_path: Path) -> None:
    tensors, taken = drawn(LLAMA), []
    twin.models.load(written(tmp_path, LLAMA, tensors), progress=lambda *one: taken.append(one))
    assert sorted(taken) == sorted((name, x.nbytes) for name, x in tensors.items())


def test_a_head_is_tied_where_its_numbers_are_the_tables(twin: Any, tmp_path: Path) -> None:
    config = {**LLAMA, "tie_word_embeddings": True}
    tensors = drawn(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model = twin.models.load(written(tmp_path / "tied", config, tensors))
    assert model.table.head.tied is not None
    twin.models.save(model, tmp_path / "out")
    assert tensors_in(tmp_path / "out") == tensors_in(tmp_path / "tied")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    model = twin.models.load(written(tmp_path / "apart", config, tensors))
    assert model.table.head.tied is None
    twin.models.save(model, tmp_path / "out2")
    assert tensors_in(tmp_path / "out2") == tensors_in(tmp_path / "apart")


def test_old_names_and_tables_that_nobody_reads_come_back(twin: Any, tmp_path: Path) -> None:
    tensors = drawn(BERT)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): x for name, x in tensors.items()}
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"]
    old["bert.embeddings.position_ids"] = np.arange(16)[None]
    old["cls.seq_relationship.weight"] = np.ones((2, 24), np.float32)
    model = twin.models.load(written(tmp_path / "old", BERT, old))
    twin.models.save(model, tmp_path / "out")
    assert tensors_in(tmp_path / "out") == tensors_in(tmp_path / "old")


def test_frequencies_are_those_of_the_file(twin: Any, tmp_path: Path) -> None:
    """ESM-2's files have them in each layer, some rounded to 16 bits; transformers reads the first layer's."""
    peer = Peer.of("esm", TINY["esm"])
    (name,) = (name for name in peer.tensors if name.endswith("inv_freq"))
    drawn = peer.tensors.pop(name)
    held = {f"esm.encoder.layer.{n}.attention.self.rotary_embeddings.inv_freq": drawn + n for n in range(2)}
    source = written(tmp_path / "in", peer.config.to_dict(), {**peer.tensors, **held})
    model, batch = twin.models.load(source), peer.batch(TINY["esm"])
    theirs = peer.run(batch)[0]["logits"]
    ours = model(*(twin.array(batch[key]) for key in ("input_ids", "attention_mask"))).logits
    keep = peer.kept(batch, "logits", theirs.shape)
    assert standards.model_share(twin.to_numpy(ours)[keep], theirs[keep]) <= 1
    twin.models.save(model, tmp_path / "out")
    assert tensors_in(tmp_path / "out") == tensors_in(source)


@pytest.mark.parametrize("name", ["opt", "bert", "llama"])
def test_a_base_model_is_published_without_its_prefix(name: str, tmp_path: Path) -> None:
    peer = Peer.of(name, TINY[name])
    peer.model.base_model.save_pretrained(tmp_path)
    assert framework("torch").models.load(tmp_path).table.head is None


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.npz", "flax_model.msgpack"])
def test_other_formats_are_read(name: str, tmp_path: Path) -> None:
    made = framework("torch").models
    tensors = drawn(LLAMA)
    if name.endswith("bin"):
        torch = framework("torch").framework
        (tmp_path / "a").mkdir()
        torch.save({key: torch.tensor(x) for key, x in tensors.items()}, tmp_path / "a" / name)
        checkpoints.write_json(tmp_path / "a" / "config.json", LLAMA)
    else:
        written(tmp_path / "a", LLAMA, tensors, name)
    state = made.load(tmp_path / "a").state_dict()
    assert {key: x.numpy().tobytes() for key, x in state.items()} == {key: x.tobytes() for key, x in tensors.items()}


@pytest.mark.parametrize("to", ["flax-linen", "flax-nnx"])
@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.msgpack", "m.orbax"])
def test_what_convert_wrote_is_read(to: str, name: str, tmp_path: Path) -> None:
    if name.endswith("orbax"):
        pytest.importorskip("orbax.checkpoint")
    source = written(tmp_path / "hf", LLAMA, drawn(LLAMA))
    with checkpoints.open(source) as reader:
        plan = convert.plan(reader.infos, target=to, config=LLAMA, scan=to == "flax-linen")
        place = convert.run(plan, reader, tmp_path / "made" / name)
    convert.carry(source / "model.safetensors", place, source / "config.json")
    twin = framework("torch")
    twin.models.save(twin.models.load(place), tmp_path / "out")
    assert tensors_in(tmp_path / "out") == tensors_in(source)


def test_several_files_are_read_and_written(twin: Any, tmp_path: Path) -> None:
    source = written(tmp_path / "hf", LLAMA, drawn(LLAMA))
    model = twin.models.load(source)
    twin.models.save(model, tmp_path / "out", max_shard_size=10_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert tensors_in(tmp_path / "out") == tensors_in(source)
    twin.models.save(twin.models.load(tmp_path / "out"), tmp_path / "again")
    assert tensors_in(tmp_path / "again") == tensors_in(source)


def test_each_tensor_is_read_once(twin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = written(tmp_path / "hf", LLAMA, drawn(LLAMA)), []
    original = checkpoints.Reader.__getitem__
    monkeypatch.setattr(
        checkpoints.Reader, "__getitem__", lambda self, name: (read.append(name), original(self, name))[1]
    )
    twin.models.load(source)
    assert sorted(read) == sorted(drawn(LLAMA))


def test_dtypes_of_parameters_and_of_the_computation(twin: Any, tmp_path: Path) -> None:
    config = {**LLAMA, "num_hidden_layers": 1, "dtype": "float32"}
    source = written(tmp_path / "hf", config, drawn(config))
    model = twin.models.load(source, param_dtype=twin.numpy.bfloat16)
    ids = twin.array(np.arange(10).reshape(2, 5))
    assert str(model(ids).logits.dtype).endswith("bfloat16")
    twin.models.save(model, tmp_path / "out")
    assert {str(x[0]) for x in tensors_in(tmp_path / "out").values()} == {"bfloat16"}
    assert model.config["dtype"] == "bfloat16"
    wide, mixed = twin.models.load(source), twin.models.load(source, dtype=twin.numpy.bfloat16)
    logits = mixed(ids).logits
    assert str(logits.dtype).endswith("bfloat16")
    assert np.corrcoef(*(twin.to_numpy(x).astype(np.float32).ravel() for x in (logits, wide(ids).logits)))[0, 1] > 0.99
    twin.models.save(mixed, tmp_path / "mixed")
    assert tensors_in(tmp_path / "mixed") == tensors_in(source)


def test_a_new_model_is_saved_as_it_would_be_published(twin: Any, tmp_path: Path) -> None:
    config = {**BERT, "model_type": "nomic_bert", "architectures": ["NomicBertForMaskedLM"]}
    model = twin.models.Model(models.describe(config))
    with pytest.raises(ValueError, match="give its config"):
        twin.models.save(model, tmp_path)
    twin.models.save(model, tmp_path / "new", config=config)
    assert "nomic_bert.encoder.layers.1.attn.Wqkv.weight" in tensors_in(tmp_path / "new")
    twin.models.save(twin.models.load(tmp_path / "new"), tmp_path / "out")
    assert tensors_in(tmp_path / "out") == tensors_in(tmp_path / "new")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "lama"}, "no model is known of model type 'lama'; the nearest are llama.*docs/models.md"),
        (
            {"model_type": "llava", "text_config": {}},
            "'llava', which is made of several models: give config.text_config",
        ),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "quantized .gptq"),
        ({"architectures": []}, "names no model_type"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "number of layers must be in .1, 10000., got 1000000000"),
        ({**LLAMA, "rope_scaling": "linear"}, "rope_scaling must be a dict, got 'linear'"),
        ({**LLAMA, "num_attention_heads": 0}, "cannot read the configuration of 'llama': ZeroDivisionError"),
        ({**LLAMA, "architectures": ["GPT2LMHeadModel"]}, "contradicts itself"),
    ],
)
def test_what_is_no_known_model_is_refused_by_name(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    written(tmp_path, config, {"x": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=words):
        framework("torch").models.load(tmp_path)


def test_a_file_without_config_is_refused(tmp_path: Path) -> None:
    written(tmp_path, {}, {"x": np.ones(3, np.float32)})
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        framework("torch").models.load(tmp_path)


def test_experts_lie_together_in_a_model_and_apart_in_files() -> None:
    """Mixtral's names, gate before up within each expert; and the way back from the pieces."""
    name, shape = "model.layers.0.mlp.experts.gate_up_proj", (3, 8, 5)
    found = forms.published("mixtral", name, shape)
    assert [piece.file for piece in found][:3] == [
        f"model.layers.0.block_sparse_moe.experts.{n}.w{w}.weight" for n, w in ((0, 1), (0, 3), (1, 1))
    ]
    whole = np.arange(120).reshape(shape)
    apart = {piece.file: whole[piece.here] for piece in found}
    assert apart["model.layers.0.block_sparse_moe.experts.1.w3.weight"].tolist() == whole[1, 4:].tolist()
    assert {piece.file: forms.file_shape(piece, shape) for piece in found} == {k: x.shape for k, x in apart.items()}
