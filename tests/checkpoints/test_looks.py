"""A file or a folder that is something else than its name says is told by its content."""

import shutil
import zipfile

import numpy as np
import pytest

from maskattn import checkpoints

TENSORS = {"a": np.ones(3, np.float32)}


@pytest.mark.parametrize(("start", "said"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS.*git lfs pull"),
    (b"GGUF\x03\0\0\0" + bytes(40), "GGUF"),
    (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    (b"<!DOCTYPE html><html>", "a web page"),
    (b'{"model_type": "llama"}', "JSON, not the weights"),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".msgpack", ".bin", ".json"])
def test_what_is_no_checkpoint(start, said, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(start)
    with pytest.raises(ValueError, match=said):
        checkpoints.open(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
@pytest.mark.parametrize("named", [".safetensors", ".npz", ".msgpack", ".bin", ".whatever"])
def test_another_format_than_its_name_says(suffix, named, tmp_path):
    checkpoints.save(tmp_path / f"a{suffix}", TENSORS)
    shutil.copy(tmp_path / f"a{suffix}", tmp_path / f"b{named}")
    if suffix == named or (suffix, named) == (".pt", ".bin"):
        with checkpoints.open(tmp_path / f"b{named}") as reader:
            assert list(reader) == ["a"]
    else:
        with pytest.raises(ValueError, match=f"b{named}: this is .*: name it {suffix}"):
            checkpoints.open(tmp_path / f"b{named}")


def test_a_damaged_file_is_not_said_to_be_what_it_is_named(tmp_path):
    checkpoints.save(tmp_path / "a.safetensors", TENSORS)
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-2])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"no array")
    for name in ("a.safetensors", "a.npz"):
        with pytest.raises(ValueError, match=r"^(?!.*this is)"):
            checkpoints.open(tmp_path / name)


@pytest.mark.parametrize(("name", "said"), [
    ("__0_0.distcp", "dcp_to_torch_save"), ("llama.Q4_K.gguf", "GGUF"), ("tf_model.h5", "HDF5"),
])  # fmt: skip
def test_a_folder_of_something_else(name, said, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"holds no checkpoint.*{name} is of .*{said}"):
        checkpoints.open(tmp_path)


def test_ranks_of_deepspeed_are_parts_of_one_model(tmp_path):
    for rank in range(2):
        checkpoints.save(tmp_path / f"mp_rank_0{rank}_model_states.pt", TENSORS)
    with pytest.raises(ValueError, match="2 parts of one model"):
        checkpoints.open(tmp_path)
    assert "shard 2 of 2" in checkpoints.shard(tmp_path / "mp_rank_01_model_states.pt")
    (tmp_path / "mp_rank_01_model_states.pt").unlink()
    assert checkpoints.shard(tmp_path / "mp_rank_00_model_states.pt") == ""
    with checkpoints.open(tmp_path) as reader:
        assert list(reader) == ["a"]
