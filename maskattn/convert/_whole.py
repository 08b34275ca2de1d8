"""A whole model's tensors under the names that Hugging Face gives them, whichever form they were written in."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskattn import checkpoints
from maskattn.checkpoints import Reader, TensorInfo
from maskattn.convert import _identity, _provenance, config_json, families
from maskattn.convert._identity import Said
from maskattn.convert._match import matches
from maskattn.convert._plan import Move, Plan, plan
from maskattn.convert._run import each
from maskattn.models import gguf, sentences
from maskattn.models.files import Source
from maskattn.models.forms import of_flax
from maskattn.typing import NumPyArray as Array


class _Read(NamedTuple):
    """A file whose names are those of Hugging Face."""

    reader: Reader
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    where: str

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self.reader.infos

    def __getitem__(self, name: str) -> Array:  # type: ignore[override]
        return self.reader[name]

    def part(self, name: str, index: tuple[slice, ...]) -> Array:
        return self.reader.part(name, index)

    def each(self, names: Sequence[str], work: Callable[[str, Array], None]) -> None:
        for name in names:
            work(name, self.reader[name])


class _Planned(NamedTuple):
    """A file in another form, as the plan of the way back has it."""

    reader: Reader
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    where: str
    plan: Plan

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self.plan.outputs

    def __getitem__(self, name: str) -> Array:  # type: ignore[override]
        move = next(move for move in self.plan.moves if move.target == name)
        return _kept(move, self.reader.__getitem__)

    def part(self, name: str, index: tuple[slice, ...]) -> Array:
        whole: Array = self.__getitem__(name)
        return whole[index]

    def each(self, names: Sequence[str], work: Callable[[str, Array], None]) -> None:
        self.plan.check(self.reader.__getitem__)
        moves = {move.target: move for move in self.plan.moves}
        chosen = sorted(
            (moves[name] for name in names), key=lambda move: (move.array.sources, names.index(move.target))
        )
        each(chosen, self.plan.infos, self.reader, lambda move, read: work(move.target, _kept(move, read)))


class _Flax(NamedTuple):
    """A tree that a Flax class of transformers 4 wrote: its names are PyTorch's, but for the last part."""

    reader: Reader
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    where: str
    infos: Mapping[str, TensorInfo]
    files: Mapping[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def of(cls, reader: Reader, config: Mapping[str, Any], generation: Mapping[str, Any], where: str) -> _Flax:
        """What a file holds, by PyTorch's names: shapes and dtypes, the file's names, and which axes come first."""
        infos, files = {}, {}
        for file, info in reader.infos.items():
            name, order = of_flax(file, len(info.shape))
            infos[name] = TensorInfo(tuple(info.shape[axis] for axis in order), info.dtype)
            files[name] = file, order
        return cls(reader, config, generation, where, infos, files)

    def __getitem__(self, name: str) -> Array:  # type: ignore[override]
        file, order = self.files[name]
        return _own(self.reader[file].transpose(order))

    def part(self, name: str, index: tuple[slice, ...]) -> Array:
        whole: Array = self.__getitem__(name)
        return whole[index]

    def each(self, names: Sequence[str], work: Callable[[str, Array], None]) -> None:
        for name in names:
            work(name, self.__getitem__(name))


def _kept(move: Move, read: Callable[[str], Array]) -> Array:
    """The tensor, in memory of its own: what it was made of may be a part of something larger, or lent."""
    return _own(move.array.evaluate(read))


def _own(made: Array) -> Array:
    out = checkpoints.KEPT.empty(made.shape, made.dtype)
    np.copyto(out, made)
    return out


@contextlib.contextmanager
def open_model(path: str | os.PathLike[str]) -> Iterator[Source]:
    """The tensors of a model by the names that Hugging Face's files have, and its configuration.

    Args:
        path: a folder as Hugging Face has them (of the Flax classes of transformers 4, too), whatever ``convert``
            wrote, or a ``.gguf`` file.

    Raises:
        FileNotFoundError: nothing is there, or no configuration beside it.
        ValueError: it cannot be told what it is; it says two things; what ``plan`` raises.
    """
    where = Path(path)
    packed = gguf.found(where)
    if packed is not None:
        yield gguf.read(packed)
        return
    with checkpoints.open(where) as reader:
        yield model_of(reader, config_json.beside(reader.path), where)


def model_of(reader: Reader, config: Mapping[str, Any], where: Path, outer: str = "") -> Source:
    """An open file as `open_model` has it.

    Args:
        config: what its config.json says. where: what errors begin with.
        outer: what a wrapper put before all names, such as ``"module."``.

    Raises:
        FileNotFoundError, ValueError: see `open_model`.
    """
    said = _identity.said(config, reader.provenance)
    _refuse(where, config, said)
    folder = reader.path if reader.path.is_dir() else reader.path.parent
    config = {**config, "model_type": said.model_type, **sentences.beside(folder)}
    generation, to = _generation(reader.path), _target(reader, said, config, outer)
    if to is None and _is_tree(reader):
        return _Flax.of(reader, config, generation, str(where))
    if to is not None:
        provenance = _provenance.unwrapped(reader.provenance)
        rest = "drop" if outer else "error"  # what stands beside a wrapped model is none of it
        way = plan(reader.infos, target=to or None, config=config, rest=rest, provenance=provenance, strip_prefix=outer)
        return _Planned(reader, config, generation, str(where), way)
    reader.read_into(checkpoints.KEPT)
    return _Read(reader, config, generation, str(where))


def _refuse(where: Path, config: Mapping[str, Any], said: Said) -> None:
    if not config:
        raise FileNotFoundError(
            f"{where}: there is no config.json beside it, which says which model it is (`maskattn convert` carries one)"
        )
    if config_json.is_params(config):
        raise ValueError(f"{where}: Meta's params.json does not say all of the model: take Hugging Face's files of it")
    if said.contradiction:
        raise ValueError(f"{where}: config.json contradicts itself ({said.contradiction})")
    if not said.model_type:
        raise ValueError(f"{where}: config.json names no model_type")


def _is_tree(reader: Reader) -> bool:
    return any("/" in name for name in reader.infos)


def _target(reader: Reader, said: Said, config: Mapping[str, Any], outer: str) -> str | None:
    """The form to bring a file into; "" for the one that it came from; None where its names are those already."""
    recorded, came_from = _provenance.recorded(reader.provenance), _provenance.origin(reader.provenance)
    own = [name for name in said.families if name.startswith("hf-")]
    if outer:
        return own[0] if own else ""
    if recorded is None:
        known = said.families if _is_tree(reader) else ()
        forms = [form for name in known for form in families.forms(families.get(name, config))]
        return own[0] if own and matches(reader.infos, config, forms) else None
    if recorded.name in own and recorded.layout is None and not recorded.scan:
        return None
    plain = came_from is not None and came_from.layout is None and not came_from.scan
    if not own or (plain and came_from is not None and came_from.name in own):
        return ""
    return own[0]


def _generation(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    if not file.is_file():
        return {}
    found = json.loads(file.read_bytes())
    return found if isinstance(found, dict) else {}
