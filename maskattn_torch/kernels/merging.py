"""Attention over disjoint sets of keys, put together: the parts of a ring, of a cache, of a long sequence."""

from __future__ import annotations

import torch
from jaxtyping import Float

from maskattn.attention import check_merge
from maskattn_torch.types import Array, Operand

__all__ = ["merge"]


def merge(
    out: Float[Operand, "B L H Dv"],
    lse: Float[Operand, "B L H"],
    out2: Float[Operand, "B L H Dv"],
    lse2: Float[Operand, "B L H"],
) -> tuple[Float[Array, "B L H Dv"], Float[Array, "B L H"]]:
    """The output and log-sum-exp over the keys of two calls of `attention`, whose keys have none in common.

    A part that attends to nothing (log-sum-exp -inf) counts for nothing, whatever its output; where both do, the result
    is +0 and -inf. More parts are merged one after the other. Give `sinks` to one part only, and positions to each by
    `mask.at(k_offset=...)`:

    >>> import torch
    >>> from maskattn import masks
    >>> from maskattn_torch import attention, merge
    >>> query, key, value = torch.randn(3, 1, 6, 2, 4).unbind()
    >>> mask = masks.Causal()
    >>> first = attention(query, key[:, :4], value[:, :4], mask, return_lse=True)
    >>> last = attention(query, key[:, 4:], value[:, 4:], mask.at(k_offset=4), return_lse=True)
    >>> torch.allclose(merge(*first, *last)[0], attention(query, key, value, mask), atol=1e-6)
    True

    Args:
        out, out2: [B, L, H, Dv], of one dtype.
        lse, lse2: [B, L, H], float32 or float64, as `attention` returns them.

    Returns:
        (out, lse), in the dtypes of the arguments: computed in that of `lse`, and rounded once. Differentiable.

    Raises:
        TypeError, ValueError: the shapes or dtypes are others.
    """
    check_merge({"out": out, "lse": lse, "out2": out2, "lse2": lse2}, (torch.Tensor,), "a torch.Tensor")
    merged = _weighted(out, _share(lse2, lse)) + _weighted(out2, _share(lse, lse2))
    empty = (lse == -torch.inf) & (lse2 == -torch.inf)
    total = torch.logaddexp(lse.masked_fill(empty, 0), lse2.masked_fill(empty, 0)).masked_fill(empty, -torch.inf)
    return merged.to(out.dtype), total


def merge_into(out: Array, lse: Array, other: Array, other_lse: Array) -> None:
    """Take in, in place, the result over other keys; the axes are those of `merge` in any order, Dv last.

    `out` gets the complement of the other's weight: an infinite value whose weight is all lost by rounding gives NaN.
    """
    share = _share(lse, other_lse).unsqueeze(-1)
    out.mul_(1 - share).addcmul_(other, share)  # not lerp_: it would make an infinite value NaN
    lse.copy_(torch.logaddexp(lse, other_lse))


def _share(lse: Array, other_lse: Array) -> Array:
    """The weight of the other result, exp(other_lse) / (exp(lse) + exp(other_lse)); 0 where it attends to nothing.

    It depends on the difference alone: with one exponential for each, what a large log-sum-exp has lost by rounding
    would scale the output.
    """
    return torch.sigmoid((other_lse - lse).masked_fill_(other_lse == -torch.inf, -torch.inf))


def _weighted(out: Array, share: Array) -> Array:
    """A result times its weight, a weight of 0 giving 0 whatever it meets."""
    share = share.unsqueeze(-1)
    return out.to(share.dtype).masked_fill(share == 0, 0) * share
