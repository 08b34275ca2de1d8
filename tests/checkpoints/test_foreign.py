"""The programs that own a format restore what is written here, and what they write is read."""

import argparse
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from maskattn import checkpoints
from maskattn.checkpoints import msgpack, pytorch
from tests.frameworks import flax, torch

DRAW = np.random.default_rng(0)
TREE = {
    "params/a/kernel": DRAW.standard_normal((3, 5)).astype(np.float32),
    "params/a/scale": DRAW.standard_normal(700).astype(ml_dtypes.bfloat16),
    "params/" + "long" * 20: np.ones((2, 2), bool),
    "params/empty": np.zeros((0, 3)),
    "params/half": DRAW.standard_normal((20, 100)).astype(np.float16),
    "step": np.array(3, np.int32),
}


@pytest.mark.parametrize("limit", [2**30, 1000])
def test_flax_writes_the_same_bytes(tmp_path, monkeypatch, limit):
    """With the smaller limit the larger arrays are in chunks, as those above 1 GB are."""
    monkeypatch.setattr(msgpack, "CHUNK_LIMIT", limit)
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", limit)
    path = tmp_path / "x.msgpack"
    names = sorted(TREE, key=lambda name: name.split("/"))  # Flax sorts
    checkpoints.save(path, {name: TREE[name] for name in names})
    nested = flax.serialization.msgpack_restore(path.read_bytes())
    assert path.read_bytes() == flax.serialization.msgpack_serialize(nested)
    for name, array in TREE.items():
        found = nested
        for part in name.split("/"):
            found = found[part]
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def test_what_else_a_flax_tree_holds_is_left_out_and_said(tmp_path):
    tree = {
        "w": np.ones(3, np.float32), "scalar": np.float32(2), "list": [np.zeros(2), {"x": np.ones(1)}], "count": 7,
        "big": 2**40, "negative": -5, "real": 0.5, "complex": 1j, "none": None, "text": "x" * 300, "data": b"abc" * 100,
        "no": False, "ints": {3: np.ones(1)},
    }  # fmt: skip
    (tmp_path / "x.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    with checkpoints.open(tmp_path / "x.msgpack") as src:
        assert sorted(src) == ["ints/3", "list/0", "list/1/x", "scalar", "w"]
        assert src["scalar"].shape == () and src["scalar"] == 2
        left_out = "big complex count data negative no none real text".split()
        assert sorted(note.partition(":")[0] for note in src.notes if not note.startswith("took the item")) == left_out


def test_torch_loads_what_is_written(tmp_path):
    tensors = {f"x.{name}": (DRAW.random((3, 4)) * 5).astype(dtype) for name, dtype in pytorch._DTYPES.items()}
    tensors |= {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(2.5), "t": DRAW.random((300, 200)).T}
    path = tmp_path / "x.pt"
    checkpoints.save(path, tensors)
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert list(loaded) == list(tensors)
        for name, array in tensors.items():
            assert str(loaded[name].dtype).removeprefix("torch.") == array.dtype.name
            found = loaded[name].contiguous().reshape(-1).view(torch.uint8) if array.size else loaded[name]
            assert tuple(loaded[name].shape) == array.shape and found.numpy().tobytes() == array.tobytes(), name
    model = torch.nn.Linear(3, 2).bfloat16()
    checkpoints.save(path, {"weight": np.ones((2, 3), ml_dtypes.bfloat16), "bias": np.zeros(2, ml_dtypes.bfloat16)})
    model.load_state_dict(torch.load(path))
    assert model.weight.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_what_torch_writes_is_read(tmp_path):
    path = tmp_path / "x.pt"
    base = torch.arange(6.0).reshape(2, 3)
    weights = {"a": base, "tied": base, "part": base[:, 1:], "p": torch.nn.Parameter(base.t()), "b": base.bfloat16()}
    torch.save(weights, path)
    with checkpoints.open(path) as src:
        assert {name: array.tolist() for name, array in src.items()} == {n: t.tolist() for n, t in weights.items()}
        assert src.notes == [] and src["b"].dtype == ml_dtypes.bfloat16
    wrapped = {
        "took 'state_dict'; left out 'epoch', 'optimizer'": {
            "state_dict": weights, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": base}}},
        },
        "took 'model'": {"model": weights},
        "took 'model_state_dict'; left out 'ema' (--key takes another state: 'ema')": {
            "ema": weights, "model_state_dict": weights,
        },
        "took 'my_weights'; left out 'note'": {"my_weights": weights, "note": "x"},
        "left out what is no tensor: 'epoch', 'extra'": weights | {"epoch": 1, "extra": [base]},
    }  # fmt: skip
    for note, content in wrapped.items():
        torch.save(content, path)
        with checkpoints.open(path) as src:
            assert src.notes == [note] and set(src) == set(weights)
    refused = {
        "several of its entries hold tensors": {"x": {"a": base}, "y": {"a": base}},
        "holds no tensors by name; its keys are 'x'": {"x": {"y": {}}},
        "expected a dict of tensors, got list": [base],
        "must be named by text, got 3": {3: base},
        "is no plain tensor": {"a": base.to_sparse()},
        "argparse.Namespace beside tensors": {"model": weights, "args": argparse.Namespace(lr=1)},
    }
    for message, content in refused.items():
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            checkpoints.open(path)
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"since version 1\.6 .* loaded and saved again with PyTorch"):
        checkpoints.open(path)


