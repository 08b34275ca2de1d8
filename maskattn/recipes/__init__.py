"""Attention patterns of published models, by name: functions that return masks built from `maskattn.masks`.

Each says which paper or code it follows, and is tested against that rule written out again. `EXAMPLES` has one of each,
small enough to draw.

    >>> from maskattn import masks, recipes
    >>> recipes.mistral(4096)
    SlidingWindow(4095)
    >>> mask, q_len, kv_len = recipes.EXAMPLES["llama4"]
    >>> print(masks.draw(mask, q_len, kv_len))
    #-------
    ##------
    ###-----
    ####----
    ----#---
    ----##--
    ----###-
    ----####
"""

from __future__ import annotations

from maskattn.recipes.batches import left_padding, packed_documents, right_padding, shared_prefix, speculative_tree
from maskattn.recipes.examples import EXAMPLES, Example
from maskattn.recipes.language import block_diffusion, gemma2, llama4, mistral, prefix_lm
from maskattn.recipes.sparse import bigbird, longformer, sparse_transformer_fixed, sparse_transformer_strided
from maskattn.recipes.vision import flamingo, mae_visible, natten, swin

__all__ = [
    "EXAMPLES",
    "Example",
    "bigbird",
    "block_diffusion",
    "flamingo",
    "gemma2",
    "left_padding",
    "llama4",
    "longformer",
    "mae_visible",
    "mistral",
    "natten",
    "packed_documents",
    "prefix_lm",
    "right_padding",
    "shared_prefix",
    "sparse_transformer_fixed",
    "sparse_transformer_strided",
    "speculative_tree",
    "swin",
]
