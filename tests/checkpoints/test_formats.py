import hashlib
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from maskattn import checkpoints
from tests.frameworks import torch
from tests.twin import same_tensors

FLOATS = [np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]


def some_tensors():
    draw = np.random.default_rng(0)
    tensors = {f"x.{dtype}": draw.standard_normal((5, 7)).astype(dtype) for dtype in FLOATS}
    tensors |= {f"ids.{kind}": np.arange(11).astype(kind) for kind in ("i1", "u1", "i2", "i4", "i8", "u8", "?")}
    return tensors | {
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(3.5),
        "other.scalar": tensors["x.bfloat16"][0, 0:1].reshape(()),
    }


SUFFIXES = [".safetensors", ".npz", ".msgpack", ".pt", ".orbax"]


def storable(tensors, suffix):
    """Orbax stores no empty arrays."""
    return {name: array for name, array in tensors.items() if array.size or suffix != ".orbax"}


def assert_same(left, right):
    same_tensors({name: left[name] for name in sorted(left)}, {name: right[name] for name in sorted(right)})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_saved_is_read(tmp_path, suffix):
    tensors = storable(some_tensors(), suffix)
    path = tmp_path / f"model{suffix}"
    checkpoints.save(path, tensors)
    for where in (path, str(path), tmp_path):
        with checkpoints.open(where) as src:
            assert len(src) == len(tensors) and "scalar" in src and "y" not in src
            assert_same(src, tensors)
            assert {name: (info.shape, info.dtype) for name, info in src.infos.items()} == {
                name: (array.shape, array.dtype) for name, array in tensors.items()
            }
            assert {n: (a.shape, a.dtype) for n, a in src.outline().items()} == {
                n: (a.shape, a.dtype) for n, a in tensors.items()
            }
            with pytest.raises(KeyError):
                src["y"]
            kept = src["x.float32"]
            kept[0, 0] = 1  # the caller's own
            assert src["x.float32"].tobytes() == tensors["x.float32"].tobytes()
    assert kept[0, 0] == 1
    with pytest.raises(ValueError, match=r"the checkpoint is closed, 'scalar' can no longer be read"):
        src["scalar"]
    src.close()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_threads_read_side_by_side(tmp_path, suffix):
    """zipfile of Python 3.12 loses the place of one thread to another."""
    draw, path = np.random.default_rng(1), tmp_path / f"model{suffix}"
    tensors = {f"layer/{i}": draw.standard_normal((7, 1 + i % 3)).astype(np.float32) for i in range(20)}
    checkpoints.save(path, tensors)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            with checkpoints.open(path) as opened:
                assert_same(dict(zip(tensors, threads.map(opened.__getitem__, tensors), strict=True)), tensors)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_order_does_not_matter(tmp_path, suffix):
    """safetensors' own NumPy writer stores a transpose as the array it came from (huggingface/safetensors#825)."""
    base = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    views = {"t": base.T, "strided": base[:, ::2, ::-1], "f": np.asfortranarray(base[0]), "big": base.astype(">f4")}
    views["big.t"] = views.pop("big").T
    views["spread"] = np.broadcast_to(np.float32(3), (2, 3))
    checkpoints.save(tmp_path / f"a{suffix}", views)
    with checkpoints.open(tmp_path / f"a{suffix}") as src:
        for name, view in views.items():
            assert (src[name] == view).all() and src[name].dtype == np.float32, name


