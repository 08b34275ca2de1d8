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
        problems = Problems("Stack")
        if self.each.count("{}") != 1:
            problems.value(f"each must hold '{{}}', the place of the layer's number, once, got {self.each!r}")
        if not self.stacked or self.stacked == self.each:
            problems.value(f"stacked must be the path of a module, other than each, got {self.stacked!r}")
        if self.axis < 0:
            problems.value(f"axis must be at least 0, got {self.axis}")
        problems.raise_if_any()

    def place(self, name: str) -> tuple[str, str] | None:
        """(what precedes the stacked layers, what follows) in the name of a stacked tensor; None for another's."""
        match = self._match(re.escape(self.stacked), name)
        return None if match is None else (match[1], match[2])

    def layer(self, name: str) -> tuple[str, int, str] | None:
        """(what precedes, the layer's number, what follows) in the name of one layer's tensor; None for another's."""
        before, after = (re.escape(part) for part in self.each.split("{}"))
        match = self._match(f"{before}(0|[1-9][0-9]*){after}", name)
        return None if match is None else (match[1], int(match[2]), match[3])

    def name(self, before: str, number: int | None, after: str) -> str:
        """The name of a layer's tensor, of what stands ``before`` and ``after``; of the stacked one where ``number`` is
        None.
        """
        module = self.stacked if number is None else self.each.format(number)
        return before + module + self.separator + after

    def unstack(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Stacked tensors -> each layer's, as views, layer by layer; other tensors as they are.

        Raises:
            ValueError: one error that lists tensors without such an axis, of other lengths than their neighbours, and
                names that are there already.
        """
        problems = Problems("unstack")
        stacks = self._stacks(tensors, problems)
        out: dict[str, Array] = {}
        for name, array in tensors.items():
            place = self.place(name)
            layers = {name: array}
            if place is not None:  # the first of a stack stands for all of it
                before, parts = place[0], stacks.pop(place[0], {})
                count = len(next(iter(parts.values()), ()))
                layers = {self.name(before, i, after): parts[after][i] for i in range(count) for after in parts}
            for other in out.keys() & layers.keys():
                problems.value(f"{other}: the name of a layer that is there already")
            out.update(layers)
        problems.raise_if_any()
        return out

    def _stacks(self, tensors: Mapping[str, Array], problems: Problems) -> dict[str, dict[str, Array]]:
        """The stacked tensors, by what precedes and what follows in their names, with the axis of layers first."""
        stacks: dict[str, dict[str, Array]] = {}
        for name, array in tensors.items():
            place = self.place(name)
            if place is None:
                continue
            if array.ndim > self.axis and array.shape[self.axis]:
                stacks.setdefault(place[0], {})[place[1]] = np.moveaxis(array, self.axis, 0)
            else:
                problems.value(f"{name}: no axis {self.axis} of layers in shape {list(array.shape)}")
        for before, parts in stacks.items():
            if len({len(layers) for layers in parts.values()}) > 1:
                lengths = (f"{self.name(before, None, after)} {len(layers)}" for after, layers in parts.items())
                problems.value(f"numbers of layers differ: {', '.join(lengths)}")
        problems.raise_if_any()
        return stacks

    def stack(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Each layer's tensors -> stacked ones, new arrays; other tensors as they are.

        Raises:
            ValueError: one error that lists layers that lack a tensor, shapes and dtypes that differ between layers,
                and names that are there already.
        """
        problems = Problems("stack")
        out: dict[str, Array] = {}
        stacks: dict[str, dict[str, dict[int, Array]]] = {}  # by what precedes, what follows, and number
        for name, array in tensors.items():
            layer = self.layer(name)
            if layer is None:
                out[name] = array
                continue
            before, number, after = layer
            stacks.setdefault(before, {}).setdefault(after, {})[number] = array
            stacked = self.name(before, None, after)
            out.setdefault(stacked, array)  # holds the place: a stack stands where its first layer stood
            if stacked in tensors:
                problems.value(f"{stacked}: the name of stacked layers that is there already")
        for before, parts in stacks.items():
            count = 1 + max(number for layers in parts.values() for number in layers)
            for after, layers in parts.items():
                stacked, kinds = self.name(before, None, after), {(a.shape, str(a.dtype)) for a in layers.values()}
                missing = [self.name(before, i, after) for i in range(count) if i not in layers]
                if missing:
                    problems.value(f"missing: {', '.join(missing)}")
                if len(kinds) > 1:
                    listed = ", ".join(f"{list(shape)} {dtype}" for shape, dtype in sorted(kinds))
                    problems.value(f"{stacked}: layers differ: {listed}")
                if not problems:
                    out[stacked] = np.stack([layers[i] for i in range(count)], axis=self.axis)
        problems.raise_if_any()
        return out

    def _match(self, module: str, name: str) -> re.Match[str] | None:
        """A module as whole parts of a path, where it comes first: groups before, those of ``module``, after."""
        joint = re.escape(self.separator)
        return re.fullmatch(f"((?:.*?{joint})??){module}{joint}(.+)", name)
