"""Checkpoints as users have them: folders of hubs and training runs, training files with several states, Flax's own."""

import json
import subprocess
import sys

import numpy as np
import pytest

from maskattn import checkpoints

torch = pytest.importorskip("torch")

TENSORS = {"a.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b.weight": np.ones(3, np.float32)}
TREE = {name.replace(".", "/"): array for name, array in TENSORS.items()}
WEIGHTS = {name: torch.from_numpy(array) for name, array in TENSORS.items()}
OTHER = {name: tensor + 1 for name, tensor in WEIGHTS.items()}


def read(path, **options):
    with checkpoints.open(path, **options) as reader:
        return {name: array.tolist() for name, array in reader.items()}, reader.notes


def values(tensors):
    return {name: np.asarray(array).tolist() for name, array in tensors.items()}


def test_the_weights_of_a_hub_and_a_trainer_folder(tmp_path):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt"):
        torch.save({"state": {0: OTHER}}, tmp_path / name)
    (tmp_path / "training_args.bin").write_bytes(b"a pickle of anything")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no checkpoint .*only what training leaves beside one: optimizer\.pt"):
        checkpoints.open(tmp_path)
    torch.save(WEIGHTS, tmp_path / "weights.bin")
    assert read(tmp_path)[0] == values(TENSORS)
    torch.save(OTHER, tmp_path / "pytorch_model.bin")
    assert read(tmp_path)[0] == values(OTHER)
    checkpoints.save(tmp_path / "model.safetensors", TENSORS)
    found, notes = read(tmp_path)
    assert found == values(TENSORS) and "took model.safetensors; left out optimizer.pt, pytorch_model.bin" in notes[0]