def test_other_libraries_read_what_is_written_and_the_other_way(tmp_path):
    tensors = some_tensors()
    ours, theirs = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    checkpoints.save(ours, tensors, metadata={"format": "pt"})
    safetensors.numpy.save_file(tensors, theirs, metadata={"format": "pt"})
    assert without_hashes(ours) == theirs.read_bytes()
    assert_same(safetensors.numpy.load_file(ours), tensors)
    with checkpoints.open(theirs) as src:
        assert_same(src, tensors)
        assert src.metadata == {"format": "pt"}
    from safetensors.torch import load_file

    assert load_file(ours)["x.bfloat16"].dtype == torch.bfloat16
    checkpoints.save(tmp_path / "a.npz", tensors)
    with np.load(tmp_path / "a.npz") as loaded:
        assert loaded["x.float16"].tobytes() == tensors["x.float16"].tobytes()
        assert loaded["x.bfloat16"].tobytes() == tensors["x.bfloat16"].tobytes()
    plain = {name: array for name, array in tensors.items() if "bf" not in name}
    np.savez_compressed(tmp_path / "c.npz", **plain, f=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    with checkpoints.open(tmp_path / "c.npz") as src:
        assert_same(src, plain | {"f": np.arange(6.0).reshape(2, 3)})


def without_hashes(path):
    """A safetensors file without what this library adds to its header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]["maskattn"]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def write_sharded(folder, tensors, shards=3):
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        checkpoints.save(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_sharded(tmp_path):
    tensors = some_tensors()
    index = write_sharded(tmp_path, tensors)
    for where in (tmp_path, tmp_path / "model.safetensors.index.json"):
        with checkpoints.open(where) as src:
            assert_same(src, tensors)
    name = next(iter(tensors))
    file = tmp_path / "model.safetensors.index.json"

    def with_map(weight_map):
        file.write_text(json.dumps(index | {"weight_map": weight_map}))
        return checkpoints.open(tmp_path)

    with pytest.raises(ValueError, match=f"{name}: not in model-00001"):
        with_map(index["weight_map"] | {name: "model-00001-of-00003.safetensors"})
    with pytest.raises(ValueError, match=f"{name}: in model-00000.*the index does not say so"):
        with_map({n: f for n, f in index["weight_map"].items() if n != name})
    with pytest.raises(ValueError, match="not there"):
        with_map({name: "no.safetensors"})
    for hostile in ("../a.safetensors", "/etc/a.safetensors", "sub/a.safetensors", "..", "a.bin", "a\\b.safetensors"):
        with pytest.raises(ValueError, match="expected a plain name"):
            with_map({name: hostile})
    for text in (
        '{"weight_map": []}',
        "[]",
        "{",
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "b", "a": "c"}}',
        "[" * 100_000,
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"weight_map|not valid JSON"):
            checkpoints.open(tmp_path)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    tensors = {"a": np.arange(3.0)}
    outside, folder = tmp_path / "outside.safetensors", tmp_path / "model"
    folder.mkdir()
    checkpoints.save(outside, tensors)
    (folder / "x.safetensors").symlink_to(outside)
    index = json.dumps({"weight_map": {"a": "x.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="is a link that leaves the folder"):
        checkpoints.open(folder)
    with checkpoints.open(folder / "x.safetensors") as src:  # asked for by its name
        assert_same(src, tensors)
    cache = tmp_path / "models--a--b"  # how Hugging Face's cache is laid out
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "c0ffee").mkdir(parents=True)
    checkpoints.save(cache / "blobs" / "x.safetensors", tensors)
    os.rename(cache / "blobs" / "x.safetensors", cache / "blobs" / "deadbeef")
    (cache / "snapshots" / "c0ffee" / "x.safetensors").symlink_to("../../blobs/deadbeef")
    (cache / "snapshots" / "c0ffee" / "model.safetensors.index.json").write_text(index)
    with checkpoints.open(cache / "snapshots" / "c0ffee") as src:
        assert_same(src, tensors)


def test_paths_that_are_not_checkpoints(tmp_path):
    for path in (tmp_path / "x.npz", "x.npz", "org/x.safetensors", "./x", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at {Path(path)}$"):
            checkpoints.open(path)
    for name in ("gpt2", "org/SmolLM2-1.7B"):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at {name}; .* hf download {name} --local-dir"):
            checkpoints.open(name)
    (tmp_path / "x.h5").write_bytes(b"")
    known = r"'x\.h5' has no suffix of a known format; expected one of \.safetensors, \.safetensors\.index\.json, "
    with pytest.raises(ValueError, match=known):
        checkpoints.open(tmp_path / "x.h5")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoints.open(tmp_path)
    with pytest.raises(ValueError, match=r"has no suffix of a known format; expected one of \.safetensors, "):
        checkpoints.save(tmp_path / "x.h5", {})
    checkpoints.save(tmp_path / "a.npz", {})
    checkpoints.save(tmp_path / "b.safetensors", {})
    with pytest.raises(ValueError, match=r"several checkpoints \(a\.npz, b\.safetensors\): name one"):
        checkpoints.open(tmp_path)
    for name in ("a.npz", "b.safetensors"):
        with checkpoints.open(tmp_path / name) as src:
            assert len(src) == 0


def test_what_cannot_be_saved_is_refused_at_once_and_nothing_is_written(tmp_path):
    bad = {"a": [1], "": np.ones(1), 3: np.ones(1), "t": torch.ones(1)}
    for suffix in (".safetensors", ".npz"):
        path = tmp_path / f"x{suffix}"
        with pytest.raises(
            ValueError, match=r"(?s)a: expected a NumPy array, got builtins.list.*torch.*''.*3: names must"
        ):
            checkpoints.save(path, bad)
        with pytest.raises(ValueError, match=r"(?s)o: .*dtype object.*s: .*dtype <U1"):
            checkpoints.save(path, {"o": np.array([None]), "s": np.array(["x"])})
    with pytest.raises(ValueError, match="keeps for itself"):
        checkpoints.save(tmp_path / "x.safetensors", {"__metadata__": np.ones(1)})
    with pytest.raises(ValueError, match="metadata must map str to str"):
        checkpoints.save(tmp_path / "x.safetensors", {}, metadata={"a": 1})
    with pytest.raises(TypeError, match="tensors must be a mapping"):
        checkpoints.save(tmp_path / "x.npz", [])
    assert not list(tmp_path.iterdir())


def test_permissions_are_those_of_a_new_file_or_of_the_old_one(tmp_path):
    path, plain = tmp_path / "x.safetensors", tmp_path / "plain"
    plain.touch()
    checkpoints.save(path, {"a": np.ones(1)})
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o600)
    checkpoints.save(path, {"a": np.ones(2)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".msgpack"])
def test_these_formats_need_no_framework(tmp_path, suffix):
    checkpoints.save(tmp_path / f"x{suffix}", some_tensors())
    code = (
        "import sys\nfrom maskattn import checkpoints\nwith checkpoints.open(sys.argv[1]) as src: tensors = dict(src)\n"
        "checkpoints.save(sys.argv[1], tensors)\n"
        "sys.exit(' '.join({'torch', 'jax', 'flax', 'safetensors', 'msgpack', 'orbax'} & set(sys.modules)) or None)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / f"x{suffix}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_orbax_needs_no_jax(tmp_path):
    code = (
        "import sys, numpy as np\nfrom maskattn import checkpoints\n"
        "checkpoints.save(sys.argv[1], {'a.b': np.ones((3, 2), np.float32)})\n"
        "with checkpoints.open(sys.argv[1]) as src: assert src['a.b'].shape == (3, 2)\n"
        "sys.exit(' '.join({'torch', 'jax', 'orbax'} & set(sys.modules)) or None)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.orbax")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_come_back_as_they_were(tmp_path, suffix):
    for i, names in enumerate((["a.b", "a.c.d", "e"], ["a/b.c", "a/d", "e"], ["a/0", "a/1"])):
        path = tmp_path / f"{i}{suffix}"
        checkpoints.save(path, {name: np.full(2, i) for i, name in enumerate(names)})
        with checkpoints.open(path) as src:
            assert sorted(src) == sorted(names)
            assert [int(src[name][0]) for name in names] == list(range(len(names)))


@pytest.mark.parametrize("suffix", [".msgpack", ".orbax"])
def test_names_that_are_no_tree_are_refused(tmp_path, suffix):
    with pytest.raises(ValueError, match=r"(?s)b\.\.c: a part of its path is empty.*a: is both an array and a module"):
        checkpoints.save(tmp_path / f"x{suffix}", {"a": np.ones(1), "a.b": np.ones(1), "b..c": np.ones(1)})
    if suffix == ".orbax":
        for names in (["a.b/c", "a/b.c"], ["_METADATA"], ["x" * 300], ["a\\b"], ["d"]):
            with pytest.raises(ValueError, match="folder"):
                checkpoints.save(tmp_path / f"x{suffix}", {name: np.ones(1) for name in names})
        with pytest.raises(ValueError, match="no array of size 0"):
            checkpoints.save(tmp_path / f"x{suffix}", {"a": np.ones((0, 3))})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".safetensors.index.json"])
def test_metadata_provenance_and_hashes_are_kept(tmp_path, suffix):
    tensors = storable(some_tensors(), suffix)
    infos = {name: checkpoints.TensorInfo(array.shape, array.dtype) for name, array in tensors.items()}
    provenance = {"source": {"x": [1, None, "ü"]}, "dtype": "keep"}
    with checkpoints.create(tmp_path / f"x{suffix}", infos, metadata={"format": "pt"}, provenance=provenance) as writer:
        writer.write_each(tensors.__getitem__)
        written = dict(writer.hashes)
    with checkpoints.open(tmp_path / f"x{suffix}") as src:
        assert src.metadata["format"] == "pt" and "maskattn" not in src.metadata
        assert src.provenance == provenance and src.hashes == written
        for name, array in tensors.items():
            assert (
                src.hashes[name] == hashlib.sha256(array.tobytes()).hexdigest() == checkpoints.sha256(array.T.copy().T)
            )


@pytest.mark.torch
def test_provenance_that_a_zip_has_no_room_for_is_refused_at_once(tmp_path):
    infos = {"a": checkpoints.TensorInfo((1,), np.dtype("f4"))}
    for suffix in (".npz", ".pt"):
        with pytest.raises(ValueError, match=r"take 7\d{4} bytes, the limit of a zip archive is 65535"):
            checkpoints.create(tmp_path / f"x{suffix}", infos, provenance={"a": "x" * 70_000})


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_parts_are_read_alone(suffix, tmp_path, monkeypatch):
    whole = np.arange(3 * 4 * 5, dtype=np.int32).reshape(3, 4, 5)
    checkpoints.save(tmp_path / f"a.{suffix}", {"other": whole + 1, "whole": whole, "row": whole[0, 0]})
    read = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, to, at: read.append(sum(map(len, to))) or preadv(file, to, at))
    parts = [
        np.s_[:, :, :],
        np.s_[1:2, :, :],
        np.s_[:, 1:3, :],
        np.s_[:, :, 2:4],
        np.s_[1:3, 2:4, 0:1],
        np.s_[:, 2:2, :],
    ]
    with checkpoints.open(tmp_path / f"a.{suffix}") as reader:
        for part in parts:
            read.clear()
            found = reader.part("whole", part)
            assert found.tobytes() == whole[part].tobytes() and found.shape == whole[part].shape
            assert suffix == "npz" or sum(read) == found.nbytes
        assert (reader.part("row", np.s_[1:4,]) == whole[0, 0, 1:4]).all()
