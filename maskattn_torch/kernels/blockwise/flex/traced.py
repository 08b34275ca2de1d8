"""The function that is compiled: FlexAttention of one call, with masks and biases as its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor as Array
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

from maskattn.masks import Mask
from maskattn_torch.kernels.blockwise.flex.blocks import BLOCK, Tables, from_mask
from maskattn_torch.kernels.blockwise.flex.compiled import refuse_uncompiled
from maskattn_torch.kernels.blockwise.flex.rows import Bounds, mask_mod
from maskattn_torch.kernels.blockwise.flex.scores import Scores, score_mod

__all__ = ["LEAST", "Terms", "attend", "plan"]

#: FlexAttention takes no narrower heads.
LEAST = 16

_flex: Callable[..., tuple[Array, AuxOutput]] = flex_attention


class Terms(NamedTuple):
    """What besides queries, keys and values a compiled call is given.

    Attributes:
        tables, given: the blocks that are visited, and what is asked in the partial ones; None, both: no mask.
        precision: how float32 is multiplied, in Triton's words; "" for what the process says.
        lse: whether the log-sum-exp is wanted: the kernel for CPUs gives none.
    """

    tables: Tables | None
    given: Bounds | Mask | None
    scores: Scores | None
    scale: float
    softcap: float | None
    precision: str
    lse: bool


def attend(query: Array, key: Array, value: Array, terms: Terms) -> tuple[Array, ...]:
    """The output [B, L, H, Dv] and, where it is wanted, the log-sum-exp [B, L, H]."""
    refuse_uncompiled()
    width, blocks = value.shape[-1], None
    query, key, value = (_padded(x) for x in (query, key, value))
    if terms.tables is not None and terms.given is not None:
        lengths = query.shape[1], key.shape[1]
        blocks = BlockMask(lengths, *terms.tables, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=mask_mod(terms.given))
    found = _flex(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        score_mod=score_mod(terms.scores, terms.softcap),
        block_mask=blocks,
        scale=terms.scale,
        enable_gqa=query.shape[2] != key.shape[2],
        kernel_options={"FLOAT32_PRECISION": terms.precision} if terms.precision else None,
        return_aux=AuxRequest(lse=terms.lse),
    )
    out, lse = found[0].transpose(1, 2)[..., :width], found[1].lse
    return (out,) if lse is None else (out, lse.transpose(1, 2))


def plan(queries: Array, keys: Array, mask: Mask, batch: int, heads: int) -> tuple[Array, ...]:
    """The blocks of any mask and the keys that are reached, of the numbers of queries, [L], and of keys, [S]."""
    refuse_uncompiled()
    sizes = (batch, heads, queries.shape[0], keys.shape[0])
    tables, reached = from_mask(mask, sizes, queries, keys)
    return (*tables, reached)


def _padded(x: Array) -> Array:
    """Heads of at least the width that FlexAttention takes: zeros add nothing to a product."""
    return pad(x, (0, LEAST - x.shape[-1])) if x.shape[-1] < LEAST else x
