import io
import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from maskattn import checkpoints

FLOATS = [np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]


def some_tensors():
    draw = np.random.default_rng(0)
    tensors = {f"x.{dtype}": draw.standard_normal((5, 7)).astype(dtype) for dtype in FLOATS}
    tensors |= {f"ids.{kind}": np.arange(11).astype(kind) for kind in ("i1", "u1", "i2", "i4", "i8", "u8", "?")}
    return tensors | {
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(3.5),
        "scalar.bf16": tensors["x.bfloat16"][0, 0:1].reshape(()),
    }


def assert_same(left, right):
    assert set(left) == set(right)
    for name in left:
        assert (left[name].shape, left[name].dtype) == (right[name].shape, right[name].dtype), name
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_what_is_saved_is_read(tmp_path, suffix):
    tensors = some_tensors()
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


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_memory_order_does_not_matter(tmp_path, suffix):
    """safetensors' own NumPy writer stores a transpose as the array it came from (huggingface/safetensors#825)."""
    base = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    views = {"t": base.T, "strided": base[:, ::2, ::-1], "f": np.asfortranarray(base[0]), "big": base.astype(">f4")}
    checkpoints.save(tmp_path / f"a{suffix}", views)
    with checkpoints.open(tmp_path / f"a{suffix}") as src:
        for name, view in views.items():
            assert (src[name] == view).all() and src[name].dtype == np.float32, name


