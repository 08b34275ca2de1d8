"""Writers that are killed, or at work at the same time: a whole checkpoint, or what was there before."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from maskattn import checkpoints
from maskattn.checkpoints import TensorInfo, _publish
from tests.checkpoints.fuzz import SUFFIXES

REPLACEABLE = [".safetensors", ".npz", ".msgpack", ".pt"]
FLOAT = np.dtype(np.float32)


# Saves in a new process again and again; the n-th of them ends without warning at its n-th call that changes the disk.
KILLED = """
import os, shutil, sys, warnings, numpy as np
from pathlib import Path
from maskattn import checkpoints
warnings.simplefilter("error")
path, replaceable = Path(sys.argv[1]), sys.argv[2] == "True"
options = {"max_shard_size": 30} if "index" in path.name else {}
old, new = {"old": np.arange(3)}, {f"t/{i}": np.arange(5.0) + i for i in range(3)}
def same(found, expected):
    return {n: a.tolist() for n, a in found.items()} == {n: a.tolist() for n, a in expected.items()}
def counted(name, last):
    real = getattr(os, name)
    def call(*arguments, **keywords):
        counted.calls += 1
        if counted.calls == last:
            os._exit(77)
        return real(*arguments, **keywords)
    setattr(os, name, call)
def child(last):
    counted.calls = 0
    for name in ("open", "pwrite", "write", "fsync", "replace", "rename", "unlink", "mkdir", "chmod", "rmdir"):
        counted(name, last)
    checkpoints.save(path, new, **options)
    os._exit(0)
step = 0
while True:
    step += 1
    if replaceable:
        checkpoints.save(path, old)
    pid = os.fork()
    if pid == 0:
        child(step)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 77), status
    if path.exists():
        with checkpoints.open(path) as src:
            assert same(src, new) or replaceable and same(src, old), (step, dict(src))
    else:
        assert not replaceable and status == 77, step
    if path.exists() and not replaceable:  # a checkpoint of several files is not replaced: it is removed first
        shutil.rmtree(path.parent)
        path.parent.mkdir()
    checkpoints.save(path, new, **options)  # a later writer does not stumble over what was left, and removes it
    with checkpoints.open(path) as src:
        assert same(src, new), step
    assert not [name for name in os.listdir(path.parent) if name.startswith(".")], step
    if not replaceable:
        shutil.rmtree(path.parent)
        path.parent.mkdir()
    if status == 0:
        break
print(step)
"""


# PyTorch is imported by each of many processes
@pytest.mark.parametrize("suffix", [pytest.param(x, marks=[pytest.mark.slow] * (x == ".pt")) for x in SUFFIXES])
def test_a_process_killed_at_every_step(suffix):
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of syncs
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        (Path(folder) / "x").mkdir()
        command = [sys.executable, "-c", KILLED, f"{folder}/x/x{suffix}", str(suffix in REPLACEABLE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5, "hardly any step was tried"


def test_what_a_killed_writer_left_goes_and_what_a_living_one_has_stays(tmp_path):
    path = tmp_path / "x.safetensors"
    code = """
import os, sys, numpy as np
from maskattn import checkpoints
with checkpoints.create(sys.argv[1], {"a": checkpoints.TensorInfo((3,), np.dtype("f4"))}) as writer:
    os._exit(77)
"""
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 77
    left = [file.name for file in tmp_path.iterdir()]
    assert len(left) == 1 and left[0].startswith(".x.safetensors.")
    infos = {"a": TensorInfo((3,), FLOAT)}
    with checkpoints.create(path, infos) as first:
        assert left[0] not in [file.name for file in tmp_path.iterdir()]
        with checkpoints.create(path, infos) as second:
            second.write("a", np.full(3, 2, np.float32))
        with checkpoints.open(path) as src:
            assert src["a"].tolist() == [2, 2, 2]
        first.write("a", np.full(3, 1, np.float32))
    with checkpoints.open(path) as src:  # the last to publish wins, whole
        assert src["a"].tolist() == [1, 1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors.index.json", ".orbax"])
def test_of_two_writers_of_a_folder_the_second_is_refused(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    infos = {"a": TensorInfo((3,), FLOAT)}
    with pytest.raises(FileExistsError, match="exists"), checkpoints.create(path, infos) as first:
        with checkpoints.create(path, infos) as second:
            second.write("a", np.full(3, 2, np.float32))
        first.write("a", np.full(3, 1, np.float32))
    with checkpoints.open(path) as src:
        assert src["a"].tolist() == [2, 2, 2]
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]
    with pytest.raises(FileExistsError, match="remove"), checkpoints.create(path, infos):
        pass


def test_many_writers_at_once(tmp_path):
    """Whoever is last, what is there is one of theirs, whole."""
    path = tmp_path / "x.safetensors"
    tensors = {i: {f"t.{j}": np.full(1000, i, np.float32) for j in range(3)} for i in range(8)}
    threads = [threading.Thread(target=checkpoints.save, args=(path, tensors[i])) for i in tensors]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            with checkpoints.open(path) as src:
                assert len({float(value) for array in src.values() for value in array}) == 1
        time.sleep(0.001)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".orbax"])
def test_a_temporary_swept_before_its_lock_is_made_again(tmp_path, suffix, monkeypatch):
    """Another writer's sweep may come between the creation of a temporary and its lock."""
    path = tmp_path / f"x{suffix}"
    new, made = _publish._new_folder if suffix == ".orbax" else _publish._new_file, []

    def swept(place):
        descriptor = new(place)
        made.append(place)
        if len(made) == 1:
            _publish.sweep(path)
            assert not place.exists()
        return descriptor

    monkeypatch.setattr(_publish, new.__name__, swept)
    checkpoints.save(path, {"a": np.ones(3, np.float32)})
    assert len(made) == 2
    with checkpoints.open(path) as src:
        assert src["a"].tolist() == [1, 1, 1]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
