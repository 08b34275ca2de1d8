"""maskattn convert and the files around it: the way back, configurations, the source itself, what killed runs left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from maskattn import checkpoints
from maskattn.checkpoints._publish import Temporary
from maskattn.cli import convert as command
from maskattn.cli.main import main
from maskattn.convert import carry, plan, run as carry_out
from maskattn.parity.checkpoint import verify
from tests.convert.saved_models import saved


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def files(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder, _ = saved("bert", "float32", tmp_path_factory.mktemp("bert") / "model")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


@pytest.mark.parametrize("suffix", [".orbax", ".msgpack", ".npz", ".safetensors", ".pt"])
def test_the_configuration_goes_there_and_back(bert, tmp_path, suffix):
    there, back = tmp_path / "new" / f"b{suffix}", tmp_path / "back" / "model.safetensors"
    text = run("convert", bert, there, "--to", "flax-linen")
    config = there / "config.json" if suffix == ".orbax" else there.with_name(there.name + ".config.json")
    assert "copied config.json to" in text and config.read_bytes() == (bert / "config.json").read_bytes()
    run("convert", there, back)
    assert (back.parent / "config.json").read_bytes() == config.read_bytes()
    assert (back.parent / "tokenizer.json").exists() == (suffix == ".orbax")
    with checkpoints.open(bert) as one, checkpoints.open(back) as other:
        assert {name: one[name].tobytes() for name in one} == {name: other[name].tobytes() for name in other}
        assert one.infos == {name: other.infos[name] for name in one}


def test_a_configuration_that_is_there_stays(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "config.json").write_text('{"a": 1}')
    (tmp_path / "a" / "tokenizer.json").write_text("a")
    (tmp_path / "b" / "config.json").write_text('{"b": 1}')
    (tmp_path / "b" / "tokenizer.json").write_text("b")
    target = tmp_path / "b" / "model.safetensors"
    said = carry(tmp_path / "a" / "model.safetensors", target)
    assert (
        "config.json is another configuration, and stays; the source's is in model.safetensors.config.json" in said[0]
    )
    assert "tokenizer.json is another one, and stays" in said[2]
    assert (tmp_path / "b" / "config.json").read_text() == '{"b": 1}' and (
        tmp_path / "b" / "tokenizer.json"
    ).read_text() == "b"
    from maskattn.convert import config_json

    assert config_json.beside(target) == {"a": 1}
    carry(target, tmp_path / "c" / "model.safetensors")
    assert json.loads((tmp_path / "c" / "config.json").read_text()) == {"a": 1}


def test_the_configuration_of_meta_keeps_its_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "params.json").write_text('{"dim": 8, "n_layers": 2, "n_heads": 2}')
    carry(tmp_path / "a" / "consolidated.00.pth", tmp_path / "x.npz")
    carry(tmp_path / "x.npz", tmp_path / "b" / "consolidated.00.pth")
    assert (tmp_path / "b" / "params.json").read_text() == (tmp_path / "a" / "params.json").read_text()


def test_a_refusal_leaves_no_folder(bert, tmp_path):
    run("convert", bert, tmp_path / "x" / "y" / "b.xyz", "--to", "flax-linen", code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["same", "dotted", "link", "hard", "folder"])
def test_the_source_is_not_overwritten_unless_it_is_asked_for(bert, tmp_path, way):
    model = tmp_path / "model"
    model.mkdir()
    for name, content in files(bert).items():
        (model / name).write_bytes(content)
    file, target = model / "model.safetensors", model / "model.safetensors"
    if way == "dotted":
        target = Path(f"{model}/../model/./model.safetensors")
    elif way in ("link", "hard"):
        target = tmp_path / "other.safetensors"
        target.symlink_to(file) if way == "link" else os.link(file, target)
    elif way == "folder":
        (tmp_path / "linked").symlink_to(model)
        target = tmp_path / "linked" / "model.safetensors"
    before = files(model)
    text = run("convert", model, target, "--to", "flax-linen", code=2)
    assert "is the source itself" in text and "--force" in text and files(model) == before
    run("convert", model, target, "--to", "flax-linen", "--force", "--verify")
    with checkpoints.open(target) as reader:
        assert "/".join(("encoder", "layer")) in " ".join(reader)


@pytest.mark.parametrize("model", ["bert", "vit", "llama"])
def test_parity_reads_what_convert_writes(model, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "LENGTHS", (3,))  # JAX compiles each length in exact mode
    folder, _ = saved(model, "float32", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    with checkpoints.open(folder) as reader:
        for target, suffix, scan in (
            ("flax-linen", ".orbax", False),
            ("flax-nnx", ".npz", False),
            ("flax-linen", ".msgpack", True),
        ):
            planned = plan(reader.infos, target=target, config=config, scan=scan)
            written = carry_out(planned, reader, tmp_path / f"{target}-{scan}{suffix}")
            result = verify.verify_checkpoint(written, against=folder if suffix == ".orbax" else None)
            assert result.exit_code == 0 and result.layers, (target, suffix, result.first_difference)


LEAVE = """
import os, sys
from pathlib import Path
from maskattn.checkpoints._publish import Temporary
for name in sys.argv[1:]:
    Temporary(Path(name)).file.write(b"x")
