"""Softcap and biases as FlexAttention's function of a score and its place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor as Array

from maskattn._lookup import at_row
from maskattn.biases import Bias, DenseBias, T5Buckets
from maskattn_torch._modes import plain

__all__ = ["Scores", "kind_of", "prepared", "score_mod", "structure"]


class Scores(NamedTuple):
    """A bias as the compiled function is given it: and of T5's table the rows, int64 [2 max_distance + 1]."""

    bias: Bias
    rows: Array | None = None


def prepared(bias: Bias | None) -> Scores | None:
    """What `score_mod` takes of a bound bias."""
    if not isinstance(bias, T5Buckets):
        return None if bias is None else Scores(bias)
    options = (bias.max_distance, bias.bidirectional, bias.table.shape[0], bias.table.device)
    return Scores(bias, (_kept_rows if plain() else _rows)(*options))


def kind_of(scores: Scores | None) -> Hashable:
    """All that a compiled kernel knows of a bias."""
    if scores is None:
        return None
    return structure(scores.bias), tuple(x.requires_grad for x in _leaves(scores.bias))


def structure(node: object) -> Hashable:
    """A mask or bias without its data: classes, static fields, and of each array dtype, rank, which axes have size 1,
    and how it lies in memory. Equal for new data.
    """
    if isinstance(node, Array):
        sizes = tuple(n == 1 for n in node.shape)
        return node.dtype, sizes, node.is_contiguous(), None if node._base is None else node._base.ndim
    leaves, fields = node.flatten()  # type: ignore[attr-defined]
    return type(node), fields, tuple(structure(leaf) for leaf in leaves)


def score_mod(scores: Scores | None, softcap: float | None) -> Callable[..., Array] | None:
    """softcap, then bias; None where there is neither."""
    if scores is None and softcap is None:
        return None
    values = None if scores is None else _values(scores)

    def score(x: Array, b: Array, h: Array, q: Array, k: Array) -> Array:
        if softcap is not None:
            x = softcap * torch.tanh(x / softcap)
        return x if values is None else x + values(b, h, q, k).to(x.dtype)

    return score


def _values(scores: Scores) -> Callable[[Array, Array, Array, Array], Array]:
    bias = scores.bias
    if isinstance(bias, T5Buckets):
        rows, far = scores.rows, bias.max_distance

        def buckets(b: Array, h: Array, q: Array, k: Array) -> Array:
            assert rows is not None
            apart = torch.clamp(k - q - at_row(bias.offset, b), -far, far)
            return bias.table[rows[apart + far], h if bias.table.shape[1] > 1 else h * 0]

        return buckets
    if isinstance(bias, DenseBias):
        array = bias.array.reshape(bias.shape)

        def dense(*place: Array) -> Array:
            # every index is a tensor: an int among them is another function to FlexAttention's gradients
            return array[tuple(i if n > 1 else i * 0 for i, n in zip(place, array.shape, strict=True))]

        return dense
    return lambda b, h, q, k: bias.values(b, h, q, k)


def _leaves(bias: Bias) -> list[Array]:
    leaves: list[Array] = []
    bias.map_data(leaves.append)
    return leaves


def _rows(far: int, bidirectional: bool, count: int, device: torch.device) -> Array:
    """The row of T5's table for each distance from -far to far: its own rule compares with some 30 bounds, and makes
    them of integers that a compiler cannot hold."""
    table = torch.empty((count, 1), device=device)
    bias = T5Buckets(table, max_distance=far, bidirectional=bidirectional)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return torch.as_tensor(bias.rows(0, zero, torch.arange(-far, far + 1, device=device)))


_kept_rows = functools.lru_cache(maxsize=16)(_rows)
