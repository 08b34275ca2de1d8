"""Sparse self-attention for long sequences: a local pattern joined with a few keys that everyone sees."""

from __future__ import annotations

import numpy as np

from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks import (
    BlockCausal,
    Causal,
    Chunked,
    Dilated,
    Global,
    KeyMask,
    Mask,
    Not,
    RandomBlocks,
    SlidingWindow,
    Strided,
)


def longformer(window: int, global_tokens: Array, dilation: int = 1) -> Mask:
    """Longformer: a window of window / 2 keys on each side, and global tokens in both directions. True = may attend.

    Beltagy, Peters, Cohan 2020 (arXiv:2004.05150, section 3.1); `window` is the `attention_window` of Hugging Face's
    LongformerConfig, the query's own key not counted. With a dilation the keys of the window lie that far apart.

    Args:
        window: an even int.
        global_tokens: bool [S] or [B, S], True = global.
        dilation: an int of at least 1.

    Raises:
        ValueError: window is odd or negative, dilation less than 1, or global_tokens has other axes. TypeError: a type.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.longformer(2, [True, False, False, False, False, False]), 6, 6))
    ######
    ###---
    ####--
    #-###-
    #--###
    #---##
    """
    problems = Problems("longformer")
    window = problems.integer("window", window, minimum=0)
    dilation = problems.integer("dilation", dilation, minimum=1)
    if not problems and window % 2:
        problems.value(f"window must be even, got {window}")
    problems.raise_if_any()
    half = window // 2
    local: Mask = SlidingWindow(half, half) if dilation == 1 else Dilated(half, dilation)
    return local | Global(global_tokens)


def bigbird(length: int, block_size: int = 64, random_blocks: int = 3, seed: int = 0) -> Mask:
    """BigBird (ITC): three blocks around one's own, the first and last block global, random blocks. True = may attend.

    Zaheer et al. 2020 (arXiv:2007.14062, section 2 and appendix D), the sizes of Google's and Hugging Face's block
    sparse code. Their random blocks avoid the window and the global blocks; those of `RandomBlocks` are drawn from all,
    so a row may see fewer than `random_blocks` further blocks.

    Args:
        length: L = S; the last block may be shorter.
        block_size, random_blocks, seed: ints, as in `RandomBlocks`.

    Raises:
        ValueError: a size is less than 1 (random_blocks: 0), or there are fewer blocks than are drawn. TypeError: one
            is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.bigbird(8, block_size=1, random_blocks=1, seed=2), 8, 8))
    ########
    ###----#
    ####---#
    #-###--#
    #--###-#
    #---####
    #----###
    ########
    """
    problems = Problems("bigbird")
    length = problems.integer("length", length, minimum=1)
    block_size = problems.integer("block_size", block_size, minimum=1)
    problems.raise_if_any()
    blocks = -(-length // block_size)
    block = np.arange(length) // block_size
    # k's block is at most one after q's, and not two or more before it
    near = BlockCausal(block_size).at(q_offset=block_size) & Not(BlockCausal(block_size).at(q_offset=-2 * block_size))
    return near | Global((block == 0) | (block == blocks - 1)) | RandomBlocks(seed, block_size, random_blocks, blocks)


def sparse_transformer_strided(stride: int) -> Mask:
    """The Sparse Transformer's strided pattern: the last `stride` keys, and every stride-th one. True = may attend.

    Child et al. 2019 (arXiv:1904.10509, section 4.3): A1 = {max(0, i - l), ..., i} and A2 = {j: (i - j) mod l = 0},
    here in one mask; for a head each, `masks.PerHead([masks.SlidingWindow(l), masks.Strided(l)])`. A1 has l + 1 keys;
    the published code (openai/sparse_attention, "local") has l.

    Raises:
        ValueError: stride is less than 1. TypeError: it is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.sparse_transformer_strided(3), 8, 8))
    #-------
    ##------
    ###-----
    ####----
    -####---
    --####--
    #--####-
    -#--####
    """
    return Strided(stride) | SlidingWindow(stride)


def sparse_transformer_fixed(stride: int, c: int, kv_len: int) -> Mask:
    """The Sparse Transformer's fixed pattern: one's own block, and the last c keys of every block. True = may attend.

    Child et al. 2019 (arXiv:1904.10509, section 4.3): A1 = {j: floor(j / l) = floor(i / l)} and
    A2 = {j: j mod l in {l - c, ..., l - 1}}, j <= i, here in one mask (the paper writes {t, ..., l} with t = l - c).

    Raises:
        ValueError: stride is less than 1, c not from 1 to stride, or kv_len negative. TypeError: one is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.sparse_transformer_fixed(3, 1, kv_len=8), 8, 8))
    #-------
    ##------
    ###-----
    --##----
    --###---
    --####--
    --#--##-
    --#--###
    """
    problems = Problems("sparse_transformer_fixed")
    stride, c = problems.integer("stride", stride, minimum=1), problems.integer("c", c, minimum=1)
    kv_len = problems.integer("kv_len", kv_len, minimum=0)
    if not problems and c > stride:
        problems.value(f"c must be at most stride {stride}, got {c}")
    problems.raise_if_any()
    return Causal() & (Chunked(stride) | KeyMask([np.arange(kv_len) % stride >= stride - c]))