# In a process of its own: the number of devices is fixed when JAX starts.
ORBAX = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_ENABLE_X64"] = "1"
import json, numpy as np, jax, ml_dtypes, orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from pathlib import Path
from maskattn import checkpoints
from maskattn.checkpoints import orbax
orbax.CHUNK = 3000
folder = Path(sys.argv[1])
draw = np.random.default_rng(0)
tensors = {f"x/{n}": (draw.random((3, 4)) * 5).astype(d) for n, d in orbax._DTYPES.items()} | {
    "params/big": draw.standard_normal((160, 24)).astype(np.float32), "params/k.e": draw.random((3, 5, 1024)),
    "params/odd": draw.standard_normal((53, 13)).astype(ml_dtypes.bfloat16), "step": np.array(3, np.int32),
}
path = folder / "ours.orbax"
checkpoints.save(path, tensors, metadata={"note": "x"})
assert len(list((path / "params.big").iterdir())) > 5 and len(list((path / "params.k.e").iterdir())) > 5
def flat(tree):
    return {"/".join(k.key for k in keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
def check(tree):
    assert set(flat(tree)) == set(tensors)
    for name, leaf in flat(tree).items():
        assert leaf.dtype == tensors[name].dtype and np.asarray(leaf).tobytes() == tensors[name].tobytes(), name
for kind in (ocp.StandardCheckpointer, ocp.PyTreeCheckpointer):
    with kind() as checkpointer:
        check(checkpointer.restore(path))
mesh = Mesh(np.array(jax.devices()), ("d",))
def sharded(a):
    spec = P("d") if a.ndim and a.shape[0] % 8 == 0 else P()
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(path)
    placed = checkpointer.restore(path, jax.tree.map(sharded, tree))
    check(placed)
    assert {shard.data.shape for shard in placed["params"]["big"].addressable_shards} == {(20, 24)}
    assert checkpointer.metadata(path).custom_metadata["note"] == "x"
for name, options in {"ocdbt": {}, "zarr": {"use_ocdbt": False}, "zarr3": {"use_zarr3": True}}.items():
    with ocp.PyTreeCheckpointer(**options) as checkpointer:
        checkpointer.save(folder / name, placed | {"none": None, "nothing": {}, "number": 5})
with ocp.CheckpointManager(folder / "manager") as manager:
    manager.save(7, args=ocp.args.StandardSave(tree))
"""


@pytest.mark.jax
def test_orbax_restores_what_is_written_and_the_other_way(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-c", ORBAX, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with checkpoints.open(tmp_path / "ours.orbax") as src:
        ours = dict(src)
    for folder in ("ocdbt", "zarr", "zarr3", "manager/7"):
        with checkpoints.open(tmp_path / folder) as src:
            found = dict(src)
            left_out = sorted(note.partition(":")[0] for note in src.notes if not note.startswith("took the item"))
        extra = {"number"} if folder != "manager/7" else set()
        assert left_out == ([] if folder == "manager/7" else ["none", "nothing"])
        assert set(found) == set(ours) | extra
        for name, array in ours.items():
            assert (found[name].dtype, found[name].tobytes()) == (array.dtype, array.tobytes()), (folder, name)
    assert json.loads((tmp_path / "ours.orbax" / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["note"] == "x"
    with checkpoints.open(tmp_path / "manager") as src:
        assert set(src) == set(ours) and src.notes[0] == "took 7, the latest"