def test_a_run_s_latest_step_is_taken_and_said(tmp_path):
    for step in (90, 500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.save(tmp_path / "checkpoint-90" / "model.safetensors", {"a": np.ones(2)})
    checkpoints.save(tmp_path / "checkpoint-500" / "model.safetensors", TENSORS)
    torch.save({}, tmp_path / "checkpoint-1000" / "optimizer.pt")  # killed before the weights
    found, notes = read(tmp_path)
    assert found == values(TENSORS)
    assert notes == ["took checkpoint-500, the latest; left out checkpoint-90, checkpoint-1000"]


@pytest.mark.parametrize("item", ["default", "items", "mine"])
def test_steps_and_items_of_orbax(tmp_path, item):
    for step, tensors in ((2, {"x/y": np.zeros(2)}), (10, TREE)):
        (tmp_path / str(step)).mkdir()
        checkpoints.save(tmp_path / f"{step}.orbax", tensors)
        (tmp_path / f"{step}.orbax").rename(tmp_path / str(step) / item)
    found, notes = read(tmp_path)
    assert found == values(TREE) and notes[0] == "took 10, the latest; left out 2"
    assert read(tmp_path / "10")[0] == read(tmp_path / "10" / item)[0] == values(TREE)
    (tmp_path / "10" / item).rename(tmp_path / "10" / "weights")
    checkpoints.save(tmp_path / "x.orbax", TREE)
    (tmp_path / "x.orbax").rename(tmp_path / "10" / "other")
    with pytest.raises(ValueError, match=r"several checkpoints \(other, weights\)"):
        checkpoints.open(tmp_path / "10")


def test_indices_of_pytorch_and_flax(tmp_path):
    """As transformers writes them: names of the tensors to the files beside the index."""
    flax = pytest.importorskip("flax.serialization")
    for i, (name, tensor) in enumerate(WEIGHTS.items(), 1):
        torch.save({name: tensor}, tmp_path / f"pytorch_model-0000{i}-of-00002.bin")
        tree = {name[0]: {"kernel": tensor.numpy()}}
        (tmp_path / f"flax_model-0000{i}-of-00002.msgpack").write_bytes(flax.to_bytes(tree))
    files = {name: f"pytorch_model-0000{i}-of-00002.bin" for i, name in enumerate(WEIGHTS, 1)}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": files}))
    assert read(index)[0] == read(tmp_path)[0] == values(TENSORS)
    leaves = {f"{name[0]}/kernel": f"flax_model-0000{i}-of-00002.msgpack" for i, name in enumerate(WEIGHTS, 1)}
    (tmp_path / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": leaves}))
    found, _ = read(tmp_path / "flax_model.msgpack.index.json")
    assert found == {"a/kernel": found["a/kernel"], "b/kernel": [1, 1, 1]}
    index.write_text(json.dumps({"weight_map": {"a.weight": "../x.bin"}}))
    with pytest.raises(ValueError, match=r"expected a plain name ending in \.bin"):
        checkpoints.open(index)
    with pytest.raises(ValueError, match="only safetensors is written in several files"):
        checkpoints.save(tmp_path / "new.bin.index.json", TENSORS)


def test_which_state_of_a_training_file(tmp_path):
    path = tmp_path / "last.ckpt"
    adam = {"state": {0: {"exp_avg": WEIGHTS["a.weight"]}}, "param_groups": [{"lr": 1.0}]}
    training = {"optimizer": adam, "loss": torch.tensor(0.5), "model": WEIGHTS, "ema": {"params": OTHER}, "epoch": 3}
    torch.save(training, path)
    found, notes = read(path)
    assert found == values(TENSORS)
    assert notes == [
        "took 'model'; left out 'optimizer', 'loss', 'ema', 'epoch' (--key takes another state: 'ema/params')"
    ]
    assert read(path, key="ema/params")[0] == values(OTHER)
    with pytest.raises(ValueError, match="key 'ema': no tensors there; name one with --key: 'model', 'ema/params'"):
        checkpoints.open(path, key="ema")
    torch.save({"x": WEIGHTS, "y": OTHER, "loss": torch.tensor(0.5)}, path)
    with pytest.raises(ValueError, match="no tensors there; name one with --key: 'x', 'y'"):
        checkpoints.open(path, key="model")
    torch.save({"mine": WEIGHTS, "loss": torch.tensor(0.5)}, path)
    assert read(path)[0] == values(TENSORS)
    torch.save({"state": {"model": WEIGHTS}}, path)
    assert read(path)[0] == values(TENSORS)
    torch.save({**WEIGHTS, "more": {"statistics": OTHER}}, path)  # a state_dict with something beside
    assert read(path)[0] == values(TENSORS)


@pytest.mark.parametrize("suffix", [".msgpack", ".orbax", ".npz", ".safetensors"])
def test_a_training_state_of_flax(tmp_path, suffix):
    other = {name: array + 1 for name, array in TREE.items()}
    state = {f"params/{n}": a for n, a in TREE.items()} | {f"ema/params/{n}": a for n, a in other.items()}
    state |= {f"opt_state/0/mu/{n}": a for n, a in TREE.items()} | {"step": np.array(3)}
    path = tmp_path / f"state{suffix}"
    checkpoints.save(path, state)
    found, notes = read(path)
    assert found == values(TREE) and notes[0].startswith("took 'params'; left out ")
    assert all(name in notes[0] for name in ("'ema'", "'opt_state'", "'step'"))
    assert read(path, key="ema/params")[0] == values(other)
    with pytest.raises(ValueError, match="key 'x': no tensors there; its names begin with '"):
        checkpoints.open(path, key="x")


def test_programs_are_named_as_what_they_are(tmp_path):
    with pytest.warns((DeprecationWarning, FutureWarning), match="is deprecated"):  # as PyTorch's version has it
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"this is a TorchScript program .*save its state_dict\(\)"):
        checkpoints.open(tmp_path / "a.pt")


def test_shards_of_tensor_parallel_models_are_refused_as_such(tmp_path):
    for i in range(2):
        torch.save(WEIGHTS, tmp_path / f"consolidated.0{i}.pth")
    with pytest.raises(ValueError, match="holds 2 parts of one model split for tensor parallelism"):
        checkpoints.open(tmp_path)


def test_a_model_in_the_cache_of_hugging_face(tmp_path):
    for commit, tensors in (("aa", {"a": np.zeros(2)}), ("bb", {"a": np.ones(2)})):
        (tmp_path / "snapshots" / commit).mkdir(parents=True)
        checkpoints.save(tmp_path / "snapshots" / commit / "model.safetensors", tensors)
        if commit == "aa":
            assert read(tmp_path)[0] == {"a": [0.0, 0.0]}
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoints.open(tmp_path)  # of two, neither is said to be the one
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("bb")
    assert read(tmp_path) == ({"a": [1.0, 1.0]}, ["took the commit bb of the hub's cache"])


def test_a_shard_of_a_model_is_said_to_be_one(tmp_path):
    checkpoints.save(tmp_path / "model.safetensors", {"a": np.ones(3), "b": np.ones(4)}, max_shard_size=30)
    assert read(tmp_path)[1] == []
    (note,) = read(tmp_path / "model-00001-of-00002.safetensors")[1]
    assert "shard 1 of 2 of one model" in note and "name the folder" in note
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="holds 2 parts of one model, and no index of them"):
        checkpoints.open(tmp_path)


