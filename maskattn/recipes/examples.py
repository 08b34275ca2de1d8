"""One example of every recipe, small enough to draw: for the parity suite, the gallery and the documentation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from maskattn.masks import Mask
from maskattn.recipes.batches import left_padding, packed_documents, right_padding, shared_prefix, speculative_tree
from maskattn.recipes.language import block_diffusion, gemma2, llama4, mistral, prefix_lm
from maskattn.recipes.sparse import bigbird, longformer, sparse_transformer_fixed, sparse_transformer_strided
from maskattn.recipes.vision import flamingo, mae_visible, natten, swin


class Example(NamedTuple):
    """A mask and the lengths to draw it at.

    Attributes:
        mask: True = may attend.
        q_len, kv_len: how many queries and keys.
    """

    mask: Mask
    q_len: int
    kv_len: int


EXAMPLES: dict[str, Example] = {
    "bigbird": Example(bigbird(16, block_size=2, random_blocks=1, seed=1), 16, 16),
    "block_diffusion": Example(block_diffusion(6, 2), 12, 12),
    "flamingo": Example(flamingo(np.isin(np.arange(10), [1, 4, 5])[None], tokens_per_image=3), 10, 9),
    "gemma2": Example(gemma2(0, window=4), 10, 10),
    "left_padding": Example(left_padding([6, 9], 10), 10, 10),
    "llama4": Example(llama4(0, chunk=4), 8, 8),
    "longformer": Example(longformer(4, np.isin(np.arange(12), [0, 7])), 12, 12),
    "mae_visible": Example(mae_visible(np.isin(np.arange(9), [1, 4, 5])[None]), 9, 9),
    "mistral": Example(mistral(4), 12, 12),
    "natten": Example(natten((4, 4), 3), 16, 16),
    "packed_documents": Example(packed_documents([3, 5, 2]), 10, 10),
    "prefix_lm": Example(prefix_lm([4]), 10, 10),
    "right_padding": Example(right_padding([6, 9]), 10, 10),
    "shared_prefix": Example(shared_prefix(4, 3, 2, 3), 12, 12),
    "sparse_transformer_fixed": Example(sparse_transformer_fixed(4, 1, kv_len=12), 12, 12),
    "sparse_transformer_strided": Example(sparse_transformer_strided(4), 12, 12),
    "speculative_tree": Example(speculative_tree(4, [-1, 0, 0, 1, 1, 2, 4]), 7, 11),
    "swin": Example(swin((6, 6), window=3, shift=1), 9, 9),
}
"""Each recipe by its name, small enough to be drawn: for the gallery, `maskattn show` and the parity suite."""