os._exit(0)
"""


def test_what_killed_runs_left_is_named_and_goes_on_request(bert, tmp_path):
    subprocess.run([sys.executable, "-c", LEAVE, tmp_path / "b.npz", tmp_path / "c.npz"], check=True)
    (tmp_path / ".note.tmp").write_text("not ours")
    living = Temporary(tmp_path / "d.npz")
    text = run("convert", bert, tmp_path / "b.npz", "--to", "flax-linen", "--dry-run").replace(" ", "")
    assert text.count("wasleftbyakilledrun:") == 2 and len(list(tmp_path.iterdir())) == 4
    text = run("convert", bert, tmp_path / "b.npz", "--to", "flax-linen", "--clean").replace(" ", "")
    assert text.count("wasleftbyakilledrun:removed") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [".note.tmp", living.place.name, "b.npz", "b.npz.config.json"]
    )
    living.discard()


def test_ctrl_c_has_the_exit_code_of_shells(bert, tmp_path, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("maskattn.convert._run.each", stop)
    assert "stopped" in run("convert", bert, tmp_path / "b.npz", "--to", "flax-linen", code=130)
    assert not list(tmp_path.iterdir()) and command.Stopped.exit_code == 130


def test_the_state_that_is_asked_for(bert, tmp_path):
    torch = pytest.importorskip("torch")
    with checkpoints.open(bert) as reader:
        model = {name: torch.from_numpy(reader[name]) for name in reader}
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in model.items()}
    torch.save({"model": model, "ema": {"params": average}, "loss": torch.tensor(0.5)}, tmp_path / "last.ckpt")
    arguments = ["convert", tmp_path / "last.ckpt", tmp_path / "b.npz", "--to", "flax-linen", "--heads", 6]
    assert "took 'model'" in run(*arguments)
    with checkpoints.open(tmp_path / "b.npz") as reader:
        name = next(name for name in reader if name.endswith("word_embeddings/embedding"))
        before = reader[name]
    run(*arguments, "--key", "ema/params")
    with checkpoints.open(tmp_path / "b.npz") as reader:
        assert np.array_equal(reader[name], before + 1)
    assert "took 'ema/params'" in run("inspect", tmp_path / "last.ckpt", "--key", "ema/params", "--heads", 6)


def test_flax_bert_is_written_as_transformers_flax_reads_it(bert, tmp_path):
    safe = pytest.importorskip("safetensors")
    run("convert", bert, tmp_path / "model.safetensors", "--to", "flax-bert")
    with safe.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        names = list(file.keys())
        assert file.metadata()["format"] == "flax"
    assert "bert.encoder.layer.0.attention.self.query.kernel" in names and not any("/" in name for name in names)
    run("convert", tmp_path / "model.safetensors", tmp_path / "back" / "model.safetensors", "--to", "hf-bert")
    run("convert", bert, tmp_path / "nnx.safetensors", "--to", "flax-nnx")
    with safe.safe_open(tmp_path / "nnx.safetensors", "numpy") as file:
        assert "format" not in file.metadata()
