"""The configuration of a model travels with its weights: config.json, and what else a model's folder has."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

CONFIGS = ("config.json", "params.json")
OTHERS = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "modules.json", "1_Pooling/config.json",
)  # fmt: skip
BESIDE = ".config.json"  # after the name of a file that is not alone in its folder
_ALONE = re.compile(r"(model|pytorch_model|flax_model|consolidated(\.\d+)?)\.[a-z.]+\Z")


def carry(source: str | os.PathLike[str], target: str | os.PathLike[str], config: Path | None = None) -> list[str]:
    """Copies the configuration that stands beside the checkpoint ``source`` to the one at ``target``.

    Into a folder (Orbax), or beside a file whose name says that the folder is one model's (``model.safetensors``), goes
    everything that is found: config.json or params.json, generation and tokenizer files, under their names. Beside any
    other file goes the configuration alone, as ``<file>.config.json``. Nothing that is there is replaced, but what was
    so named for the file that stood at ``target`` before.

    Args:
        source: the file or folder that was read. target: the one that was written.
        config: the configuration, where it is not beside the source.

    Returns:
        Lines that say what was copied, and what was not.
    """
    origin, target = Path(source), Path(target)
    own, folder = origin.is_dir(), origin if origin.is_dir() else origin.parent
    beside = [] if own else [folder / (origin.name + BESIDE)]
    found = [file for file in (*beside, *(folder / name for name in CONFIGS)) if file.is_file()]
    named = config if config is not None else found[0] if found else None
    whole = target.is_dir() or _ALONE.match(target.name) is not None
    to = target if target.is_dir() else target.parent
    said: list[str] = []
    if named is not None:
        name = named.name if named.name in CONFIGS else _usual_name(named)
        apart = to / (target.name + BESIDE)
        place = to / name if whole else apart
        if whole and not target.is_dir() and place.exists() and not _same(named, place):
            said.append(f"{place} is another configuration, and stays; the source's is in {apart.name}")
            place = apart
        said += _copy(named, place, replace=place == apart)
    if whole and (own or _ALONE.match(origin.name)):
        for name in OTHERS:
            if (folder / name).is_file():
                said += _copy(folder / name, to / name)
    return said


def _usual_name(file: Path) -> str:
    """What a configuration is called in a model's own folder: Meta's, which names no type of model, is params.json."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError):
        return CONFIGS[0]
    meta = isinstance(content, dict) and "model_type" not in content and {"dim", "n_layers"} <= set(content)
    return CONFIGS[1] if meta else CONFIGS[0]


def _copy(file: Path, place: Path, *, replace: bool = False) -> list[str]:
    there = place.exists()
    if there and (_same(file, place) or not replace):
        return [] if _same(file, place) else [f"{place} is another one, and stays: {file} was not copied"]
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "rb") as read, open(place, "wb" if there else "xb") as write:
        shutil.copyfileobj(read, write)
    return [f"copied {file.name} to {place}" + (", which was another file's" if there else "")]


def _same(one: Path, other: Path) -> bool:
    return one.samefile(other) or one.read_bytes() == other.read_bytes()
