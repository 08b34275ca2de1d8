"""What a writer promises: the right bytes or an error, a whole checkpoint or what was there before."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from maskattn import checkpoints
from maskattn.checkpoints import TensorInfo, _writer as writing
from tests.checkpoints.fuzz import SUFFIXES

REPLACEABLE = [".safetensors", ".npz", ".msgpack", ".pt"]
FLOAT = np.dtype(np.float32)


def infos_of(tensors):
    return {name: TensorInfo(array.shape, array.dtype) for name, array in tensors.items()}


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_writer_refuses(tmp_path, suffix):
    infos = {"a": TensorInfo((2, 3), FLOAT), "b": TensorInfo((2,), np.dtype(ml_dtypes.bfloat16))}
    a, b = np.ones((2, 3), np.float32), np.ones(2, ml_dtypes.bfloat16)
    path = tmp_path / f"x{suffix}"
    writer = checkpoints.create(path, infos)
    with pytest.raises(ValueError, match="'a' is written outside the writer's with block"):
        writer.write("a", a)
    with writer:
        for array in (a.T, a.astype(np.float64), a.astype(np.int32), a[0]):
            with pytest.raises(ValueError, match=r"'a' was announced with shape \[2, 3\] and dtype float32, got shape"):
                writer.write("a", array)
        with pytest.raises(TypeError, match="a: expected a NumPy array, got builtins.list"):
            writer.write("a", [[1.0]])
        with pytest.raises(ValueError, match="'c' was not announced"):
            writer.write("c", a)
        writer.write("a", a)
        with pytest.raises(ValueError, match="'a' is written twice"):
            writer.write("a", a)
        writer.write("b", b)
    with pytest.raises(ValueError, match="outside the writer's with block"):
        writer.write("b", b)
    with pytest.raises(ValueError, match="entered once"):
        writer.__enter__()
    with checkpoints.open(path) as src:
        assert src["a"].tobytes() == a.tobytes() and src["b"].tobytes() == b.tobytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_leaving_early_leaves_nothing(tmp_path, suffix):
    infos = {name: TensorInfo((2, 3), FLOAT) for name in "abc"}
    path = tmp_path / f"x{suffix}"
    with pytest.raises(ValueError, match="2 tensors were announced but not written: b, c"):
        with checkpoints.create(path, infos) as writer:
            writer.write("a", np.ones((2, 3), np.float32))
    with pytest.raises(KeyboardInterrupt), checkpoints.create(path, infos) as writer:
        writer.write("a", np.ones((2, 3), np.float32))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.torch
def test_an_empty_checkpoint_and_bad_announcements(tmp_path):
    for suffix in SUFFIXES:
        with checkpoints.create(tmp_path / f"empty{len(suffix)}{suffix}", {}):
            pass
        with checkpoints.open(tmp_path / f"empty{len(suffix)}{suffix}") as src:
            assert len(src) == 0
        with pytest.raises(TypeError, match="infos must be a mapping"):
            checkpoints.create(tmp_path / f"x{suffix}", [])
        with pytest.raises(ValueError, match=r"(?s)'': names.*3: names.*valid Unicode.*c: expected a TensorInfo"):
            bad = {"": TensorInfo((), FLOAT), 3: TensorInfo((), FLOAT), "\ud800": TensorInfo((), FLOAT), "c": 1}
            checkpoints.create(tmp_path / f"x{suffix}", bad)
        with pytest.raises(ValueError, match="there is no folder"):
            checkpoints.create(tmp_path / "no" / f"x{suffix}", {})
        with pytest.raises(ValueError, match="the key 'maskattn' is written by this library"):
            checkpoints.create(tmp_path / f"x{suffix}", {}, metadata={"maskattn": "x"})
        with pytest.raises(ValueError, match="provenance must be a JSON object"):
            checkpoints.create(tmp_path / f"x{suffix}", {}, provenance={"a": object()})
    with pytest.raises(ValueError, match="only safetensors is written in several files"):
        checkpoints.create(tmp_path / "x.npz", {}, max_shard_size=5)
    with pytest.raises(ValueError, match="max_shard_size must be a positive int, got 0"):
        checkpoints.create(tmp_path / "x.safetensors", {}, max_shard_size=0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tensors_larger_than_a_chunk_in_every_memory_order(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(writing, "CHUNK", 1000)
    monkeypatch.setattr(checkpoints.orbax, "CHUNK", 3000)
    monkeypatch.setattr(checkpoints.msgpack, "CHUNK_LIMIT", 2500)
    base = np.random.default_rng(0).standard_normal((7, 11, 13)).astype(np.float32)
    half = base.astype(ml_dtypes.bfloat16)
    tensors = {
        "c": base, "t": base.T, "mid": base.transpose(1, 0, 2), "strided": base[:, ::2, ::-1], "half.t": half.T,
        "big": base.astype(">f4").T, "f": np.asfortranarray(base[0]), "scalar": base[0, 0, 0:1].reshape(()),
        "wide": np.ascontiguousarray(base.reshape(1, -1)), "tall": base.reshape(-1, 1)[::-1],
        "flags": base.transpose(2, 1, 0) > 0,
    }  # fmt: skip
    shards = {"max_shard_size": 4000} if "index" in suffix else {}
    path = tmp_path / f"x{suffix}"
    with checkpoints.create(path, infos_of(tensors), **shards) as writer:
        threads = [threading.Thread(target=writer.write, args=item) for item in reversed(tensors.items())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with checkpoints.open(path) as src:
        for name, array in tensors.items():
            little = array.astype(array.dtype.newbyteorder("<")) if array.dtype == ">f4" else array
            assert src[name].tobytes() == little.tobytes() and src[name].shape == array.shape, name


def test_write_each_stops_at_the_first_error_and_reports_progress(tmp_path):
    tensors = {f"{i}": np.full((3,), i, np.float32) for i in range(20)}
    seen = []
    with checkpoints.create(tmp_path / "x.safetensors", infos_of(tensors)) as writer:
        writer.write("7", tensors["7"])
        writer.write_each(tensors.__getitem__, seen.append)
    assert sorted(seen) == sorted(set(tensors) - {"7"})
    made = []

    def make(name):
        made.append(name)
        raise RuntimeError(f"no {name}")

    with pytest.raises(RuntimeError, match="no"), checkpoints.create(tmp_path / "y.npz", infos_of(tensors)) as writer:
        writer.write_each(make)
    assert len(made) <= 2 and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_writer_whose_error_was_swallowed_publishes_nothing(tmp_path, monkeypatch):
    real = os.pwrite

    def fails_once(*arguments):
        monkeypatch.setattr(os, "pwrite", real)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(ValueError, match="nothing was written, because writing a tensor failed before"):
        with checkpoints.create(tmp_path / "x.safetensors", {"a": TensorInfo((3,), FLOAT)}) as writer:
            monkeypatch.setattr(os, "pwrite", fails_once)
            with pytest.raises(OSError, match="Input/output"):
                writer.write("a", np.ones(3, np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "failing"),
    [(suffix, "fsync") for suffix in SUFFIXES] + [(s, "rename" if s == ".orbax" else "replace") for s in SUFFIXES],
)
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, suffix, failing):
    path = tmp_path / f"x{suffix}"
    if suffix in REPLACEABLE:
        checkpoints.save(path, {"old": np.arange(3)})
    before = contents(tmp_path)

    def fail(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(path, {"new": np.arange(1000)})
    monkeypatch.undo()
    # The hashes of a msgpack file are in another file, which goes first: without them the file is read as it is.
    if suffix == ".msgpack" and failing == "replace":
        before.pop(f"{path.name}.maskattn.json")
    assert contents(tmp_path) == before


LIMITED = """
import resource, signal, sys, numpy as np
from maskattn import checkpoints
path, limit = sys.argv[1], int(sys.argv[2])
tensors = {f"t.{i}": np.arange(5000.0) for i in range(4)}
warm = checkpoints.create(path, {n: checkpoints.TensorInfo(a.shape, a.dtype) for n, a in tensors.items()})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    checkpoints.save(path, tensors)
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_room_at_any_byte(tmp_path, suffix):
    """RLIMIT_FSIZE stops a write at a byte, as a full disk does."""
    path = tmp_path / f"x{suffix}"
    if suffix in REPLACEABLE:
        checkpoints.save(path, {"old": np.arange(3)})
    before = contents(tmp_path)
    limits = {".orbax": (100, 39_000), ".pt": (50_000,)}.get(suffix, (0, 100, 159_000))
    for limit in limits:
        done = subprocess.run([sys.executable, "-c", LIMITED, path, str(limit)], capture_output=True, text=True)
        assert done.stdout.strip() == str(errno.EFBIG), done.stderr
        assert contents(tmp_path) == before


