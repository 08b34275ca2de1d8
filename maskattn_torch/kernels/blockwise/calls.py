"""What the blockwise kernel does, call by call: the rectangles of a mask, and which of their pairs it forbids.

Making a plan takes a few percent of the time that it saves, so plans are kept: by the mask's structure and the values
of its data, for the layers of a model usually share one mask.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from maskattn import blocks
from maskattn._fields import to_numpy
from maskattn.masks import Dense, Mask
from maskattn.masks._core import And, Not, Or
from maskattn.schedule.pieces import MIXED, NO_LIMITS, Limits, Piece, cut, pieces
from maskattn_torch.kernels.blockwise.spec import structure_of

Array = Any

__all__ = [
    "Call",
    "Forbidden",
    "Plan",
    "Sizes",
    "allowed",
    "dense_part",
    "indices",
    "kv_range",
    "plan",
    "reached",
    "window",
]

#: Plans are found again by the bytes of their mask's data where these are no more.
_DATA_BYTES = 1 << 20
#: What the masks of one plan, and of all plans that are kept, may take.
_PLAN_BYTES, _ALL_BYTES = 16 << 20, 64 << 20


@dataclass(frozen=True)
class Sizes:
    """What a plan depends on besides the mask. `width` is the larger head dimension.

    `limits` and `area` bound the rectangles, and the pairs, of one call; 0 for none.
    """

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    width: int
    dtype: torch.dtype
    limits: Limits = NO_LIMITS
    area: int = 0


@dataclass(frozen=True)
class Call:
    """A piece with one rectangle or one batch row, and what its mask forbids.

    Attributes:
        piece: the rectangles.
        kept: see `forbidden`; None where everything is allowed, or where it is not kept.
    """

    piece: Piece
    kept: Forbidden | None = None

    def forbidden(self, mask: Mask | None, dtype: torch.dtype) -> Forbidden:
        """What `mask`, bound to PyTorch, forbids in this piece."""
        if self.kept is not None:
            return self.kept
        if self.piece.kind != MIXED or mask is None:
            return Forbidden(None, None)
        return _forbidden(allowed(mask, self.piece), dtype)


class Forbidden(NamedTuple):
    """What a mask forbids in a piece, on axes that broadcast to [count, heads, rows, cols].

    Attributes:
        added: 0 where the mask allows, -inf where it forbids; None where it allows everything.
        lost: [count, heads, rows], the rows that may attend to nothing in the piece; None where there are none.
    """

    added: Array | None
    lost: Array | None


@dataclass(frozen=True)
class Plan:
    """The calls that together do every pair that the mask allows.

    Attributes:
        calls: for the backward pass, whose memory they bound.
        joined: for the forward pass: the same with fewer calls, which each cost time.
        whole: one joined call has every row; its rectangles then follow one another.
        covered: every row is in a call.
        exposed: there may be rows, or keys, that no allowed pair has, in calls.
    """

    calls: tuple[Call, ...]
    joined: tuple[Call, ...]
    whole: bool
    covered: bool
    exposed: bool


def plan(mask: Mask | None, sizes: Sizes) -> Plan:
    """The plan for a mask bound to PyTorch (True = may attend), whose data are read now."""
    key = _key(mask, sizes)
    if key is None:
        return _plan(mask, sizes)[0]
    with _LOCK:
        if key in _KEPT:
            _KEPT.move_to_end(key)
            return _KEPT[key][0]
    made, taken = _plan(mask, sizes)
    with _LOCK:
        _KEPT[key] = made, taken
        while sum(size for _, size in _KEPT.values()) > _ALL_BYTES or len(_KEPT) > 128:
            _KEPT.popitem(last=False)
    return made


_KEPT: OrderedDict[Any, tuple[Plan, int]] = OrderedDict()
_LOCK = threading.Lock()


def _key(mask: Mask | None, sizes: Sizes) -> Any:
    """What a plan is kept under; None where the mask's data are too large to be compared at every call."""
    if mask is None:
        return None, sizes, blocks.forced()
    leaves: list[Array] = []
    structure = structure_of(mask, leaves)
    if sum(x.numel() * x.element_size() for x in leaves) > _DATA_BYTES:
        return None
    data = tuple((to_numpy(x).tobytes(), x.dtype, tuple(x.shape)) for x in leaves)
    return structure, data, sizes, blocks.forced()


