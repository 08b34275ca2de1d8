"""Adapters as PEFT stores them: LoRA beside linear layers, and modules that are replaced."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from maskattn import checkpoints
from maskattn._problems import Problems
from maskattn.arrays import dtype_named
from maskattn.checkpoints import TensorInfo
from maskattn.models.files import Source
from maskattn.models.forms import Names, Piece
from maskattn.models.leaves import Leaf, Linear, LoRA, Tensor, first_numbers
from maskattn.models.model import WholeModel
from maskattn.models.part import Part
from maskattn.typing import NumPyArray

P = TypeVar("P", bound=Part)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DOWN, _UP = "lora_A", "lora_B"
#: Keys of a configuration that change nothing of what a loaded adapter computes, or that are read here.
_READ = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config eva_config exclude_modules fan_in_fan_out "
    "inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout "
    "lora_ga_config megatron_core modules_to_save peft_type peft_version qalora_group_size r rank_pattern revision "
    "runtime_config target_modules task_type use_rslora ensure_weight_tying".split()
)
#: How adapters begin that leave the model's own weights as they are.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter of one model: what a folder of PEFT holds, or what a new one is to be (`new`).

    Attributes:
        config: what its adapter_config.json says.
        tensors: by the names that they have in the model, as they are stored; none of a new one.
        text: the bytes of the file of the configuration; None: none was read.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, NumPyArray] = field(default_factory=dict)
    text: bytes | None = None

    def on(self, table: P) -> P:
        """A model's table with the adapter's layers.

        Raises:
            ValueError: tensors that fit no layer of the model, or layers that are named and not there: all in one.
        """
        problems, used = Problems("adapter"), set[str]()
        head = getattr(table, "head", None)
        tied = getattr(getattr(head, "tied", None), "name", None)

        def change(path: str, leaf: Leaf) -> Leaf:
            names = {f"{path}.{name}" if name else path: tensor for name, tensor in leaf.tensors().items()}
            if self.replaces(names):
                used.update(names)
                for name, tensor in names.items():
                    self._check(name, tensor.shape, problems)
                if path == tied:
                    problems.value(f"{path}: cannot be replaced, since the head is the same table")
                return replace(leaf, adapter=True)
            if not isinstance(leaf, Linear) or not self.adapts(path, leaf, head):
                return leaf
            made = replace(leaf, lora=self._lora(path, leaf))
            for each in made.within():
                name = f"{path}{each.name.removeprefix(leaf.name)}.weight"
                used.add(name)
                if self.tensors:
                    self._check(name, each.tensors()["weight"].shape, problems)
            return made

        made = table.changed(change)
        for name in sorted(self.tensors.keys() - used):
            problems.value(
                f"{_PREFIX}{name}: the model has no linear layer, nor a module that is replaced, of this name"
            )
        if not used:
            problems.value(f"target_modules {self.config.get('target_modules')}: the model has no such linear layer")
        problems.raise_if_any()
        return made

    def replaces(self, names: Mapping[str, Tensor]) -> bool:
        """Whether the module of these tensors is replaced."""
        return bool(names) and names.keys() <= self.tensors.keys()

    def adapts(self, path: str, leaf: Leaf, head: object = None) -> bool:
        """Whether there is a LoRA beside a linear layer: of what was read, where it has tensors."""
        if self.tensors:
            return f"{path}.{_DOWN}.weight" in self.tensors
        wanted = self.config["target_modules"]
        if wanted == "all-linear":
            return leaf is not getattr(head, "project", None)
        if isinstance(wanted, str):
            return re.fullmatch(wanted, path) is not None
        return any(path == name or path.endswith(f".{name}") for name in wanted)

    def numbers(self, name: str, tensor: Tensor, wide: bool = True) -> NumPyArray | None:
        """What a parameter of the adapter begins with, as published; None of the model's own, and of a new adapter's.

        Args:
            wide: whether numbers of 16 bits become float32, in which adapters are trained.
        """
        found = self.tensors.get(name)
        narrow = found is not None and wide and found.dtype.itemsize == 2 and _is_lora(name)
        return found.astype(np.float32) if found is not None and narrow else found

    def beside(self, source: Source) -> Source:
        """A model's file, with the modules that are replaced as the adapter has them."""
        infos, names = dict(source.infos), Names(str(source.config.get("model_type", "")), source.infos)
        replaced = {}
        for name, array in self.tensors.items():
            if not _is_lora(name):
                pieces = names.find(name, array.shape) or (Piece(name),)
                if len(pieces) > 1 or pieces[0].there or pieces[0].here:
                    raise ValueError(f"adapter: {_PREFIX}{name}: cannot be replaced, since the file has it in parts")
                replaced[pieces[0].file] = array
                infos[pieces[0].file] = TensorInfo(array.shape, array.dtype)
        return _Beside(source, infos, replaced) if replaced else source

    def _lora(self, path: str, leaf: Linear) -> LoRA:
        config = self.config
        rank = _pattern(config.get("rank_pattern"), path, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        down = Linear(f"{leaf.name}.{_DOWN}", leaf.inputs, rank, False, axes=(leaf.axes[0], None), adapter=True)
        up = Linear(
            f"{leaf.name}.{_UP}", rank, leaf.outputs, False, axes=(None, leaf.axes[1]), begins=0.0, adapter=True
        )
        return LoRA(down, up, scale, float(config.get("lora_dropout") or 0.0))

    def _check(self, name: str, shape: Sequence[int], problems: Problems) -> None:
        found = self.tensors.get(name)
        if found is None:
            problems.value(f"{_PREFIX}{name}: missing, expected {list(shape)}")
        elif found.shape != tuple(shape):
            problems.value(f"{_PREFIX}{name}: has shape {list(found.shape)}, expected {list(shape)}")


@dataclass(frozen=True)
class _Beside:
    """A file some of whose tensors are others."""

    source: Source
    infos: Mapping[str, TensorInfo]
    replaced: Mapping[str, NumPyArray]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.source.config

    @property
    def generation(self) -> Mapping[str, Any]:
        return self.source.generation

    @property
    def where(self) -> str:
        return self.source.where

    def __getitem__(self, name: str) -> NumPyArray:
        return self.replaced[name].copy() if name in self.replaced else self.source[name]

    def part(self, name: str, index: tuple[slice, ...]) -> NumPyArray:
        return self.replaced[name][index].copy() if name in self.replaced else self.source.part(name, index)

    def each(self, names: Sequence[str], work: Callable[[str, NumPyArray], None]) -> None:
        self.source.each([name for name in names if name not in self.replaced], work)
        for name in names:
            if name in self.replaced:
                work(name, self[name])


def of(adapter: str | os.PathLike[str] | Adapter | None) -> Adapter | None:
    """An adapter, or one of a folder."""
    return adapter if adapter is None or isinstance(adapter, Adapter) else read(adapter)


def new(
    targets: Sequence[str] | str,
    *,
    rank: int = 8,
    alpha: float = 8,
    dropout_rate: float = 0.0,
    rank_scaled: bool = False,
    base: str | None = None,
) -> Adapter:
    """An adapter that changes nothing yet: the numbers that its layers end with are 0.

    Args:
        targets: of linear layers the paths, or what they end with; a regular expression of whole paths; "all-linear".
        rank: of the products. alpha: the scale is alpha / rank, or with rank_scaled alpha / sqrt(rank).
        dropout_rate: of what the layers read, in training.
        base: what PEFT is told that the model is called.

    Raises:
        TypeError, ValueError: lists every argument at fault.
    """
    problems = Problems("adapters.new")
    problems.integer("rank", rank, 1)
    problems.finite("alpha", problems.number("alpha", alpha))
    rate = problems.number("dropout_rate", dropout_rate)
    if rate is not None and not 0.0 <= rate < 1.0:
        problems.value(f"dropout_rate must be in [0, 1), got {dropout_rate}")
    if not targets or not all(isinstance(name, str) for name in targets):
        problems.type(f"targets must be names of linear layers, got {targets!r}")
    problems.raise_if_any()
    config: dict[str, Any] = {"peft_type": "LORA", "base_model_name_or_path": base, "task_type": None, "bias": "none"}
    config |= {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout_rate, "use_rslora": rank_scaled}
    return Adapter(config | {"target_modules": targets if isinstance(targets, str) else list(targets)})


def read(path: str | os.PathLike[str]) -> Adapter:
    """A folder of PEFT: adapter_config.json and adapter_model.safetensors.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError: one of the two is not there. ValueError: it is no LoRA, or has what is not read here: all
            in one error.
    """
    folder = Path(path)
    text = (folder / CONFIG).read_bytes()
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG} is not valid JSON ({error})") from None
    problems = Problems(str(folder))
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG}: expected a JSON object, got {type(config).__name__}")
    _check_config(config, problems)
    tensors = {}
    with checkpoints.open(folder / WEIGHTS) as reader:
        for name in reader:
            if name.startswith(_PREFIX):
                tensors[name.removeprefix(_PREFIX)] = reader[name]
            else:
                problems.value(f"{name}: names of tensors begin with {_PREFIX}")
    if not tensors:
        problems.value(f"{WEIGHTS}: has no tensors")
    problems.raise_if_any()
    return Adapter(config, tensors, text)