READ_ONLY = """
import os, sys, numpy as np
from maskattn import checkpoints
if os.geteuid() == 0:
    os.setuid(65534)  # nobody: root may write everywhere
try:
    checkpoints.save(sys.argv[1], {"a": np.ones(2)})
except PermissionError as error:
    print("refused")
"""


def test_a_target_that_cannot_be_written():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints.save(folder / "x.npz", {"a": np.ones(1)})
        before = contents(folder)
        folder.chmod(0o555)
        for target in ("x.npz", "y.safetensors", "z.orbax", "u.safetensors.index.json"):
            command = [sys.executable, "-c", READ_ONLY, f"{folder}/{target}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.stdout.strip() == "refused", done.stderr
            assert contents(folder) == before
        folder.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_folder_that_takes_no_files_is_an_error(suffix):
    with pytest.raises(OSError):
        checkpoints.save(f"/proc/a{suffix}", {"x": np.ones(3)})


def test_a_link_as_target_is_replaced_and_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere.safetensors"
    checkpoints.save(elsewhere, {"a": np.ones(1)})
    before = elsewhere.read_bytes()
    (tmp_path / "x.safetensors").symlink_to(elsewhere)
    checkpoints.save(tmp_path / "x.safetensors", {"a": np.zeros(1)})
    assert elsewhere.read_bytes() == before and not (tmp_path / "x.safetensors").is_symlink()


def test_a_target_that_is_a_folder(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        checkpoints.save(tmp_path / "x.safetensors", {})


def test_sharded_and_single_do_not_hide_each_other(tmp_path):
    tensors = {f"t.{i}": np.arange(5.0) for i in range(4)}
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, tensors, max_shard_size=80)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 160} and set(index["weight_map"]) == set(tensors)
    for options in ({}, {"max_shard_size": 80}):
        with pytest.raises(FileExistsError, match="remove"):
            checkpoints.save(path, tensors, **options)
    for file in tmp_path.iterdir():
        file.unlink()
    checkpoints.save(path, tensors, max_shard_size=160)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(FileExistsError, match=r"model\.safetensors exists"):
        checkpoints.save(path, tensors, max_shard_size=80)


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """Peak of a process that streams 160 MB in tensors of 16 MB, above what it had before."""
    code = """
import resource, sys, numpy as np
from maskattn import checkpoints
path = sys.argv[1]
infos = {f"t.{i}": checkpoints.TensorInfo((2048, 2048), np.dtype("f4")) for i in range(10)}
base = np.random.default_rng(0).standard_normal((2048, 2048)).astype("f4")
with checkpoints.create(path, infos) as writer:
    writer.write_each(lambda name: base.T)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with checkpoints.open(path) as reader, checkpoints.create(path + ".npz", infos) as writer:
    writer.write_each(lambda name: reader[name].T)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    for suffix in (".safetensors", ".msgpack"):
        command = [sys.executable, "-c", code, str(tmp_path / f"x{suffix}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 100, f"{suffix}: {done.stdout} MB"