def test_flax_safetensors_join_names_by_dots_in_the_file(tmp_path):
    """As transformers' FlaxPreTrainedModel reads and writes them."""
    safe = pytest.importorskip("safetensors.numpy")
    safe.save_file(TENSORS, tmp_path / "theirs.safetensors", metadata={"format": "flax"})
    assert read(tmp_path / "theirs.safetensors")[0] == values(TREE)
    checkpoints.save(tmp_path / "ours.safetensors", TREE, metadata={"format": "flax"})
    assert values(safe.load_file(tmp_path / "ours.safetensors")) == values(TENSORS)
    assert read(tmp_path / "ours.safetensors")[0] == values(TREE)
    checkpoints.save(tmp_path / "many.safetensors", TREE, metadata={"format": "flax"}, max_shard_size=12)
    index = json.loads((tmp_path / "many.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(TENSORS) and read(tmp_path / "many.safetensors.index.json")[0] == values(
        TREE
    )
    with pytest.raises(ValueError, match="joins names by dots, and some have dots"):
        checkpoints.save(tmp_path / "x.safetensors", {"a.b/c": np.ones(1)}, metadata={"format": "flax"})


# In a process of its own: what is saved is the state of a module, as Flax's guide on checkpoints has it.
NNX = """
import sys
from pathlib import Path
import jax, numpy as np, orbax.checkpoint as ocp
from flax import nnx
from maskattn import checkpoints

class Block(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

folder, module = Path(sys.argv[1]), Block(nnx.Rngs(0))
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / "theirs.orbax", nnx.state(module))
with checkpoints.open(folder / "theirs.orbax") as reader:
    tensors = dict(reader)
    assert sorted(tensors) == [f"layers/{i}/{n}" for i in range(2) for n in ("bias", "kernel")], sorted(tensors)
    assert "dropout/rngs/count: left out, it is a random stream's" in reader.notes
checkpoints.save(folder / "ours.orbax", tensors)

new = Block(nnx.Rngs(1))
state = nnx.state(new, nnx.Param)
pure = ocp.StandardCheckpointer().restore(folder / "ours.orbax")
nnx.replace_by_pure_dict(state, nnx.restore_int_paths(pure))
nnx.update(new, state)
leaves = [jax.tree.leaves(nnx.state(each, nnx.Param)) for each in (module, new)]
for old, now in zip(*leaves, strict=True):
    assert np.array_equal(old, now)
"""


@pytest.mark.jax
def test_the_state_of_an_nnx_module_is_read_and_what_is_written_goes_into_one(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    done = subprocess.run([sys.executable, "-c", NNX, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_nnx_leaves_lose_their_value(tmp_path):
    ocp, flax = pytest.importorskip("orbax.checkpoint"), pytest.importorskip("flax.serialization")
    tree = {"layers": {"0": {"kernel": {"value": np.ones(2)}}, "1": {"kernel": {"value": np.zeros(2)}}}}
    ocp.PyTreeCheckpointer().save(tmp_path / "nnx.orbax", tree)
    (tmp_path / "nnx.msgpack").write_bytes(flax.to_bytes(tree))
    for suffix in (".orbax", ".msgpack"):
        found, notes = read(tmp_path / f"nnx{suffix}")
        assert found == {"layers/0/kernel": [1, 1], "layers/1/kernel": [0, 0]}
        assert notes == ["every name without its last part, 'value' (Flax NNX)"]
    tree["count"] = np.ones(1)
    (tmp_path / "mixed.msgpack").write_bytes(flax.to_bytes(tree))
    assert "layers/0/kernel/value" in read(tmp_path / "mixed.msgpack")[0]
