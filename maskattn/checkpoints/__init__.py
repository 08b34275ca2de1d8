"""How files store tensors: lazy readers that trust nothing, writers that leave a whole file or none.

One format per file here, entered in ``_FORMATS``: its ``SUFFIXES``, ``open_file(path)`` and, where it can be written,
``save``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from maskattn.checkpoints import npz, safetensors, sharded
from maskattn.checkpoints._base import Reader, TensorInfo, writable

__all__ = ["Reader", "TensorInfo", "open", "save"]

_FORMATS: tuple[ModuleType, ...] = (safetensors, sharded, npz)


def open(path: str | os.PathLike[str]) -> Reader:
    """Opens a checkpoint as a lazy mapping of names to NumPy arrays; use it in a ``with`` statement.

    Args:
        path: a ``.safetensors`` file, the ``.safetensors.index.json`` of a sharded one, an ``.npz`` file, or a folder
        that
            holds one checkpoint in one of these forms.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a suffix of no known format, a folder with none or several checkpoints, a damaged or hostile file.
            No Python object is ever unpickled; sizes are checked before memory is taken.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a str or a path, got {type(path).__name__}")
    where = Path(path)
    if where.is_dir():
        where = _in_folder(where)
    if not where.exists():
        raise FileNotFoundError(f"path: no checkpoint at {where}")
    reader: Reader = _format(where, "open_file").open_file(where)
    return reader


def save(
    path: str | os.PathLike[str], tensors: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes NumPy arrays to ``path`` (.safetensors or .npz), replacing a file that is there.

    The file is written beside its place, synced and renamed: whatever fails, what was at ``path`` is still there.

    Args:
        path: where to; its suffix names the format.
        tensors: names to NumPy arrays of any memory order.
        metadata: text to text, for safetensors' ``__metadata__`` (transformers expects ``{"format": "pt"}`` there).

    Raises:
        ValueError: an unknown suffix, a dtype the format has no name for, values that are not arrays: all at once.
        OSError: the file cannot be written.
    """
    where = Path(path)
    if metadata is not None and not all(isinstance(part, str) for pair in metadata.items() for part in pair):
        raise ValueError(f"metadata must map str to str, got {dict(metadata)!r}")
    _format(where, "save").save(where, writable(tensors), metadata)


def _format(path: Path, function: str) -> ModuleType:
    able = [module for module in _FORMATS if hasattr(module, function)]
    for module in able:
        if path.name.endswith(module.SUFFIXES):
            return module
    known = ", ".join(suffix for module in able for suffix in module.SUFFIXES)
    raise ValueError(f"path: {path.name!r} has no suffix of a known format; expected one of {known}")


def _in_folder(folder: Path) -> Path:
    names = sorted(entry.name for entry in folder.iterdir())
    suffixes = tuple(suffix for module in _FORMATS for suffix in module.SUFFIXES)
    found = [name for name in names if name.endswith(suffixes)]
    indices = [name for name in found if name.endswith(sharded.SUFFIXES)]
    found = indices or found  # the files of an index lie beside it
    if len(found) != 1:
        known = ", ".join(suffixes)
        what = f"several checkpoints ({', '.join(found)}): name one" if found else f"no checkpoint ({known})"
        raise ValueError(f"path: the folder {folder} holds {what}")
    return folder / found[0]
