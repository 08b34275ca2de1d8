"""DTensors: each device attends for the batch rows, heads and queries that it has, with the kernels of plain tensors.

Query, key and value are divided alike along batch and heads, which needs no communication. Where queries are sharded,
keys and values are gathered along their length, and the gradients of both are summed and scattered again. Widths are
gathered. Masks, biases, sinks and the draw of dropout are those of the whole, moved to the part; arrays that are no
DTensors are taken to be the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor as Array

from maskattn.attention import (
    Call,
    Framework,
    PartOfCall,
    attend_anew as attend,
    check_attention,
    choose,
    prepare,
    refuse_empty_rows,
)
from maskattn.biases import Bias, DenseBias
from maskattn.masks import Dense, Mask
from maskattn_torch._devices import PLAIN, axis_of, from_local, gathered, is_spread, part_of, replicated, tensors
from maskattn_torch._parts import Part, bias_of, mask_of, scores
from maskattn_torch.types import Given

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement

__all__ = ["explain", "spread"]

#: The axes of query and output, as letters: batch, queries, heads, widths.
_QUERY, _KEYS = "BLH-", "B-H-"


def spread(framework: Framework[Array], call: Call[Any]) -> Callable[[Call[Any]], Any] | None:
    """`Framework.spread`."""
    if type(call.query) in PLAIN and type(call.key) in PLAIN and type(call.value) in PLAIN and call.sinks is None:
        return None
    if not is_spread(call.query, call.key, call.value, call.sinks):
        return None
    return partial(_attend, framework)


def _attend(framework: Framework[Array], call: Call[Any]) -> Any:
    """The output of a call of DTensors, sharded as its queries are, or (output, lse).

    Raises:
        TypeError, ValueError: as `attention` for the whole arrays; DTensors and plain tensors are mixed; DTensors of
            several meshes.
    """
    division, call = _checked(call, framework)
    found = attend(division.call(call, division.local), framework)
    return tuple(division.whole(x) for x in found) if isinstance(found, tuple) else division.whole(found)


def explain(call: Call[Any], framework: Framework[Array]) -> tuple[str, str]:
    """(kernel, why) of this device's part, and what is gathered for it. Nothing is sent."""
    division, call = _checked(call, framework)
    part = division.call(call, division.like)
    kernel, why = choose(prepare(part, framework), framework)
    sizes = ", ".join(f"{name} {size}" for name, size in zip("BHLS", part.sizes, strict=True))
    said = "; ".join(division.gathered(call)) or "nothing is gathered"
    return kernel, f"{why}. On this device {sizes}: {said}"


def _checked(call: Call[Any], framework: Framework[Array]) -> tuple[Division, Call[Any]]:
    """How a call is divided, once the whole is found to be right: on every device alike."""
    _same_mesh({"query": call.query, "key": call.key, "value": call.value}, {"sinks": call.sinks})
    call = framework.given(call)
    check_attention(call, framework)
    if call.empty_rows == "error":
        if call.sinks is None:
            mask = Dense(call.mask) if call.mask is not None and not isinstance(call.mask, Mask) else call.mask
            bias = DenseBias(call.bias) if call.bias is not None and not isinstance(call.bias, Bias) else call.bias
            refuse_empty_rows(mask, bias, call.sizes, lambda x: framework.concrete(gathered(x)))
        call = replace(call, empty_rows="zero")
    return Division.of(call), call


def _same_mesh(operands: dict[str, Any], others: dict[str, Any]) -> None:
    plain = [name for name, x in operands.items() if not is_spread(x)]
    if plain:
        raise TypeError(
            f"attention: query, key and value must be DTensors, all or none, got {', '.join(plain)} as "
            f"{type(operands[plain[0]]).__name__}: torch.distributed.tensor.distribute_tensor, or DTensor.from_local, "
            "makes one of a tensor"
        )
    meshes = {name: x.device_mesh for name, x in {**operands, **others}.items() if is_spread(x)}
    different = [name for name, mesh in meshes.items() if mesh != meshes["query"]]
    if different:
        raise ValueError(f"attention: all DTensors must be of one mesh, got others than query's for {different}")
    if meshes["query"].get_coordinate() is None:
        raise ValueError("attention: this process is not among those of the DTensors' mesh")