def write(
    adapter: Adapter,
    table: WholeModel,
    arrays: Callable[[str, Tensor], NumPyArray],
    path: str | os.PathLike[str],
) -> None:
    """Writes a folder as PEFT reads it: of an adapter that was read the same names, shapes, dtypes and bytes.

    Args:
        adapter: which it is. table: with its layers. arrays: its parameters, as published. path: the folder.
    """
    held = {
        (f"{at}.{name}" if name else at): tensor
        for at, leaf in table.leaves()
        if leaf.adapter
        for name, tensor in leaf.tensors().items()
    }
    dtypes = {name: adapter.tensors[name].dtype if name in adapter.tensors else dtype_named("float32") for name in held}
    infos = {_PREFIX + name: TensorInfo(tensor.shape, dtypes[name]) for name, tensor in held.items()}

    def make(file: str) -> NumPyArray:
        name = file.removeprefix(_PREFIX)
        return arrays(name, held[name]).astype(dtypes[name], copy=False)

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoints.create(folder / WEIGHTS, infos, metadata={"format": "pt"}) as writer:
        writer.write_each(make)
    text = json.dumps(dict(adapter.config), indent=2, sort_keys=True).encode() if adapter.text is None else adapter.text
    (folder / CONFIG).write_bytes(text)


def without(table: P) -> P:
    """A table without adapters: what it becomes when they are merged into the weights."""

    def change(path: str, leaf: Leaf) -> Leaf:
        leaf = replace(leaf, lora=None) if isinstance(leaf, Linear) else leaf
        return replace(leaf, adapter=False)

    return table.changed(change)


def _check_config(config: Mapping[str, Any], problems: Problems) -> None:
    kind, start = config.get("peft_type"), config.get("init_lora_weights", True)
    if kind != "LORA":
        problems.value(f"peft_type {kind!r} is not read: only 'LORA' is")
    if config.get("bias", "none") != "none":
        problems.value(f"bias {config['bias']!r} is not read: only 'none' is")
    if start not in _STARTS:
        problems.value(f"init_lora_weights {start!r} is not read: it changes the model's own weights")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), (int, float)) or config[key] <= 0:
            problems.value(f"{key} must be a positive number, got {config.get(key)!r}")
    for key, value in config.items():
        if key not in _READ and value:
            problems.value(f"{key} {value!r} is not read")


def _pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that a path ends with, as PEFT matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def start(adapter: Adapter, name: str, tensor: Tensor) -> NumPyArray:
    """What a parameter of LoRA begins with, as published: the adapter's own numbers, or those of a new one."""
    found = adapter.numbers(name, tensor)
    return first_numbers(name, tensor) if found is None else found


def _is_lora(name: str) -> bool:
    return name.endswith((f".{_DOWN}.weight", f".{_UP}.weight"))
