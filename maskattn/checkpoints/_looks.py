"""What a file is by how it begins, where its name says otherwise: for messages alone."""

from __future__ import annotations

import re
from pathlib import Path

_PYTORCH = (".pt", ".bin", ".pth", ".ckpt")
#: How files begin, what they are then, and the suffixes of which that is right.
_BEGINS: tuple[tuple[bytes, str, tuple[str, ...]], ...] = (
    (rb"version https://git-lfs", "a pointer of Git LFS, not the weights: git lfs pull fetches them", ()),
    (rb"GGUF", "GGUF (llama.cpp), which is not read: convert the weights it was made of", ()),
    (rb"\x89HDF\r\n", "HDF5 (Keras), which is not read: save the weights as safetensors or .npz", ()),
    (rb"(?i)\s*<(!doctype|html)", "a web page, not the weights: the download went wrong", ()),
    (rb"(?s).{7}\x00\s*\{", "safetensors: name it .safetensors", (".safetensors",)),
    (rb"(?s)PK\x03\x04.{26}[^/]{1,200}\.npy", "an archive of NumPy's: name it .npz", (".npz",)),
    (rb"(?s)PK\x03\x04.{26}[^/]{1,200}/", "an archive as PyTorch saves it: name it .pt", _PYTORCH),
    (rb"\s*\{\s*[\"}]", "JSON, not the weights: name the folder it lies in", (".index.json",)),
)
_OTHERS = {
    ".distcp": "torch.distributed.checkpoint: torch.distributed.checkpoint.format_utils.dcp_to_torch_save makes a .pt",
    ".gguf": "GGUF: convert the weights it was made of",
    ".h5": "HDF5: load it and save the weights as safetensors",
    ".msgpack.gz": "compressed: unpack it",
    ".onnx": "ONNX, which holds a program: convert the weights it was made of",
}


def by_content(path: Path) -> str:
    """What the file at ``path`` begins as, and what to do; empty where that is not known, or is what its name says."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return ""
    for pattern, said, suffixes in _BEGINS:
        if re.match(pattern, start):
            return "" if path.name.endswith(suffixes) else said
    return ""


def others(folder: Path) -> str:
    """What a folder without a checkpoint holds that is one elsewhere; empty where that is not known."""
    names = sorted(entry.name for entry in folder.iterdir())
    for suffix, said in _OTHERS.items():
        first = next((name for name in names if name.endswith(suffix)), "")
        if first:
            return f"; {first} is of {said}"
    return ""
