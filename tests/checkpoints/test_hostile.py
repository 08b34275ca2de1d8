"""A checkpoint is hostile until read: damage, lies about sizes, pickles and bombs are named errors."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from maskattn import checkpoints


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
        checkpoints.save(path, {"a": np.arange(30.0), "b": np.ones((2, 3), np.float32)})
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


def test_compressed_data_that_are_damaged(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.random.default_rng(0).integers(0, 3, 10_000))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    for i in range(600, 900):
        data[i] ^= 0x5A
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match="cannot be read"), checkpoints.open(tmp_path / "x.npz") as src:
        src["a"]
