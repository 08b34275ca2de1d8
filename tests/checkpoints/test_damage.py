"""Files that were damaged, cut short or made to do harm, in every format: refused, or read as they were written."""

import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from maskattn import checkpoints
from tests.checkpoints import fuzz
from tests.frameworks import torch

SUFFIXES = list(fuzz.SUFFIXES)


@pytest.fixture(autouse=True)
def quiet():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def sealed(request):
    """A checkpoint with hashes in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=fuzz.MEMORY_DISK) as folder:
        path = Path(folder, "ours", f"x{request.param}")
        path.parent.mkdir()
        checkpoints.save(path, fuzz.tensors(), **({"max_shard_size": 100} if "index" in request.param else {}))
        yield path


def some(size, sealed):
    """Places in a file of `size` bytes: all of a small one, its ends and a part of a larger one."""
    if sealed.suffix == ".orbax":  # each opening waits for the threads of TensorStore
        return range(0, size, 23)
    return [at for at in range(size) if size < 300 or at < 40 or at > size - 60 or at % 11 == 0]


def only_right_or_refused(path):
    fuzz.judge(path, fuzz.tensors(), sealed=True)


@pytest.mark.parametrize("sealed", SUFFIXES, indirect=True)
def test_every_byte_flipped(sealed):
    """Bytes of every file in turn, all bits of one or one bit: what is damaged is never read as something else."""
    for file in fuzz.parts(sealed):
        data = file.read_bytes()
        for at in some(len(data), sealed):
            damaged = bytearray(data)
            damaged[at] ^= 0xFF if at % 2 else 1 << at // 2 % 8
            file.write_bytes(damaged)
            only_right_or_refused(sealed)
        file.write_bytes(data)
    with checkpoints.open(sealed) as src:
        assert set(src) == set(fuzz.tensors())


@pytest.mark.parametrize("sealed", [s for s in SUFFIXES if s != ".safetensors.index.json"], indirect=True)
def test_a_flipped_payload_bit_is_seen_and_named(sealed):
    data = fuzz.tensors()["layer/query/kernel"].tobytes()
    (file,) = [file for file in fuzz.parts(sealed) if data in file.read_bytes()]
    content = bytearray(file.read_bytes())
    content[content.index(data) + 17] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match="'layer/query/kernel' (is damaged: its SHA-256|cannot be read: Bad CRC)"):
        with checkpoints.open(sealed) as src:
            assert src["layer/ids"].tolist() == list(range(7))
            src["layer/query/kernel"]
    if sealed.suffix != ".npz":
        with checkpoints.open(sealed, verify=False) as src:
            assert src["layer/query/kernel"].tobytes() != data


@pytest.mark.parametrize("sealed", SUFFIXES, indirect=True)
def test_every_truncation(sealed):
    for file in fuzz.parts(sealed):
        data = file.read_bytes()
        for kept in some(len(data), sealed):
            file.write_bytes(data[:kept])
            with pytest.raises(ValueError):
                with checkpoints.open(sealed) as src:
                    dict(src)
        file.write_bytes(data)


@pytest.mark.parametrize("sealed", SUFFIXES, indirect=True)
def test_bytes_too_many(sealed):
    for file in fuzz.parts(sealed):
        data = file.read_bytes()
        for more in (b"\0", b"}", data):
            file.write_bytes(data + more)
            only_right_or_refused(sealed)
        file.write_bytes(data)


@pytest.mark.parametrize("sealed", [".safetensors.index.json", ".orbax"], indirect=True)
def test_a_missing_file_of_several(sealed):
    for file in fuzz.parts(sealed):
        if file == sealed or file.name == "_METADATA":
            continue
        file.rename(sealed.parent / "away")
        if file.name == "_CHECKPOINT_METADATA":  # the hashes are there, and nothing else
            with checkpoints.open(sealed) as src:
                assert not src.hashes and set(src) == set(fuzz.tensors())
        else:
            with pytest.raises(ValueError):
                with checkpoints.open(sealed) as src:
                    dict(src)
        (sealed.parent / "away").rename(file)


@pytest.mark.slow
def test_a_slice_of_the_fuzzing():
    totals = fuzz.run(1800, seed=2)
    for suffix, (refused, read) in totals.items():
        assert refused > 50 and read > 3, f"{suffix}: {refused} refused, {read} read"


def test_fuzzing_sees_a_wrong_result_a_crash_and_a_wild_allocation(tmp_path, monkeypatch):
    with pytest.raises(AssertionError, match="a is read, and wrong"):
        checkpoints.save(tmp_path / "x.npz", {"a": np.ones(3)})
        fuzz.judge(tmp_path / "x.npz", {"a": np.zeros(3)}, sealed=True)
    planted = {
        "case 0 of .npz.*exit -11": "os.kill(os.getpid(), 11)",
        "(?s)case 0 of .npz.*MemoryError": "bytearray(8 * 2**30)",
        "(?s)case 0 of .npz.*KeyError": "{}['x']",
        "(?s)case 0 of .npz.*Timeout": "import time; time.sleep(60)",
    }
    source = Path(fuzz.__file__).read_text().replace("SECONDS = 60", "SECONDS = 1")
    for message, fault in planted.items():
        code = source.replace(
            "            path = copy(source, place)\n", f"            path = copy(source, place)\n            {fault}\n"
        )
        code = code.replace(
            "            try:\n                counted[judge", "            if True:\n                counted[judge"
        ).replace(
            "            except Exception as error:\n                kept",
            "            if False:\n                error = None\n                kept",
        )
        (tmp_path / "planted.py").write_text(code)
        monkeypatch.setattr(fuzz, "__file__", str(tmp_path / "planted.py"))
        with pytest.raises(AssertionError, match=message):
            fuzz.run(1, suffixes=(".npz",))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_a_pickle_that_would_run_code(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x{suffix}"
    for content in ({"a": torch.ones(2), "b": Trap()}, Trap(), {"state_dict": Trap()}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="refused: it holds .*mkdir beside tensors"):
            checkpoints.open(path)
    for data in (pickle.dumps(Trap()), pickle.dumps({"a": Trap()}, protocol=0)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a file that PyTorch wrote"):
            checkpoints.open(path)
    assert not (tmp_path / "trapped").exists()


def test_a_pytorch_with_a_loader_that_can_be_fooled_is_refused(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    for version, refused in (("2.9.1", True), ("2.5.0a0+git", True), ("2.10.0", False), ("3.0.0+cu130", False)):
        monkeypatch.setattr(torch, "__version__", version)
        if refused:
            with pytest.raises(ValueError, match=r"CVE-2026-24747.*2\.10 or newer is needed"):
                checkpoints.open(tmp_path / "x.pt")
        else:
            checkpoints.open(tmp_path / "x.pt").close()


def test_hostile_pytorch_archives(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)  # 4 bytes that stand for 4 TB
    with pytest.raises(ValueError, match=r"stand for 4398046511104 are refused"):
        checkpoints.open(path)
    torch.save({"a": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="is compressed, which PyTorch never does"):
        checkpoints.open(tmp_path / "y.pt")


def test_hostile_msgpack(tmp_path):
    path = tmp_path / "x.msgpack"
    leaf = b"\xc7\x0f\x01\x93\x91\x02\xa7float32\xc4\x08" + b"\0" * 8
    hostile = {
        "expected a map at the top": b"\x01",
        "4294967295 bytes are announced": b"\x81\xa1a\xc6\xff\xff\xff\xff",
        "nested too deep": b"\x91" * 5000,
        r"the key 'a' twice": b"\x82\xa1a" + leaf.replace(b"\x0f", b"\x15") + b"\xa1a\x01",
        "both named 'a/b'": b"\x82\xa3a/b"
        + leaf.replace(b"\x0f", b"\x15")
        + b"\xa1a\x81\xa1b"
        + leaf.replace(b"\x0f", b"\x15"),
        "do not fit its length": b"\x81\xa1a" + leaf.replace(b"\x0f", b"\x14") + b"\0",
        "needs 40 bytes, but 8 are there": b"\x81\xa1a"
        + leaf.replace(b"\x0f", b"\x15").replace(b"\x91\x02", b"\x91\x0a"),
        "has dtype 'objects'": b"\x81\xa1a" + leaf.replace(b"\x0f", b"\x15").replace(b"float32", b"objects"),
        "the code 0xc1": b"\x81\xa1a\xc1",
        "1 bytes are left over": b"\x80\x80",
        "a key that is list": b"\x81\x90\x01",
        "a text that is not UTF-8": b"\x81\xa1\xff\x01",
        "do not make an array": b"\x81\xa1a\x81\xb9__msgpack_chunked_array__\xc3",
    }
    for message, data in hostile.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            checkpoints.open(path)


@pytest.mark.torch
def test_names_that_would_leave_a_folder_do_no_harm(tmp_path):
    """No reader makes a file of a name; only Orbax stores names as folders, and refuses these."""
    tensors = {name: np.ones(2, np.float32) for name in ("../../x", "/etc/x", "..", "a\\b", "con", " ")}
    (tmp_path / "in").mkdir()
    for suffix in (".safetensors", ".npz", ".msgpack", ".pt"):
        names = list(tensors) if suffix != ".msgpack" else ["con", " "]
        checkpoints.save(tmp_path / "in" / f"x{suffix}", {name: tensors[name] for name in names})
        with checkpoints.open(tmp_path / "in" / f"x{suffix}") as src:
            assert {name: array.tolist() for name, array in src.items()} == dict.fromkeys(names, [1, 1])
    for name in tensors:
        if name not in ("con", " "):
            with pytest.raises(ValueError, match="folder|empty"):
                checkpoints.save(tmp_path / "in" / "x.orbax", {name: tensors[name]})
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("sealed", [".orbax"], indirect=True)
def test_hostile_orbax(sealed, tmp_path):
    tree = json.loads((sealed / "_METADATA").read_text())
    outside = tmp_path / "outside"
    shutil.copytree(sealed / "step", outside)

    def with_tree(change):
        changed = json.loads(json.dumps(tree))
        change(changed)
        (sealed / "_METADATA").write_text(json.dumps(changed))
        return checkpoints.open(sealed, verify=False)

    for parts in (["", "", "outside"], ["..", "outside"], ["/etc"], [""], ["a/../../../outside"]):
        leaf = {
            "key_metadata": [{"key": p, "key_type": 2} for p in parts],
            "value_metadata": {"value_type": "np.ndarray"},
        }
        with pytest.raises(ValueError, match="no name of a folder|cannot be read"):
            with_tree(lambda t, leaf=leaf: t["tree_metadata"].update(x=leaf))
    with pytest.raises(ValueError, match="an entry that cannot be read"):
        with_tree(lambda t: t["tree_metadata"].update(x={}))
    with pytest.raises(ValueError, match="has no tree_metadata"):
        with_tree(lambda t: t.pop("tree_metadata"))
    with pytest.raises(ValueError, match="both named"):
        with_tree(lambda t: t["tree_metadata"].update(x=t["tree_metadata"]["('step',)"]))
    (sealed / "_METADATA").write_text(json.dumps(tree))
    array = sealed / "layer.ids" / ".zarray"
    described = json.loads(array.read_text())
    array.write_text(json.dumps(described | {"shape": [10**12], "chunks": [7]}))
    with pytest.raises(ValueError, match="stand for 80000000.* are refused"):
        checkpoints.open(sealed)
    array.write_text(json.dumps(described | {"shape": [14], "chunks": [7]}))
    with pytest.raises(ValueError):  # a chunk that is not there is not zeros
        with checkpoints.open(sealed, verify=False) as src:
            src["layer/ids"]
    array.write_text(json.dumps(described))
    shutil.rmtree(sealed / "step")
    (sealed / "step").symlink_to(outside)
    with pytest.raises(ValueError, match="step is a link that leaves the folder"):
        checkpoints.open(sealed)


def test_big_endian_and_fortran_order_are_read_where_a_format_has_them(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "x.npz", f=np.asfortranarray(array))
    with checkpoints.open(tmp_path / "x.npz") as src:
        assert src["f"].tobytes() == array.tobytes()
    torch.save({"t": torch.from_numpy(array).t(), "h": torch.ones(2, 2, dtype=torch.bfloat16).t()}, tmp_path / "x.pt")
    with checkpoints.open(tmp_path / "x.pt") as src:
        assert src["t"].tobytes() == array.T.tobytes() and src["h"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("cases", "given"), [(20, ("--only", ".npz")), pytest.param(20000, (), marks=pytest.mark.slow)]
)
def test_fuzz_runs_as_a_command(cases, given):
    command = [sys.executable, fuzz.__file__, "--cases", str(cases), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    mutated = re.search(r"^(\d+) mutated files", done.stdout, re.MULTILINE)
    assert mutated and cases <= int(mutated[1]) < cases + 10  # as many of each format
