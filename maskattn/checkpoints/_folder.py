"""Which file of a folder is the checkpoint: folders as training programs and model hubs leave them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from maskattn.checkpoints import _looks, orbax

# The names that model hubs give the weights, the one that their own libraries take first.
PREFERRED = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "flax_model.msgpack", "flax_model.msgpack.index.json",
)  # fmt: skip
# What training leaves beside the weights.
_STATE_OF_TRAINING = re.compile(
    r"(optimizer|optim|scheduler|scaler|sampler|rng_state|random_states|training_args)([._-].*)?\.(pt|pth|bin|npz)\Z"
)
_PART = re.compile(r"-\d{5}-of-\d{5}\.|\Aconsolidated\.\d\d\.pth\Z|\Amp_rank_\d+_model_states\.pt\Z")
_SHARD = re.compile(r"[-_](\d+)[-_]of[-_](\d+)\.(safetensors|bin|pt|pth|msgpack)$")
_MERGE = "Meta's shards are not merged here; transformers' convert_llama_weights_to_hf.py does it"
_RANKS = (
    (r"consolidated\.(\d+)\.pth", "consolidated.[0-9]*.pth", _MERGE),
    (
        r"mp_rank_(\d+)_model_states\.pt",
        "mp_rank_*_model_states.pt",
        "DeepSpeed's zero_to_fp32.py merges them",
    ),
)
_STEP = re.compile(r"(?:[A-Za-z_.-]*[_.-])?(\d{1,18})\Z")
_ITEMS = ("default", "items", "state", "params", "model")  # of a step: CheckpointManager's own names, then usual ones


def shard(path: Path) -> str:
    """Which of several shards of one model is at ``path``, by the names of files, and what to do; empty for a whole."""
    if path.is_dir():
        parts = sorted(path.glob("consolidated.[0-9]*.pth"))
        several = len(parts) > 1 and not list(path.glob("*.safetensors*"))
        return f"{len(parts)} shards of one model ({parts[0].name}, ...): {_MERGE}" if several else ""
    match = _SHARD.search(path.name)
    if match and int(match[2]) > 1:
        of, advice = f"{int(match[1])} of {int(match[2])}", "name the folder, or the index (.index.json)"
        return f"shard {of} of one model, not a whole one: {advice}"
    for pattern, those, advice in _RANKS:
        match = re.fullmatch(pattern, path.name)
        count = len(list(path.parent.glob(those))) if match else 0
        if match and (count > 1 or int(match[1])):
            of = f" of {count}" if count > 1 else ""
            return f"shard {int(match[1]) + 1}{of} of one model, not a whole one: {advice}"
    return ""


def in_folder(folder: Path, suffixes: tuple[str, ...], depth: int = 0) -> tuple[Path, list[str]]:
    """The checkpoint in ``folder``, and what there is to say of the choice; ValueError for none or several.

    An Orbax checkpoint; else the file that model hubs name so, or the only one of a known format; else the items and
    steps of Orbax's CheckpointManager, and the ``checkpoint-500`` folders of a training run: the latest is taken.
    """
    if orbax.is_checkpoint(folder):
        return folder, []
    every = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and entry.name.endswith(suffixes))
    files = [name for name in every if not _STATE_OF_TRAINING.match(name)]
    chosen = _chosen(folder, files)
    if chosen is not None:
        others = [name for name in every if name != chosen and not _PART.search(name)]
        return folder / chosen, [f"took {chosen}; left out {_some(others)}"] if others else []
    inner = _within(folder, suffixes, depth) if depth < 3 else None
    if inner is None:
        known = ", ".join(suffixes)
        raise ValueError(
            f"path: the folder {folder} holds no checkpoint ({known}){_beside(every) or _looks.others(folder)}"
        )
    return inner


def _chosen(folder: Path, files: list[str]) -> str | None:
    """The name of the file to take, None where there is none."""
    for name in PREFERRED:
        if name in files:
            return name
    indices = [name for name in files if name.endswith(".index.json")]
    whole = indices or files  # the files of an index lie beside it
    if len(whole) > 1:
        if all(re.fullmatch(r"consolidated\.\d\d\.pth", name) for name in whole):
            raise ValueError(
                f"path: the folder {folder} holds {len(whole)} parts of one model split for tensor parallelism "
                f"({_some(whole)}), each with a slice of every matrix: not supported; convert the model's Hugging Face "
                f"files instead"
            )
        if all(_PART.search(name) for name in whole):
            raise ValueError(f"path: the folder {folder} holds {len(whole)} parts of one model, and no index of them")
        raise ValueError(f"path: the folder {folder} holds several checkpoints ({', '.join(whole)}): name one")
    if whole and not indices and _PART.search(whole[0]) and "-of-00001." not in whole[0]:
        if not whole[0].startswith(("consolidated.00.", "mp_rank_00_")):
            raise ValueError(f"path: the folder {folder} holds {whole[0]}, one part of several, and no index of them")
    return whole[0] if whole else None


def _within(folder: Path, suffixes: tuple[str, ...], depth: int) -> tuple[Path, list[str]] | None:
    """What an item, the latest step or the commit of ``folder`` holds."""
    commit = _commit(folder)
    if commit is not None:
        path, notes = in_folder(commit, suffixes, depth + 1)
        return path, [f"took the commit {commit.name} of the hub's cache", *notes]
    folders = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and "orbax-checkpoint-tmp" not in entry.name
    )
    items = [name for name in folders if orbax.is_checkpoint(folder / name) and not _STEP.fullmatch(name)]
    known = [name for name in _ITEMS if name in items]
    if known or len(items) == 1:
        item = known[0] if known else items[0]
        others = [name for name in items if name != item]
        return folder / item, [f"took the item {item}" + (f"; left out {_some(others)}" if others else "")]
    if items:
        raise ValueError(f"path: the folder {folder} holds several checkpoints ({', '.join(items)}): name one")
    steps = {int(match[1]): name for name in folders if (match := _STEP.fullmatch(name)) is not None}
    for step in sorted(steps, reverse=True):
        try:
            path, notes = in_folder(folder / steps[step], suffixes, depth + 1)
        except ValueError:  # a step that was not finished
            continue
        others = [steps[n] for n in sorted(steps) if n != step]
        said = f"took {steps[step]}, the latest" + (f"; left out {_some(others)}" if others else "")
        return path, [said, *notes]
    return None


def _commit(folder: Path) -> Path | None:
    """Of a model in Hugging Face's cache, the commit that ``main`` is, or the only one."""
    commits = sorted(place for place in folder.glob("snapshots/*") if place.is_dir())
    main = folder / "refs" / "main"
    if len(commits) > 1 and main.is_file():
        commits = [place for place in commits if place.name == main.read_text(encoding="utf-8").strip()[:80]]
    return commits[0] if len(commits) == 1 else None


def _beside(files: list[str]) -> str:
    return f", only what training leaves beside one: {_some(files)}" if files else ""


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