@dataclass(frozen=True)
class Division:
    """How a call is divided over a mesh.

    Attributes:
        placements: of query and output: Shard of batch (0), queries (1) or heads (2), or Replicate, per mesh axis.
        shape: of the query.
        shares: the key/value heads that this device reads, where they cannot be divided as its queries are.
        part: the part of this device.
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: tuple[int, ...]
    shares: tuple[int, ...] | None
    part: Part

    @classmethod
    def of(cls, call: Call[Any]) -> Division:
        """Queries stay where they are; where they are whole, batch and heads are divided as those of the keys are. An
        axis of size 1 is not divided.
        """
        query, key, value = call.query, call.key, call.value
        mesh, kv_heads = query.device_mesh, key.shape[2]
        placements = list(zip(query.placements, key.placements, value.placements, strict=True))
        long = {axis for axis in (0, 1, 2) if query.shape[axis] != 1}
        found: list[Placement] = [mine if axis_of(mine) in long else tensors().Replicate() for mine, *_ in placements]
        for n, (mine, *theirs) in enumerate(placements):
            for other in theirs:
                free = long & {0, 2} - {axis_of(p) for p in found}
                even = axis_of(other) == 0 or kv_heads % mesh.size(n) == 0
                if mine.is_replicate() and found[n].is_replicate() and axis_of(other) in free and even:
                    found[n] = other
        first, count = {}, {}
        for letter, axis in (("B", 0), ("L", 1), ("H", 2)):
            first[letter], count[letter] = part_of(mesh, found, axis, query.shape[axis])
        axes = [(axis_of(p), mesh.size(n)) for n, p in enumerate(found)]
        divided = frozenset(["BLH"[axis] for axis, size in axes if axis is not None and size > 1])
        split, shares = math.prod([size for axis, size in axes if axis == 2]), None
        if kv_heads % split:  # each device reads the heads that its queries share
            group = query.shape[2] // max(1, kv_heads)
            shares = _shares(first["H"], count["H"], group)
        return cls(
            mesh, tuple(found), tuple(query.shape), shares, Part(first, count, divided, lambda array, axes: array)
        )

    def call(self, call: Call[Any], local: Callable[[Given, str], Given]) -> Call[Array]:
        """The call of this device's part, its arrays by `local`."""
        part = replace(self.part, local=local)
        mask, bias, (batch, heads, q_len, _) = call.mask, call.bias, call.sizes
        if isinstance(mask, Mask):
            mask = mask_of(mask, part)
        elif mask is not None:
            mask = local(mask, scores(mask))
        if isinstance(bias, Bias):
            bias = bias_of(bias, part)
        elif bias is not None:
            bias = local(bias, scores(bias))
        first = part.first
        moved = replace(
            call,
            query=local(call.query, _QUERY),
            key=self._keys(call.key, local),
            value=self._keys(call.value, local),
            mask=mask,
            bias=bias,
            sinks=None if call.sinks is None else local(call.sinks, "H"),
            dropout_key=gathered(call.dropout_key),
        )
        return PartOfCall.of(**vars(moved), within=(first["B"], first["H"], first["L"], batch, heads, q_len))

    def _keys(self, x: Any, local: Callable[[Given, str], Given]) -> Any:
        if self.shares is None:
            return local(x, _KEYS)
        whole: Any = local(x, "B---")
        low, count = self.shares[0] if self.shares else 0, len(set(self.shares))
        if self.shares == tuple(range(low, low + count)):
            return whole.narrow(2, low, count)
        return whole.index_select(2, torch.tensor(self.shares, device=whole.device))

    def placed(self, shape: Sequence[int], axes: str) -> tuple[list[Placement], list[Placement]]:
        """Where an array has to be whose axes have these letters, and where the gradients of the parts then are."""
        tensor, wanted, gradient = tensors(), [], []
        for p in self.placements:
            axis = axis_of(p)
            letter = None if axis is None else "BLH"[axis]
            here = axes.find(letter) if letter else -1
            if here >= 0 and shape[here] != 1:
                wanted.append(tensor.Shard(here))
                gradient.append(tensor.Shard(here))
            else:
                wanted.append(tensor.Replicate())
                gradient.append(tensor.Partial() if letter else tensor.Replicate())
        return wanted, gradient

    def local(self, x: Given, axes: str) -> Given:
        """This device's part of an array; DTensors move, and gradients go back to where it came from."""
        if not isinstance(x, np.ndarray) and (is_spread(x) or x.requires_grad):
            tensor: Any = self._of_mesh(x) if is_spread(x) else replicated(x, self.mesh)
            wanted, gradient = self.placed(x.shape, axes)
            moved: Array = tensor.redistribute(self.mesh, wanted).to_local(grad_placements=gradient)
            return moved
        return self.part.cut(x, axes)

    def like(self, x: Given, axes: str) -> Given:
        """As `local`, sending nothing: of a DTensor that would have to move, an array of that shape, of zeros."""
        if not is_spread(x):
            return self.local(x.detach() if isinstance(x, torch.Tensor) else x, axes)
        spread = self._of_mesh(x)
        wanted, _ = self.placed(x.shape, axes)
        if tuple(wanted) == tuple(spread.placements):
            local: Array = spread.to_local().detach()
            return local
        shape = [part_of(self.mesh, wanted, axis, size)[1] for axis, size in enumerate(x.shape)]
        return spread.to_local().new_zeros(shape)

    def _of_mesh(self, x: Any) -> Any:
        """A DTensor of a mask, of a bias, or of what is attended to, that can be moved."""
        if x.device_mesh != self.mesh:
            raise ValueError("attention: all DTensors must be of one mesh, got data of mask or bias on another")
        return x

    def gathered(self, call: Call[Any]) -> list[str]:
        """What has to be sent before this device can begin, in words."""
        given = {"query": (call.query, _QUERY)}
        keys = _KEYS if self.shares is None else "B---"
        given |= {"key": (call.key, keys), "value": (call.value, keys), "sinks": (call.sinks, "H")}
        for name, node in (("mask", call.mask), ("bias", call.bias)):
            if is_spread(node):
                given[name] = (node, scores(node))
        said = []
        for name, (x, axes) in given.items():
            if is_spread(x):
                said += self._moves(name, x, self.placed(x.shape, axes)[0])
        for name, node in (("mask", call.mask), ("bias", call.bias)):
            if isinstance(node, (Mask, Bias)):
                said += self._moves_of(name, node)
        return said

    def _moves_of(self, name: str, node: Mask | Bias) -> list[str]:
        """What has to be sent of the arrays of a mask or bias."""
        said: list[str] = []

        def look(x: Given, axes: str) -> Given:
            if is_spread(x):
                said.extend(self._moves(f"the {name}'s data", x, self.placed(x.shape, axes)[0]))
            return self.like(x, axes)

        part = replace(self.part, local=look)
        _ = mask_of(node, part) if isinstance(node, Mask) else bias_of(node, part)
        return list(dict.fromkeys(said))

    def _moves(self, name: str, x: Any, wanted: list[Placement]) -> list[str]:
        names = self.mesh.mesh_dim_names or tuple(map(str, range(self.mesh.ndim)))
        moved = [
            f"mesh axis {names[n]}"
            for n, (now, then) in enumerate(zip(x.placements, wanted, strict=True))
            if now != then and not now.is_replicate() and self.mesh.size(n) > 1
        ]
        return [f"{name} is gathered over {' and '.join(moved)}"] if moved else []

    def whole(self, local: Array) -> DTensor:
        """An output or a log-sum-exp of this device's part, as a DTensor."""
        return from_local(local, self.mesh, self.placements, (*self.shape[:3], *local.shape[3:]))


def _shares(first: int, count: int, group: int) -> tuple[int, ...]:
    """The key/value heads that queries first, first + 1, ... read: each once, where that leaves groups of one size."""
    read = [head // group for head in range(first, first + count)]
    if first % group == 0 and count % group == 0 or len(set(read)) == 1:
        return tuple(dict.fromkeys(read))
    return tuple(read)
