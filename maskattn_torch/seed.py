"""Attention: the seed module, self-attention with a soft additive mask, by its published name and arguments."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num

from maskattn.modules import seed_config, seed_mask
from maskattn.typing import KernelName
from maskattn_torch.functional import FRAMEWORK
from maskattn_torch.multihead import MultiHeadAttention
from maskattn_torch.types import Array, RandomKey

__all__ = ["Attention"]


class Attention(MultiHeadAttention):
    """Self-attention of a vision transformer, with `(1 - mask) * -10000` added to the logits before softmax.

    Parameters `qkv` and `proj`, as in timm.

    Args:
        dim: width of the input and the output; divisible by num_heads.
        num_heads: heads.
        qkv_bias: whether the input projection has a bias (the output projection always has).
        qk_scale: what multiplies query times key (default (dim // num_heads) ** -0.5).
        attn_drop, proj_drop: dropout rates of the weights and of the output projection.
        with_qkv: False uses the input as query, key and value, with no projection in or out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        with_qkv: bool = True,
    ) -> None:
        super().__init__(seed_config(dim, num_heads, qkv_bias, qk_scale, attn_drop, proj_drop, with_qkv))

    def forward(  # type: ignore[override]
        self,
        x: Float[Array, "B N E"],
        attention_mask: Num[Array, "*shape"] | None = None,
        *,
        dropout_key: RandomKey | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
    ) -> Float[Array, "B N E"]:
        """x [B, N, dim] -> [B, N, dim].

        Args:
            x: the input.
            attention_mask: [B, N], or broadcastable to [B, H, N, N]; 1 = keep, 0 = drop, fractions in between.
            dropout_key, deterministic, kernel: as in `MultiHeadAttention`.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        bias = None if attention_mask is None else soft_mask(attention_mask, x, self.config.num_heads)
        return super().forward(x, bias=bias, dropout_key=dropout_key, deterministic=deterministic, kernel=kernel)


def soft_mask(attention_mask: Num[Array, "*shape"], x: Float[Array, "B N E"], heads: int) -> Float[Array, "#B #H #N N"]:
    """(1 - mask) * -10000 in float32 (float64 for float64 inputs), with the axes of [B, H, N, N]."""
    keep = seed_mask(attention_mask, x, heads, FRAMEWORK)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (1.0 - keep.to(dtype)) * -10000.0
