"""Whether transformers' makers of mask functions make what they are taken to make: seen on small grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from transformers import masking_utils as made

from maskattn.masks import Dense, Mask
from maskattn_torch import lower
from maskattn_torch.types import Array

#: [B, L]: documents, as packing numbers them, and their positions.
_IDS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 1, 1, 1]])
_POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0, 1, 2]])
#: Others, which count by no rule.
_ODD = torch.tensor([[3, 1, 0, 2, 2, 5, 4, 7], [0, 9, 1, 1, 6, 2, 3, 3]])
_KEEP = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 1, 0]], dtype=torch.bool)
_LENGTHS = (8, 8)

MaskFunction: TypeAlias = Callable[..., Array]


def differing(read: Callable[..., Mask | None], place: Callable[..., tuple[object, ...]]) -> set[str]:
    """The names of the makers (and "causal", "bidirectional") that are missing, or make something else.

    Args:
        read: gives the mask of a function at a place, as in _functions.py; place: makes such a place.
    """
    found = set()
    for name, functions in _samples():
        try:
            same = all(_agrees(function, read, place) for function in functions())
        except Exception:  # whatever a changed function raises: it is not the one that is known
            same = False
        if not same:
            found.add(name)
    return found


def _agrees(function: MaskFunction, read: Callable[..., Mask | None], place: Callable[..., tuple[object, ...]]) -> bool:
    for q_len, kv_len, q_offset, k_offset in ((*_LENGTHS, 0, 0), (3, 5, 4, 2), (1, 6, 7, 0)):

        def dense(part: MaskFunction, q: int, k: int, sizes: tuple[int, int] = (q_len, kv_len)) -> Mask:
            return Dense(_evaluated(part, sizes, q, k))

        mask = read(function, place(q_len, kv_len, q_offset, k_offset, dense))
        if mask is None:
            if q_offset == 0:  # which all are known for
                return False
            continue
        theirs = _evaluated(function, (q_len, kv_len), q_offset, k_offset)
        if not torch.equal(lower.to_dense(mask, q_len, kv_len, len(_IDS), 1), theirs):
            return False
    return True


def _evaluated(function: MaskFunction, lengths: tuple[int, int], q_offset: int, k_offset: int) -> Array:
    """[B, 1, L, S], as transformers' sdpa_mask evaluates it."""
    b, q, k = torch.arange(len(_IDS)), torch.arange(lengths[0]) + q_offset, torch.arange(lengths[1]) + k_offset
    pairs = function(b[:, None, None, None], torch.zeros(1, 1, 1, 1, dtype=torch.int64), q[:, None], k)
    return torch.as_tensor(pairs).expand(len(_IDS), 1, *lengths)


def _samples() -> Iterator[tuple[str, Callable[[], list[MaskFunction]]]]:
    causal = made.causal_mask_function
    yield "causal", lambda: [causal]
    yield "bidirectional", lambda: [made.bidirectional_mask_function]
    yield "and_masks", lambda: [made.and_masks(causal, lambda b, h, q, k: (q + k) % 3 != 0)]
    yield "or_masks", lambda: [made.or_masks(causal, lambda b, h, q, k: (q + k) % 3 != 0)]
    yield "sliding_window_overlay", lambda: [made.sliding_window_overlay(n) for n in (0, 1, 3)]
    yield "sliding_window_bidirectional_overlay", lambda: [made.sliding_window_bidirectional_overlay(n) for n in (0, 2)]
    yield (
        "chunked_overlay",
        lambda: [made.chunked_overlay(3, torch.tensor(padding)) for padding in ([0, 0], [2, 0])],
    )
    yield "blockwise_overlay", lambda: [made.blockwise_overlay(_IDS - 1)]
    yield "padding_mask_function", lambda: [made.padding_mask_function(_KEEP)]
    yield "packed_sequence_mask_function", lambda: [made.packed_sequence_mask_function(_IDS - 1)]
    yield (
        "remap_positions_for_packed_sequence",
        lambda: [
            made.remap_positions_for_packed_sequence(causal, _ODD),
            made.packed_sequence_compatibility_function(causal, _POSITIONS, _IDS),
        ],
    )
    yield "add_offsets_to_mask_function", lambda: [made.add_offsets_to_mask_function(causal, 2, 1)]
