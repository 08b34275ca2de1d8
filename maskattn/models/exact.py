"""The exact arithmetic of whole models: `Ops` by the functions of `numerics/exact`, in any framework.

Where an array is read several times, its gradient is a sum of several. Frameworks add these as they like, and XLA takes
subnormal numbers for 0, so each reading but the last reads one side of a fork: gradients are then added here, in the
order in which the arrays were read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Generic

import numpy as np

from maskattn.attention import Framework, KernelCannot
from maskattn.models.leaves import Conv, Embedding, Leaf, Linear, Norm
from maskattn.models.model import Output
from maskattn.models.part import B, Ops, Part
from maskattn.modules.exact import ExactParts
from maskattn.numerics.exact.activation import ACTIVATIONS
from maskattn.typing import Traced

__all__ = ["Exact", "refuse"]

#: What rounds nothing, and is the twin's own.
_PLAIN: tuple[str, ...] = ("fold", "first_of", "arange", "as_array", "concatenate", "where", "split")
_PLAIN += ("order", "take", "uniform", "cast")
#: What a layer must be, since its numbers are read and it is not called.
PLAIN_LAYER = "it computes from the layer's weight, so use another kernel, or merge or remove what was added"


def refuse(table: Part, added: Iterator[tuple[str, str]]) -> None:
    """Raise KernelCannot where a model has more than the exact arithmetic can compute.

    Args:
        added: (path, what it is) of modules that are no layers as the table has them.
    """
    reasons = [f"{path} must be a plain layer, got {what}: {PLAIN_LAYER}" for path, what in added]
    reasons += [f"{type(part).__name__}: {part.inexact}" for part in table.parts() if part.inexact]
    for path, leaf in table.leaves():
        if isinstance(leaf, Conv) and not _cuts(leaf):
            reasons.append(f"{path} must be a product of patches, got a convolution of windows that overlap")
    if reasons:
        raise KernelCannot("exact", list(dict.fromkeys(reasons)))


def _cuts(leaf: Conv) -> bool:
    """Whether windows lie side by side, and all channels are read together."""
    stride = leaf.stride * len(leaf.size) if len(leaf.stride) == 1 else leaf.stride
    return tuple(stride) == tuple(leaf.size) and not leaf.padding and leaf.groups == 1


class Exact(Generic[B]):
    """See `maskattn.models.part.Ops`; one for each call of a model. Each result is the true value, rounded once.

    Attributes:
        plain: the twin's other arithmetic, of which what does not round is taken.
        arithmetic: the parts of attention, and all exact functions.
    """

    def __init__(self, plain: Ops[B], arithmetic: ExactParts) -> None:
        self.plain, self.arithmetic, self.exact = plain, arithmetic, arithmetic.exact
        self._read: dict[int, list[tuple[B, object, B]]] = {}

    @property
    def framework(self) -> Framework[B]:
        """Of attention."""
        return self.plain.framework

    def __getattr__(self, name: str) -> Callable[..., Traced]:
        if name not in _PLAIN:
            raise KernelCannot("exact", [f"{name} has no exact form"])
        made: Callable[..., Traced] = getattr(self.plain, name)
        return made

    # What a twin has of its own --------------------------------------------------------------------------------------

    def numbers(self, leaf: Leaf, module: Traced) -> tuple[B | None, B | None]:
        """Weight and bias of a layer as it holds them, or None: of a linear one [in, out], of a convolution
        [*size, in, out]."""
        raise NotImplementedError

    def fork(self, x: B) -> tuple[B, B]:
        """x twice; its gradient is that of both added, rounded once."""
        raise NotImplementedError

    def scope(self) -> object:
        """What is being traced: what was read in another trace may not be read here."""
        raise NotImplementedError

    def is_followed(self, x: B) -> bool:
        """Whether gradients of x may be asked for."""
        raise NotImplementedError

    def drop(self, x: B, rate: float, key: B) -> B:
        """Dropout of each number by itself."""
        raise NotImplementedError

    def once(self, x: B) -> B:
        """x for one reading."""
        if not self.is_followed(x):
            return x
        scope, entries = self.scope(), self._read.setdefault(id(x), [])
        for place, (_, where, rest) in enumerate(entries):
            if where == scope:
                first, rest = self.fork(rest)
                entries[place] = (x, scope, rest)
                return first
        first, rest = self.fork(x)
        entries.append((x, scope, rest))
        return first

    def outputs(self, out: Output[B]) -> Output[B]:
        """What a model gives, each array for one reading more; but for caches, and what has no gradient."""

        def read(x: Traced) -> Traced:
            if isinstance(x, Output):
                return self.outputs(x)
            return tuple(map(self.once, x)) if isinstance(x, tuple) else self.once(x)

        found = {each.name: getattr(out, each.name) for each in fields(out) if each.name not in ("cache", "masked")}
        return replace(out, **{name: read(x) for name, x in found.items() if x is not None})

    # The rest is written once ----------------------------------------------------------------------------------------

    def _held(self, leaf: Leaf, module: Traced) -> tuple[Traced, Traced]:
        return self.numbers(leaf, module)

    def linear(self, leaf: Linear, module: object, x: B) -> B:
        """x [..., inputs] -> [..., outputs]."""
        made: B = self.arithmetic.linear(self.once(x), *self._held(leaf, module))
        return made

    def norm(self, leaf: Norm, module: object, x: B) -> B:
        """x [..., width] normed."""
        given: Traced = self.once(x)
        made: Traced = self.exact.norm(
            given[..., None, :], *self._held(leaf, module), kind=leaf.kind, eps=leaf.eps, plus_one=leaf.plus_one
        )
        return made[..., 0, :]

    def embed(self, leaf: Embedding, module: object, ids: B) -> B:
        """Rows of the table, [..., width]; NaN where there is no such row."""
        numbers: Traced = ids
        made = self.exact.embed(self._held(leaf, module)[0], ids)
        there = (numbers >= 0) & (numbers < leaf.rows)
        return self.plain.where(there[..., None], made, self.plain.cast(self.plain.as_array(float("nan"), made), made))

    def logits(self, leaf: Embedding, module: object, x: B, bias: B | None) -> B:
        """x [..., width] by all rows of the table: [..., rows]."""
        made: B = self.arithmetic.linear(self.once(x), self._held(leaf, module)[0].T, bias)
        return made

    def conv(self, leaf: Conv, module: object, x: B) -> B:
        """x [B, *places, inputs] -> [B, *places, outputs], of windows that lie side by side."""
        weight, bias = self._held(leaf, module)
        patches: Traced = self.once(x)
        for axis, size in enumerate(leaf.size):
            # [.., places, rest of the axes] -> the numbers of a window last, those of its first axis first
            count = patches.shape[1 + axis] // size
            patches = patches[(slice(None),) * (1 + axis) + (slice(0, count * size),)]
            shape = patches.shape
            patches = patches.reshape((*shape[: 1 + axis], count, size, *shape[2 + axis :]))
            patches = self._last(patches, 2 + axis)
        places = patches.shape[: 1 + len(leaf.size)]
        channels = patches.reshape((*places, leaf.inputs, math.prod(leaf.size))).swapaxes(-1, -2)
        made: B = self.arithmetic.linear(channels.reshape((*places, -1)), weight.reshape((-1, leaf.outputs)), bias)
        return made

    def _last(self, x: Traced, axis: int) -> Traced:
        """An axis moved behind all others."""
        for place in range(axis, len(x.shape) - 1):
            x = x.swapaxes(place, place + 1)
        return x

    def array(self, held: Traced) -> B:
        """The numbers of a parameter that stands by itself."""
        return self.once(self.plain.array(held))

    def activate(self, x: B, name: str) -> B:
        """One of `ACTIVATIONS` of each number."""
        if name not in ACTIVATIONS:
            raise KernelCannot("exact", [f"the activation {name} has no exact form"])
        return x if name == "linear" else self.exact.activate(self.once(x), name)

    def broadcast(self, x: B, shape: Sequence[int]) -> B:
        """x of a larger shape; its gradient is one sum."""
        if not self.is_followed(x):
            return self.plain.broadcast(x, shape)
        whole = self.plain.as_array(np.ones(tuple(shape), np.float32), x)
        return self.product(x, self.plain.cast(whole, x))

    def products(self, x: B, y: B) -> B:
        """x [..., width] by all rows of y [rows, width]: [..., rows]."""
        rows: Traced = self.once(y)
        made: B = self.arithmetic.linear(self.once(x), rows.T)
        return made

    def mean(self, x: B, keep: Traced = None) -> B:
        """The mean of x [B, L, E] over L, or over what is kept of it, bool [B, L]: pairs are added, then
        their sums; the last is multiplied by 1 / how many there are.
        """
        use = self.plain
        given: Traced = self.once(x)
        length = given.shape[1]
        shares: Traced = use.as_array(np.float32(1) / np.maximum(np.arange(length + 1, dtype=np.float32), 1), x)
        if keep is not None:
            given = use.where(keep[..., None], given, use.cast(use.as_array(np.zeros((), np.float32), x), given))
        while (count := given.shape[1]) > 1:
            half = count // 2
            pieces = use.split(given, (half, half, count % 2) if count % 2 else (half, half), 1)
            given = self.add(pieces[0], pieces[1])
            given = use.concatenate([given, *pieces[2:]], 1)
        counts: Traced = length if keep is None else keep.sum(1)
        share: Traced = use.cast(shares[counts], given)
        total: Traced = given
        return self.product(total[:, 0], share if keep is None else share[:, None])

    def rows(self, table: B, ids: B) -> B:
        """Rows of an array [rows, width]: [..., width]."""
        return self.exact.embed(self.once(table), ids)

    def product(self, x: B, y: B) -> B:
        """x times y, which broadcast."""
        return self.exact.multiply(self.once(x), self.once(y))

    def scaled(self, x: B, factor: float) -> B:
        """x times a number."""
        return self.exact.activate(self.once(x), "linear", factor)

    def add(self, x: B, y: B, factor: float = 1.0) -> B:
        """x plus factor times y, which broadcast."""
        return self.exact.add(self.once(x), self.once(y), factor)