def test_other_libraries_read_what_is_written_and_the_other_way(tmp_path):
    tensors = some_tensors()
    ours, theirs = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    checkpoints.save(ours, tensors, metadata={"format": "pt"})
    safetensors.numpy.save_file(tensors, theirs, metadata={"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()
    assert_same(safetensors.numpy.load_file(ours), tensors)
    with checkpoints.open(theirs) as src:
        assert_same(src, tensors)
        assert src.metadata == {"format": "pt"}
    assert safetensors.torch.load_file(ours)["x.bfloat16"].dtype == torch.bfloat16
    checkpoints.save(tmp_path / "a.npz", tensors)
    with np.load(tmp_path / "a.npz") as loaded:
        assert loaded["x.float16"].tobytes() == tensors["x.float16"].tobytes()
        assert loaded["x.bfloat16"].tobytes() == tensors["x.bfloat16"].tobytes()
    plain = {name: array for name, array in tensors.items() if "bf" not in name}
    np.savez_compressed(tmp_path / "c.npz", **plain, f=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    with checkpoints.open(tmp_path / "c.npz") as src:
        assert_same(src, plain | {"f": np.arange(6.0).reshape(2, 3)})


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


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    "nothing": (b"", "a header of 0 bytes cannot lie in 0 bytes"),
    "no header": (b"\x00" * 5, "cannot lie in 5 bytes"),
    "a header longer than the file": (struct.pack("<Q", 2**63) + b"{}", "cannot lie in"),
    "not JSON": (raw(b"{"), "not valid JSON"),
    "not UTF-8": (raw(b"\xff\xfe"), "not valid JSON"),
    "nested without end": (raw(b"[" * 100_000), "not valid JSON"),
    "a list": (raw([]), "its header is a JSON list"),
    "a name twice": (raw(b'{"a": {}, "a": {}}'), "a name occurs twice"),
    "metadata not text": (raw({"__metadata__": {"a": 1}}), "__metadata__ must map names to text"),
    "an entry without offsets": (raw({"a": {"dtype": "F32", "shape": [2]}}), "must have dtype, shape and data_offsets"),
    "an unknown dtype": (raw({"a": entry("F31")}, b"\0" * 8), "has dtype 'F31'"),
    "a dtype that is a list": (raw({"a": entry([])}, b"\0" * 8), "has dtype"),
    "a negative size": (raw({"a": entry(shape=(-2, -1))}, b"\0" * 8), "has shape"),
    "a size that is true": (raw({"a": entry(shape=(True, 2))}, b"\0" * 8), "has shape"),
    "a fractional size": (raw({"a": entry(shape=(2.0,))}, b"\0" * 8), "has shape"),
    "a size beyond 64 bits": (raw({"a": entry(shape=(2**70,))}, b"\0" * 8), "has shape"),
    "sizes that wrap around": (raw({"a": entry(shape=(2**62, 2**62))}, b"\0" * 8), "needs"),
    "a size the data do not have": (raw({"a": entry(shape=(10**12,))}, b"\0" * 8), "needs 4000000000000 bytes"),
    "offsets backwards": (raw({"a": entry(offsets=(8, 0))}, b"\0" * 8), "has shape"),
    "offsets beyond the file": (raw({"a": entry(shape=(4,), offsets=(0, 16))}, b"\0" * 8), "describes 16 bytes"),
    "an overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "overlap or leave a hole"),
    "a hole": (raw({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "overlap or leave a hole"),
    "bytes left over": (raw({"a": entry()}, b"\0" * 9), "the file has 9"),
    "cut short": (raw({"a": entry()}, b"\0" * 7), "the file has 7"),
    "33 axes": (raw({"a": entry(shape=(1,) * 33, offsets=(0, 4))}, b"\0" * 4), "33 axes"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_safetensors(tmp_path, data, message):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        checkpoints.open(tmp_path / "x.safetensors")


def test_a_huge_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(200_000_100)  # sparse: takes no disk
    with pytest.raises(ValueError, match="a header of 200000000 bytes is refused"):
        checkpoints.open(path)


@pytest.mark.parametrize("kept", [0, 3, 9, 60, 200])
def test_every_truncation_is_seen(tmp_path, kept):
    for suffix in (".safetensors", ".npz"):
        path = tmp_path / f"x{suffix}"
        checkpoints.save(path, some_tensors())
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match=f"x{suffix}: "):
            checkpoints.open(path)


def test_a_file_cut_short_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoints.save(path, {"a": np.arange(100.0)})
    with checkpoints.open(path) as src:
        os.truncate(path, path.stat().st_size - 8)
        with pytest.raises(ValueError, match="ends within 'a'"):
            src["a"]


def npy(array=None, header=None):
    if header is None:
        out = io.BytesIO()
        np.save(out, array, allow_pickle=True)
        return out.getvalue()
    text = (header + "\n").encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def test_hostile_npz(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
    hostile = {
        "pickled Python objects": {"a.npy": npy(np.array([Trap()], dtype=object))},
        "needs 4000000000000 bytes": {"a.npy": npy(header=shape % "(1000000000000,)") + b"\0" * 8},
        "there twice|Duplicate": {"a.npy": npy(np.ones(1)), "a": b""},
        "is no .npy": {"a.txt": b"x"},
        "magic|cannot be read": {"a.npy": b"junk"},
        "dtype": {"a.npy": npy(np.array(["text"]))},
        "shape|size": {"a.npy": npy(header=shape % "(-1,)")},
        "version": {"a.npy": b"\x93NUMPY\x09\x00" + b"\0" * 10},
        "cannot be read": {"a.npy": npy(header="{'descr': __import__('os').mkdir('trapped')}")},
        "dtype >f8": {"a.npy": npy(np.ones(3, ">f8"))},
    }
    for message, members in hostile.items():
        with zipfile.ZipFile("x.npz", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        with pytest.raises(ValueError, match=message):
            checkpoints.open("x.npz")
    (tmp_path / "x.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        checkpoints.open("x.npz")
    assert not (tmp_path / "trapped").exists()


def test_a_zip_bomb_is_refused_before_it_inflates(tmp_path):
    size = 300 * 2**20
    header = npy(header=f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size // 4},), }}")
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as member,
    ):
        member.write(header)
        for _ in range(300):
            member.write(b"\0" * 2**20)
    assert (tmp_path / "x.npz").stat().st_size < 2**20
    with pytest.raises(ValueError, match="would inflate to 3145.* bytes, the limit is 268435456; save it uncompressed"):
        checkpoints.open(tmp_path / "x.npz")


def test_a_flipped_bit_in_npz_is_seen(tmp_path):
    path = tmp_path / "x.npz"
    checkpoints.save(path, {"a": np.zeros(1000)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with checkpoints.open(path) as src, pytest.raises(ValueError, match="'a' cannot be read: Bad CRC-32"):
        src["a"]


def test_paths_that_are_not_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoints.open(tmp_path / "x.npz")
    (tmp_path / "x.bin").write_bytes(b"")
    known = (
        r"'x\.bin' has no suffix of a known format; expected one of \.safetensors, \.safetensors\.index\.json, \.npz"
    )
    with pytest.raises(ValueError, match=known):
        checkpoints.open(tmp_path / "x.bin")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoints.open(tmp_path)
    with pytest.raises(ValueError, match=r"has no suffix of a known format; expected one of \.safetensors, \.npz$"):
        checkpoints.save(tmp_path / "x.pt", {})
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
            ValueError, match=r"(?s)a: expected a NumPy array, got builtins.list.*''.*3: names must.*torch"
        ):
            checkpoints.save(path, bad)
        with pytest.raises(ValueError, match=r"(?s)o: .*dtype object.*s: .*dtype <U1"):
            checkpoints.save(path, {"o": np.array([None]), "s": np.array(["x"])})
    with pytest.raises(ValueError, match="keeps for itself"):
        checkpoints.save(tmp_path / "x.safetensors", {"__metadata__": np.ones(1)})
    with pytest.raises(ValueError, match="metadata must map str to str"):
        checkpoints.save(tmp_path / "x.safetensors", {}, metadata={"a": 1})
    with pytest.raises(ValueError, match="no place for it"):
        checkpoints.save(tmp_path / "x.npz", {}, metadata={"a": "b"})
    with pytest.raises(TypeError, match="tensors must be a mapping"):
        checkpoints.save(tmp_path / "x.npz", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, suffix, failing):
    path = tmp_path / f"x{suffix}"
    checkpoints.save(path, {"old": np.arange(3)})
    before = path.read_bytes()

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    if failing == "write":
        fdopen = os.fdopen

        def limited(descriptor, mode):
            file = fdopen(descriptor, mode)
            write = file.write
            written = 0

            class Limited(io.RawIOBase):
                def write(self, data):
                    nonlocal written
                    written += len(memoryview(data).cast("B"))
                    return fail() if written > 100 else write(data)

                def __getattr__(self, name):
                    return getattr(file, name)

                def __exit__(self, *_):
                    file.close()

            return Limited()

        monkeypatch.setattr(os, "fdopen", limited)
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(path, {"new": np.arange(1000)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_permissions_are_those_of_a_new_file_or_of_the_old_one(tmp_path):
    path, plain = tmp_path / "x.safetensors", tmp_path / "plain"
    plain.touch()
    checkpoints.save(path, {"a": np.ones(1)})
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o600)
    checkpoints.save(path, {"a": np.ones(2)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_reading_needs_no_framework(tmp_path):
    checkpoints.save(tmp_path / "x.safetensors", some_tensors())
    code = (
        "import sys\nfrom maskattn import checkpoints\nwith checkpoints.open(sys.argv[1]) as src: dict(src)\n"
        "sys.exit(' '.join({'torch', 'jax', 'flax', 'safetensors'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compressed_data_that_are_damaged(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.random.default_rng(0).integers(0, 3, 10_000))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    for i in range(600, 900):
        data[i] ^= 0x5A
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match="cannot be read"), checkpoints.open(tmp_path / "x.npz") as src:
        src["a"]
