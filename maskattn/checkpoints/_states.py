"""The states that a training file holds, and the one that is meant: the model's among the optimiser's, say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from maskattn.checkpoints._reader import Reader
from maskattn.typing import NumPyArray as Array

# Where training scripts keep the weights, in order of preference.
WRAPPERS = (
    "state_dict", "model_state_dict", "model", "module", "params", "net", "network", "weights", "state",
    "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema",
)  # fmt: skip
# What the state of a training run in JAX has beside its parameters.
_TRAINING = {
    "opt_state", "optimizer", "optimizer_state", "opt", "step", "global_step", "iteration", "epoch", "loss",
    "loss_scale", "rng", "rngs", "key", "tx", "ema", "ema_params", "params_ema", "ema_state",
}  # fmt: skip
_DEPTH = 4


def choose(
    path: Path, content: Mapping[Any, Any], key: str | None, is_tensor: Callable[[object], bool]
) -> tuple[Mapping[Any, Any], list[str]]:
    """The dict of tensors that is meant, of nested dicts, and what there is to say of the choice.

    ``key``: names it, its keys joined by slashes. Otherwise what a known wrapper holds is preferred to loose scalars
    beside it. ValueError lists the states that there are.
    """
    states = _states(content, is_tensor)
    if key is not None:
        if key not in states:
            raise ValueError(f"{path}: key {key!r}: no tensors there; {_listed(states)}")
        return states[key], _said(key, content, states)
    tensors = [value for value in content.values() if is_tensor(value)]
    known = [name for name in states if name and all(part in WRAPPERS for part in name.split("/"))]
    if tensors and not (known or all(value.ndim == 0 for value in tensors)):
        return content, []
    inner = [name for name in states if name]
    if not known and len(inner) != 1:
        if tensors or not content:
            return content, []
        several = "several of its entries hold tensors" if inner else "holds no tensors by name"
        raise ValueError(f"{path}: {several}; {_listed(states) if inner else f'its keys are {some(content)}'}")
    ranks = {name: [WRAPPERS.index(part) for part in name.split("/")] for name in known}
    chosen = min(known, key=lambda name: (len(ranks[name]), ranks[name])) if known else inner[0]
    return states[chosen], _said(chosen, content, states)


def _states(content: Mapping[Any, Any], is_tensor: Callable[[object], bool]) -> dict[str, Mapping[Any, Any]]:
    """Every dict that holds tensors, by its keys joined by slashes; "" is the outermost."""
    found: dict[str, Mapping[Any, Any]] = {}
    stack: list[tuple[str, int, Mapping[Any, Any]]] = [("", 0, content)]
    while stack:
        name, depth, value = stack.pop()
        if any(is_tensor(inner) for inner in value.values()):
            found[name] = value
        nested = [(k, v) for k, v in value.items() if isinstance(k, str) and isinstance(v, Mapping)]
        if depth < _DEPTH:
            stack += [(f"{name}/{k}" if name else k, depth + 1, v) for k, v in reversed(nested)]
    return found


def _said(chosen: str, content: Mapping[Any, Any], states: Iterable[str]) -> list[str]:
    top = chosen.split("/")[0]
    others = [key for key in content if key != top]
    more = [name for name in states if name not in ("", chosen) and not name.startswith(("optim", chosen + "/"))]
    hint = f" (--key takes another state: {some(more)})" if more else ""
    return [f"took {chosen!r}" + (f"; left out {some(others)}" if others else "") + hint]


def _listed(states: Iterable[str]) -> str:
    names = [name for name in states if name]
    return f"name one with --key: {some(names)}" if names else "it holds no state within another"


class Chosen(Reader):
    """A part of another reader's tree, under names that begin there."""

    def __init__(self, whole: Reader, key: str, names: Mapping[str, str], notes: list[str]) -> None:
        infos = {short: whole.infos[name] for short, name in names.items()}
        super().__init__(whole.path, infos, whole.metadata, whole._verify)
        self._whole, self._names = whole, dict(names)
        self.hashes = {short: whole.hashes[name] for short, name in names.items() if name in whole.hashes}
        self.provenance, self.notes = whole.provenance, [*whole.notes, *notes]

    def _read(self, name: str, info: Any) -> Array:
        return self._whole._read(self._names[name], self._whole.infos[self._names[name]])

    def _close(self) -> None:
        self._whole.close()


def part(reader: Reader, key: str | None) -> Reader:
    """The part of a tree that is meant: ``key``'s, or ``params`` where it lies among the rest of a training state."""
    tops = list(dict.fromkeys(name.split("/")[0] for name in reader.infos))
    if key is None:
        others = set(tops) - {"params"}
        if len(others) == len(tops) or not others or not others <= _TRAINING or reader.provenance:
            return reader
        key = "params"
    for mark in ("/", "."):
        start = key.replace("/", mark) + mark
        names = {name.removeprefix(start): name for name in reader.infos if name.startswith(start)}
        if names:
            left = list(dict.fromkeys(n.split(mark)[0] for n in reader.infos if not n.startswith(start)))
            return Chosen(reader, key, names, [f"took {key!r}" + (f"; left out {some(left)}" if left else "")])
    reader.close()
    raise ValueError(f"{reader.path}: key {key!r}: no tensors there; its names begin with {some(tops)}")


def some(keys: Iterable[object]) -> str:
    """The first of ``keys``, and how many more there are."""
    shown = [f"{key!r:.60}" for key in keys]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
