"""Masks as the objects that PyTorch's own attention functions take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from maskattn import schedule
from maskattn._problems import Problems
from maskattn.masks import Mask, check_mask
from maskattn_torch.lower._binding import bind, device_of
from maskattn_torch.types import Array, Device

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["to_block_mask"]


def to_block_mask(
    mask: Mask,
    batch: int | None,
    heads: int | None,
    q_len: int,
    kv_len: int,
    block_size: int | tuple[int, int] = 128,
    *,
    device: Device = None,
    exact: bool = True,
) -> BlockMask:
    """The mask as a `BlockMask` of FlexAttention, made from its tiles: no [q_len, kv_len] array is built.

    Its `mask_mod` is the mask's `allowed`; a row that may attend to nothing gives 0, as empty_rows="zero" does. Axes
    that the mask does not read have size 1, which FlexAttention broadcasts.

    Args:
        mask: True = may attend. Its data must be readable now.
        batch, heads: None takes them from the data.
        block_size: queries and keys of a block, or (queries, keys).
        device: where the BlockMask lives (default: where the data are, else the CPU).
        exact: evaluate the pairs of blocks that bounds leave undecided, so that the same blocks are partial and full as
            in `create_block_mask`. Without it a block may be called partial that is empty or full.

    Raises:
        TypeError, ValueError: everything that FlexAttention cannot express, or that is wrong, in one error.
    """
    from torch.nn.attention.flex_attention import BlockMask

    problems = Problems("to_block_mask")
    check_mask(problems, mask)
    blocks = problems.integers("block_size", block_size, minimum=1, length=2)
    for name, length in (("q_len", q_len), ("kv_len", kv_len)):
        if problems.integer(name, length) == 0:
            problems.value(f"{name} must be at least 1: FlexAttention has no BlockMask of length 0")
    problems.raise_if_any()
    states = schedule.Schedule.of(mask, batch, heads, q_len, kv_len, *blocks, exact=exact).states()
    full = states == schedule.FULL
    # FlexAttention counts what lies beyond the lengths as forbidden: a block cut short by them is never full
    full[:, :, -1] &= q_len % blocks[0] == 0
    full[:, :, :, -1] &= kv_len % blocks[1] == 0
    bound = bind(mask, device=device)
    place = device_of(bound) if device is None else device
    partial = (states != schedule.EMPTY) & ~full
    # not `allowed` itself: FlexAttention counts arguments, `self` among them
    return BlockMask.from_kv_blocks(
        *_ordered(torch.as_tensor(partial, device=place)),
        *_ordered(torch.as_tensor(full, device=place)),
        BLOCK_SIZE=blocks,
        mask_mod=lambda b, h, q, k: bound.allowed(b, h, q, k),
        seq_lengths=(q_len, kv_len),
    )


def _ordered(chosen: Array) -> tuple[Array, Array]:
    """How many blocks are chosen in each row, and all blocks of the row, the chosen ones first: int32."""
    order = torch.argsort((~chosen).to(torch.int8), dim=-1, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32)
