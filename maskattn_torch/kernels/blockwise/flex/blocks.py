"""Which blocks of 128 queries and 128 keys are visited, and in which of them the mask is asked: made where the mask is.

Nothing is read from a device, and no array of L x S entries is made, but where there are few of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor as Array
from torch.nn.functional import pad

from maskattn import schedule
from maskattn.masks import Mask
from maskattn.masks.rows import NO_KEY, NO_QUERY
from maskattn.typing import NumPyArray
from maskattn_torch.kernels.blockwise.flex.rows import Bounds

__all__ = ["BLOCK", "Tables", "from_bounds", "from_mask", "from_states"]

#: Queries, and keys, of a block.
BLOCK = 128
#: Larger than any tag.
_TOP = (1 << 31) - 1


class Tables(NamedTuple):
    """What a BlockMask is made of: int32, how many blocks [b, h, n], and all of them, those first, [b, h, n, m]."""

    kv_num: Array
    kv_indices: Array
    full_kv_num: Array
    full_kv_indices: Array
    q_num: Array
    q_indices: Array
    full_q_num: Array
    full_q_indices: Array


def from_bounds(found: Bounds, kv_len: int) -> Tables:
    """The blocks of bounds. They are those of `create_block_mask`, but where several tags meet in one block: there a
    block may be called partial that is empty.
    """
    low, high = (_in_blocks(x, found.axes, fill) for x, fill in ((found.low, kv_len), (found.high, 0)))
    columns = -(-kv_len // BLOCK)
    start = torch.arange(0, columns * BLOCK, BLOCK, device=low.device)
    some = _covered(low, high, columns)
    every = (low.amax(-1, keepdim=True) <= start) & (high.amin(-1, keepdim=True) >= start + BLOCK)
    if found.q_tag is not None and found.k_tag is not None:
        q_least, q_most, q_one = (x[..., :, None] for x in _tags(_in_blocks(found.q_tag, found.axes, NO_QUERY)))
        k_least, k_most, k_one = (x[..., None, :] for x in _tags(_in_blocks(found.k_tag, found.axes, NO_KEY)))
        some = some & (q_least <= k_most) & (k_least <= q_most)
        every = every & q_one & k_one & (q_most == k_most)
    return _ordered(some & ~every, every)


def from_mask(mask: Mask, sizes: tuple[int, int, int, int], q: Array, k: Array) -> tuple[Tables, Array]:
    """The blocks of any bound mask, and which keys some query attends to, bool [B or 1, S]. `q` and `k` are the numbers
    of queries, [L], and of keys, [S]. To be compiled where there are many: it looks at each pair.
    """
    many = (sizes[0] if "b" in mask.depends else 1, sizes[1] if "h" in mask.depends else 1)
    ranges = (*(torch.arange(n, device=q.device) for n in many), q, k)
    b, h, q, k = (x.reshape([-1 if i == axis else 1 for i in range(4)]) for axis, x in enumerate(ranges))
    allowed = mask.allowed(b, h, q, k)
    rest = (-allowed.shape[3] % BLOCK, -allowed.shape[2] % BLOCK)
    padded = pad(allowed, (0, rest[0], 0, rest[1]))
    rows, columns = padded.shape[2] // BLOCK, padded.shape[3] // BLOCK
    count = padded.reshape(*many, rows, BLOCK, columns, BLOCK).sum((3, 5), dtype=torch.int32)
    every = count == BLOCK * BLOCK
    return _ordered((count > 0) & ~every, every), allowed.any(2).any(1)


def from_states(mask: Mask, sizes: tuple[int, int, int, int], device: torch.device) -> tuple[Tables, NumPyArray]:
    """The same, of a mask without data, planned on the host and laid where it is used."""
    states = schedule.Schedule.of(mask, *sizes, BLOCK, BLOCK).states()
    every = states == schedule.FULL
    # what lies beyond the lengths counts as forbidden
    every[:, :, -1] &= sizes[2] % BLOCK == 0
    every[:, :, :, -1] &= sizes[3] % BLOCK == 0
    partial = (states != schedule.EMPTY) & ~every
    made = _ordered(*(torch.as_tensor(x).to(device, non_blocking=True) for x in (partial, every)))
    return made, np.any(schedule.reached(mask, *sizes)[1], 1)


def _in_blocks(x: Array, axes: str, fill: int) -> Array:
    """[*axes, N] -> [B or 1, H or 1, blocks, 128]."""
    rest = -x.shape[-1] % BLOCK
    x = pad(x, (0, rest), value=fill)
    x = x if "b" in axes else x[None]
    return (x if "h" in axes else x[:, None]).unflatten(-1, (-1, BLOCK))


def _covered(low: Array, high: Array, columns: int) -> Array:
    """Which of the blocks of keys some row of a block of queries [b, h, n, 128] looks into: bool [b, h, n, columns]."""
    shape, width = low.shape[:3], columns + 1
    number = shape.numel()
    row = torch.arange(0, number * width, width, device=low.device).view(*shape, 1)
    some = low < high
    add = some.to(torch.int32).flatten()
    first = row + torch.where(some, low // BLOCK, 0)
    last = row + torch.where(some, (high + (BLOCK - 1)) // BLOCK, 0)
    steps = torch.zeros(number * width, dtype=torch.int32, device=low.device)
    steps = steps.index_add(0, first.flatten(), add).index_add(0, last.flatten(), -add)
    return steps.view(*shape, width).cumsum(-1, dtype=torch.int32)[..., :columns] > 0


def _tags(tags: Array) -> tuple[Array, Array, Array]:
    """Of the tags of each block [..., 128]: the least and the largest, without those that match nothing (none: a range
    that meets no other), and whether all are one."""
    most = tags.amax(-1)
    return torch.where(tags < 0, _TOP, tags).amin(-1), most, (tags.amin(-1) == most) & (most >= 0)


def _ordered(partial: Array, every: Array) -> Tables:
    """Two choices of blocks, bool [b, h, n, m], in the order of their numbers, by queries and by keys."""
    both = torch.stack([partial, every])
    (kv_num, kv), (q_num, q) = (_first(x) for x in (both, both.transpose(-1, -2)))
    views = kv_num[0], kv[0], kv_num[1], kv[1], q_num[0], q[0], q_num[1], q[1]
    return Tables(*[x.clone() for x in views])  # a compiler would tell views apart


def _first(chosen: Array) -> tuple[Array, Array]:
    """How many are chosen in each row of [..., m], and all numbers of the row, the chosen ones first: int32."""
    number = torch.arange(chosen.shape[-1], device=chosen.device, dtype=torch.int32).expand(chosen.shape)
    up_to = chosen.cumsum(-1, dtype=torch.int32)
    count = up_to[..., -1]
    place = torch.where(chosen, up_to - 1, count[..., None] + number - up_to)
    return count, torch.empty(chosen.shape, dtype=torch.int32, device=chosen.device).scatter(-1, place.long(), number)
