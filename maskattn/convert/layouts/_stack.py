"""Layers that are stored as one, with an axis of layers: what Flax's and Haliax's scans over layers leave behind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from maskattn._problems import Problems
from maskattn.convert.layouts._stored import Array


@dataclass(frozen=True)
class Stack:
    """Which modules are stacked layers, and how the same layers are named apart.

    For names of any layout: every tensor under the module goes along. ``unstack`` and ``stack`` undo each other.

    Args:
        stacked: the path of the module that holds all layers, for example ``encoderblock`` (big_vision),
            ``layers`` (MaxText) or ``layers.stacked`` (Haliax).
        each: the path of one layer, ``{}`` its number: ``encoderblock_{}``, ``layers_{}``, ``layers.{}``.
        axis: the axis of layers: 0, but 1 in MaxText.
        separator: what joins the parts of names.

    >>> import numpy as np
    >>> from maskattn import layouts
    >>> stack = layouts.Stack("encoderblock", "encoderblock_{}")
    >>> tensors = {"Transformer/encoderblock/LayerNorm_0/scale": np.zeros((12, 768))}
    >>> apart = stack.unstack(tensors)
    >>> len(apart), apart["Transformer/encoderblock_11/LayerNorm_0/scale"].shape
    (12, (768,))
    >>> {name: array.shape for name, array in stack.stack(apart).items()}
    {'Transformer/encoderblock/LayerNorm_0/scale': (12, 768)}

    Raises:
        ValueError: ``each`` does not hold ``{}`` once, or axis is negative.
    """

    stacked: str
    each: str
    axis: int = 0
    separator: str = "/"

    def __post_init__(self) -> None:
        found = Problems("Stack")
        if self.each.count("{}") != 1:
            found.value(f"each must hold '{{}}', the place of the layer's number, once, got {self.each!r}")
        if not self.stacked or self.stacked == self.each:
            found.value(f"stacked must be the path of a module, other than each, got {self.stacked!r}")
        if self.axis < 0:
            found.value(f"axis must be at least 0, got {self.axis}")
        found.raise_if_any()

    def place(self, name: str) -> tuple[str, str] | None:
        """(what precedes the stacked layers, what follows) in the name of a stacked tensor; None for another's."""
        found = self._match(re.escape(self.stacked), name)
        return None if found is None else (found[1], found[2])

    def layer(self, name: str) -> tuple[str, int, str] | None:
        """(what precedes, the layer's number, what follows) in the name of one layer's tensor; None for another's."""
        before, after = (re.escape(part) for part in self.each.split("{}"))
        found = self._match(f"{before}(0|[1-9][0-9]*){after}", name)
        return None if found is None else (found[1], int(found[2]), found[3])

    def name(self, before: str, number: int | None, after: str) -> str:
        """The name of a layer's tensor; of the stacked one where ``number`` is None."""
        module = self.stacked if number is None else self.each.format(number)
        return before + module + self.separator + after

    def unstack(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Stacked tensors -> each layer's, as views, layer by layer; other tensors as they are.

        Raises:
            ValueError: one error that lists tensors without such an axis, of other lengths than their neighbours, and
                names that are there already.
        """
        found = Problems("unstack")
        stacks: dict[str, dict[str, Array]] = {}
        for name, array in tensors.items():
            place = self.place(name)
            if place is not None:
                if array.ndim <= self.axis or not array.shape[self.axis]:
                    found.value(f"{name}: no axis {self.axis} of layers in shape {list(array.shape)}")
                else:
                    stacks.setdefault(place[0], {})[place[1]] = array
        for before, parts in stacks.items():
            lengths = {self.name(before, None, after): array.shape[self.axis] for after, array in parts.items()}
            if len(set(lengths.values())) > 1:
                found.value("numbers of layers differ: " + ", ".join(f"{n} {length}" for n, length in lengths.items()))
        found.raise_if_any()
        out: dict[str, Array] = {}
        for name, array in tensors.items():
            place = self.place(name)
            new = {name: array} if place is None else self._layers(place[0], stacks.pop(place[0], {}))
            for other in out.keys() & new.keys():
                found.value(f"{other}: the name of a layer that is there already")
            out.update(new)
        found.raise_if_any()
        return out

    def stack(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Each layer's tensors -> stacked ones, new arrays; other tensors as they are.

        Raises:
            ValueError: one error that lists layers that lack a tensor, shapes and dtypes that differ between layers,
                and names that are there already.
        """
        found = Problems("stack")
        parts: dict[str, dict[int, Array]] = {}
        numbers: dict[str, int] = {}
        for name, array in tensors.items():
            layer = self.layer(name)
            if layer is not None:
                parts.setdefault(self.name(layer[0], None, layer[2]), {})[layer[1]] = array
                numbers[layer[0]] = max(numbers.get(layer[0], 0), layer[1] + 1)
        out: dict[str, Array] = {}
        for name, array in tensors.items():
            layer = self.layer(name)
            new = name if layer is None else self.name(layer[0], None, layer[2])
            if layer is None:
                if new in parts:
                    found.value(f"{new}: the name of stacked layers that is there already")
                out[new] = array
            elif new not in out:
                wanted = [self.name(layer[0], i, layer[2]) for i in range(numbers[layer[0]])]
                missing = [wanted[i] for i in range(len(wanted)) if i not in parts[new]]
                kinds = {(tuple(x.shape), str(x.dtype)) for x in parts[new].values()}
                if missing:
                    found.value(f"missing: {', '.join(missing)}")
                if len(kinds) > 1:
                    listed = ", ".join(f"{list(shape)} {dtype}" for shape, dtype in sorted(kinds))
                    found.value(f"{new}: layers differ: {listed}")
                if not found:
                    out[new] = np.stack([parts[new][i] for i in range(len(wanted))], axis=self.axis)
        found.raise_if_any()
        return out

    def _layers(self, before: str, parts: Mapping[str, Array]) -> dict[str, Array]:
        """Every layer of one stack, as views; of a stack that is done, nothing."""
        count = next((array.shape[self.axis] for array in parts.values()), 0)
        first = {after: np.moveaxis(array, self.axis, 0) for after, array in parts.items()}
        return {self.name(before, i, after): array[i] for i in range(count) for after, array in first.items()}

    def _match(self, module: str, name: str) -> re.Match[str] | None:
        """A module as whole parts of a path, where it comes first: groups before, those of ``module``, after."""
        joint = re.escape(self.separator)
        return re.fullmatch(f"((?:.*?{joint})??){module}{joint}(.+)", name)
