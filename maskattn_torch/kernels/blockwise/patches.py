"""What the blockwise kernel does, patch by patch: which parts of the score matrix, and which of their pairs the mask
forbids.

A mask becomes pieces (`schedule.pieces`), rectangles at regular distances; a piece is cut into patches, each of which
one call of an operator does, on strided views of the arrays: all rectangles of one batch row, or one rectangle of all.

          keys                                        a piece: count = 3 rectangles of rows x cols pairs,
    q  +--------+                                     rectangle n at query q + n * q_step, key k + n * k_step,
       |        |                                     for some batch rows and heads
       +---+----+---+
           |        |                                 what the mask forbids in it: [count, heads, rows, cols], one
           +---+----+---+                             entry on an axis where all are alike
               |        |
               +--------+

Making patches takes a few percent of the time that they save, so they are kept: by the mask's structure and the values
of its data, for the layers of a model usually share one mask.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor as Array

from maskattn._fields import to_numpy
from maskattn.masks import Dense, Mask, rebuild
from maskattn.schedule.pieces import MIXED, NO_LIMITS, Limits, Piece, cut, pieces_of
from maskattn_torch.kernels.blockwise.packing import structure_of
from maskattn_torch.kernels.blockwise.windows import allowed, kv_range, rectangle, window

__all__ = ["Forbidden", "Patch", "Patches", "PatchSizes", "patches_of", "reached"]

#: Patches are found again by the bytes of their mask's data where these are no more.
_DATA_BYTES = 1 << 20
#: What the masks of one call's patches, and of all patches that are kept, may take.
_CALL_BYTES, _ALL_BYTES = 16 << 20, 64 << 20


class PatchSizes(NamedTuple):
    """What patches depend on besides the mask.

    Attributes:
        width: the larger head dimension.
        blocks: the tiles, queries by keys, that rectangles are put together of; None leaves the choice.
        limits, area: the largest rectangle, and the most pairs, of one patch; 0 for none.
    """

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    width: int
    dtype: torch.dtype
    blocks: tuple[int, int] | None = None
    limits: Limits = NO_LIMITS
    area: int = 0

    @property
    def group(self) -> int:
        """How many query heads read one key/value head."""
        return self.heads // self.kv_heads


class Forbidden(NamedTuple):
    """What a mask forbids in a patch, on axes that broadcast to [count, heads, rows, cols].

    Attributes:
        added: 0 where the mask allows, -inf where it forbids; None where it allows everything.
        lost: [count, heads, rows], the rows that may attend to nothing in the patch; None where there are none.
    """

    added: Array | None
    lost: Array | None


@dataclass(frozen=True)
class Patch:
    """A piece with one rectangle or one batch row, and what its mask forbids.

    Attributes:
        piece: the rectangles.
        kept: see `forbidden`; None where everything is allowed, or where it is not kept.
    """

    piece: Piece
    kept: Forbidden | None = None

    def forbidden(self, mask: Mask | None, dtype: torch.dtype) -> Forbidden:
        """What `mask`, bound to PyTorch, forbids in this patch."""
        if self.kept is not None:
            return self.kept
        if self.piece.kind != MIXED or mask is None:
            return Forbidden(None, None)
        return _forbidden(allowed(mask, self.piece), dtype)


@dataclass(frozen=True)
class Patches:
    """The patches that together hold every pair that the mask allows.

    Attributes:
        backward: for the backward pass, whose memory they bound.
        forward: for the forward pass: the same in fewer patches, which each cost time.
        whole: one patch of the forward pass has every row; its rectangles then follow one another.
        covered: every row is in a patch.
        exposed: there may be rows, or keys, that no allowed pair has, in patches.
        bytes: what is kept of the mask.
    """

    backward: tuple[Patch, ...]
    forward: tuple[Patch, ...]
    whole: bool
    covered: bool
    exposed: bool
    bytes: int


def patches_of(mask: Mask | None, sizes: PatchSizes) -> Patches:
    """The patches for a mask bound to PyTorch (True = may attend), whose data are read now."""
    key = _key(mask, sizes)
    if key is None:
        return _made(mask, sizes)
    with _LOCK:
        if key in _KEPT:
            _KEPT.move_to_end(key)
            return _KEPT[key]
    made = _made(mask, sizes)
    with _LOCK:
        _KEPT[key] = made
        while sum(one.bytes for one in _KEPT.values()) > _ALL_BYTES or len(_KEPT) > 128:
            _KEPT.popitem(last=False)
    return made


_KEPT: OrderedDict[Hashable, Patches] = OrderedDict()
_LOCK = threading.Lock()


def _key(mask: Mask | None, sizes: PatchSizes) -> Hashable:
    """What patches are kept under; None where the mask's data are too large to be compared at every call."""
    if mask is None:
        return None, sizes
    leaves: list[Array] = []
    structure = structure_of(mask, leaves)
    if sum(x.numel() * x.element_size() for x in leaves) > _DATA_BYTES:
        return None
    return structure, tuple((to_numpy(x).tobytes(), x.dtype, tuple(x.shape)) for x in leaves), sizes