def _plan(mask: Mask | None, sizes: Sizes) -> tuple[Plan, int]:
    """The plan, and the bytes that it holds."""
    readable = None if mask is None else mask.map_data(to_numpy)
    s = sizes
    found = pieces(readable, s.batch, s.heads, s.kv_heads, s.q_len, s.kv_len, s.limits, blocks.forced())
    calls: list[Call] = []
    joined: list[Call] = []
    kept: dict[Any, Forbidden] = {}
    taken = 0
    for piece in found:
        start = len(calls)
        for part in cut(piece, s.heads // s.kv_heads, (1 << 20) // s.width, s.area):
            if part.kind == MIXED and mask is not None and taken < _PLAN_BYTES:
                keep = _alike(allowed(mask, part))
                name = (tuple(keep.shape), to_numpy(keep).tobytes())
                if name not in kept:
                    kept[name] = _forbidden(keep, s.dtype)
                    taken += keep.numel() * s.dtype.itemsize
                calls.append(Call(part, kept[name]))
            else:
                calls.append(Call(part))
        joined += _joined(piece, calls[start:]) if not s.area else calls[start:]
    first = sum(x.count * x.rows * len(x.batch) * len(x.heads) for x in found if x.first)
    covered = first == s.batch * s.heads * s.q_len
    known = all(call.kept is not None or call.piece.kind != MIXED for call in calls)
    exposed = not known or not all(bool(x.all()) for x in reached(tuple(calls), mask, s))
    return Plan(tuple(calls), tuple(joined), len(joined) == 1 and covered, covered, exposed), taken


def _alike(keep: Array) -> Array:
    """`keep` with one entry on its first two axes where all are alike, as a window's rectangles are."""
    for axis in (0, 1):
        if keep.shape[axis] > 1 and bool((keep == keep.narrow(axis, 0, 1)).all()):
            keep = keep.narrow(axis, 0, 1)
    return keep


def _joined(piece: Piece, parts: list[Call]) -> list[Call]:
    """The parts of a piece as one call, where one mask serves all of it."""
    kept = parts[0].kept
    alike = all(call.kept is kept for call in parts)
    shared = piece.kind != MIXED or kept is not None and kept.added is not None and kept.added.shape[:2] == (1, 1)
    if len(parts) == 1 or not alike or not shared or min(piece.count, len(piece.batch)) > 1:
        return parts
    return [Call(piece, kept)]


def reached(calls: tuple[Call, ...], mask: Mask | None, sizes: Sizes, bias: Any = None) -> tuple[Array, Array]:
    """The rows and the keys that some allowed pair of the calls has: bool [B, H, L] and [B, K, S].

    `bias`, a function of a piece, gives values to add, where -inf forbids.
    """
    rows = torch.zeros((sizes.batch, sizes.heads, sizes.q_len), dtype=torch.bool)
    keys = torch.zeros((sizes.batch, sizes.kv_heads, sizes.kv_len), dtype=torch.bool)
    for call in calls:
        piece, added = call.piece, call.forbidden(mask, sizes.dtype).added
        if bias is not None:
            added = bias(piece) if added is None else added + bias(piece)
        size = (max(piece.count, len(piece.batch)), len(piece.heads), piece.rows, piece.cols)
        keep = None if added is None else (added != -torch.inf).expand(size)
        shared = kv_range(piece, sizes)
        for n in range(piece.count):
            one = replace(piece, q=piece.q + n * piece.q_step, k=piece.k + n * piece.k_step, count=1)
            part = None if keep is None else keep[n : n + 1] if piece.count > 1 else keep
            row, key = window(rows, one, "q", piece.heads), window(keys, one, "k", shared)
            if part is None:  # every row and key of an open piece, or a triangle, has an allowed pair
                row.fill_(True)
                key.fill_(True)
            else:
                row |= part.any(-1)
                key |= part.any(2).unflatten(1, (len(shared), -1)).any(2)
    return rows, keys


def kv_range(piece: Piece, sizes: Sizes) -> range:
    """The key/value heads that the heads of a piece read."""
    group = sizes.heads // sizes.kv_heads
    return piece.heads if group == 1 else range(piece.heads[0] // group, piece.heads[-1] // group + 1)


def indices(piece: Piece, device: Any = None) -> tuple[Array, Array, Array, Array]:
    """(b, h, q, k) of a call's pairs, int64, broadcasting to [count, heads, rows, cols] (batch rows for count)."""
    b = _arange(piece.batch, device).reshape(-1, 1, 1, 1)
    h = _arange(piece.heads, device).reshape(1, -1, 1, 1)
    n = torch.arange(piece.count, device=device).reshape(-1, 1, 1, 1)
    q = piece.q + n * piece.q_step + torch.arange(piece.rows, device=device).reshape(-1, 1)
    k = piece.k + n * piece.k_step + torch.arange(piece.cols, device=device)
    return b, h, q, k


def _arange(numbers: range, device: Any) -> Array:
    return torch.arange(numbers.start, numbers.stop, numbers.step, device=device)


def allowed(mask: Mask, piece: Piece) -> Array:
    """Where the mask allows, bool, broadcasting to [count, heads, rows, cols]: each part on the axes that it reads."""
    if isinstance(mask, (And, Or)):
        combine = operator.and_ if isinstance(mask, And) else operator.or_
        return functools.reduce(combine, [allowed(part, piece) for part in mask.parts])
    if isinstance(mask, Not):
        return ~allowed(mask.part, piece)
    if isinstance(mask, Dense):
        return dense_part(mask.keep.reshape(mask.shape), piece)
    # no device: a mask's data may be on the CPU only, as the plan is
    b, h, q, k = indices(piece)
    zero = torch.zeros((1, 1, 1, 1), dtype=torch.int64)
    depends = mask.depends
    b, h = (b if "b" in depends else zero), (h if "h" in depends else zero)
    return mask.allowed(b, h, q if "q" in depends else zero, k if "k" in depends else zero)


def dense_part(array: Array, piece: Piece) -> Array:
    """array[b, h, q, k] of a call, [B or 1, H or 1, L or 1, S or 1] -> broadcasting to [count, heads, rows, cols]."""
    if piece.count == 1:
        slices = (
            slice(piece.batch.start, piece.batch.stop, piece.batch.step),
            slice(piece.heads.start, piece.heads.stop, piece.heads.step),
            slice(piece.q, piece.q + piece.rows),
            slice(piece.k, piece.k + piece.cols),
        )
        return array[tuple(s if n > 1 else slice(None) for s, n in zip(slices, array.shape, strict=True))]
    found = [
        x if n > 1 else torch.zeros_like(x[:1, :1, :1, :1]) for x, n in zip(indices(piece), array.shape, strict=True)
    ]
    return array[tuple(found)]


def _forbidden(keep: Array, dtype: torch.dtype) -> Forbidden:
    keep = keep.reshape((1,) * (4 - keep.ndim) + tuple(keep.shape))
    lost = ~keep.any(-1)
    added = torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill_(~keep, -torch.inf)
    return Forbidden(added, lost if bool(lost.any()) else None)


def window(x: Array, piece: Piece, side: str, heads: range) -> Array:
    """What a call reads, or writes, of x [B, heads, length, ...]: a view [count, heads, rows or cols, ...].

    Args:
        side: "q" for queries, "k" for keys.
        heads: those of `piece`, or the key/value heads that they read.
    """
    start, step, length = (piece.q, piece.q_step, piece.rows) if side == "q" else (piece.k, piece.k_step, piece.cols)
    b = piece.batch
    if piece.count == 1:
        rows, columns = slice(b.start, b.stop, b.step), slice(heads.start, heads.stop, heads.step)
        return x[rows, columns, start : start + length]
    stride = x.stride()
    offset = x.storage_offset() + b.start * stride[0] + heads.start * stride[1] + start * stride[2]
    sizes = (piece.count, len(heads), length, *x.shape[3:])
    return x.as_strided(sizes, (step * stride[2], heads.step * stride[1], *stride[2:]), offset)