def _made(mask: Mask | None, sizes: PatchSizes) -> Patches:
    s = sizes
    readable = None if mask is None else rebuild(mask.map_data(to_numpy), _counted)
    pieces = pieces_of(readable, s.batch, s.heads, s.kv_heads, s.q_len, s.kv_len, s.limits, s.blocks)
    memory = _MaskStore(mask, s.dtype)
    backward: list[Patch] = []
    forward: list[Patch] = []
    for piece in pieces:
        parts = [Patch(part, memory.keep(part)) for part in cut(piece, s.group, (1 << 20) // s.width, s.area)]
        backward += parts
        forward += parts if s.area else _joined(piece, parts)
    rows = sum(x.count * x.rows * len(x.batch) * len(x.heads) for x in pieces if x.first)
    covered = rows == s.batch * s.heads * s.q_len
    known = all(patch.kept is not None or patch.piece.kind != MIXED for patch in backward)
    exposed = not known or not all(bool(x.all()) for x in reached(backward, mask, s))
    return Patches(tuple(backward), tuple(forward), len(forward) == 1 and covered, covered, exposed, memory.bytes)


def _counted(mask: Mask) -> Mask | None:
    return mask.counted() if isinstance(mask, Dense) else None


class _MaskStore:
    """What a mask forbids in the patches of a call, once where several are alike, up to `_CALL_BYTES`."""

    def __init__(self, mask: Mask | None, dtype: torch.dtype) -> None:
        self.mask, self.dtype, self.bytes = mask, dtype, 0
        self._found: dict[Hashable, Forbidden] = {}

    def keep(self, piece: Piece) -> Forbidden | None:
        """What is kept for a patch of this piece; None for nothing."""
        if piece.kind != MIXED or self.mask is None or self.bytes >= _CALL_BYTES:
            return None
        keep = _alike(allowed(self.mask, piece))
        name = (tuple(keep.shape), to_numpy(keep).tobytes())
        if name not in self._found:
            self._found[name] = _forbidden(keep, self.dtype)
            self.bytes += keep.numel() * self.dtype.itemsize
        return self._found[name]


def _alike(keep: Array) -> Array:
    """`keep` with one entry on its first two axes where all are alike, as a window's rectangles are."""
    for axis in (0, 1):
        if keep.shape[axis] > 1 and bool((keep == keep.narrow(axis, 0, 1)).all()):
            keep = keep.narrow(axis, 0, 1)
    return keep


def _forbidden(keep: Array, dtype: torch.dtype) -> Forbidden:
    keep = keep.reshape((1,) * (4 - keep.ndim) + tuple(keep.shape))
    lost = ~keep.any(-1)
    added = torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill_(~keep, -torch.inf)
    return Forbidden(added, lost if bool(lost.any()) else None)


def _joined(piece: Piece, parts: list[Patch]) -> list[Patch]:
    """The parts of a piece as one patch, where a view holds all of it and one mask serves it."""
    kept = parts[0].kept
    alike = all(patch.kept is kept for patch in parts)
    shared = piece.kind != MIXED or kept is not None and kept.added is not None and kept.added.shape[:2] == (1, 1)
    if len(parts) == 1 or not alike or not shared or min(piece.count, len(piece.batch)) > 1:
        return parts
    return [Patch(piece, kept)]


def reached(
    patches: Sequence[Patch], mask: Mask | None, sizes: PatchSizes, bias: Callable[[Piece], Array] | None = None
) -> tuple[Array, Array]:
    """The rows and the keys that some allowed pair of the patches has: bool [B, H, L] and [B, K, S].

    `bias` gives the values to add to a piece, where -inf forbids.
    """
    rows = torch.zeros((sizes.batch, sizes.heads, sizes.q_len), dtype=torch.bool)
    keys = torch.zeros((sizes.batch, sizes.kv_heads, sizes.kv_len), dtype=torch.bool)
    for patch in patches:
        piece, added = patch.piece, patch.forbidden(mask, sizes.dtype).added
        if bias is not None:
            added = bias(piece) if added is None else added + bias(piece)
        size = (max(piece.count, len(piece.batch)), len(piece.heads), piece.rows, piece.cols)
        keep = None if added is None else (added != -torch.inf).expand(size)
        shared = kv_range(piece, sizes.group)
        for n in range(piece.count):
            one = rectangle(piece, n)
            row, key = window(rows, one, "q", piece.heads), window(keys, one, "k", shared)
            if keep is None:  # every row and key of an open piece, or a triangle, has an allowed pair
                row.fill_(True)
                key.fill_(True)
            else:
                part = keep[n : n + 1] if piece.count > 1 else keep
                row |= part.any(-1)
                key |= part.any(2).unflatten(1, (len(shared), -1)).any(2)
    return rows, keys
