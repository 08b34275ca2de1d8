"""Language models: windows, alternation from layer to layer, prefixes, diffusion over blocks."""

from __future__ import annotations

import numpy as np

from maskattn._fields import Array
from maskattn._problems import Problems
from maskattn.masks import BlockCausal, Causal, Chunked, KeyMask, Mask, Not, PrefixLM, QueryMask, SlidingWindow


def mistral(window: int = 4096) -> Mask:
    """Mistral: the last `window` keys, the query's own among them. True = may attend.

    Jiang et al. 2023 (arXiv:2310.06825, section 2), with the width of Hugging Face's `sliding_window`, whose condition
    is q - window < k <= q. FlashAttention and jax.nn would count window + 1 keys.

    Raises:
        ValueError: window is less than 1. TypeError: it is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.mistral(2), 4, 4))
    #---
    ##--
    -##-
    --##
    """
    problems = Problems("mistral")
    window = problems.integer("window", window, minimum=1)
    problems.raise_if_any()
    return SlidingWindow(window - 1)


def gemma2(layer: int, window: int = 4096) -> Mask:
    """Gemma 2: local layers, as Mistral's, and global ones, Causal, in turn from layer 0. True = may attend.

    Gemma Team 2024 (arXiv:2408.00118, section 2); `layer_types` of Hugging Face's Gemma2Config.

    Raises:
        ValueError: layer is negative or window less than 1. TypeError: one is not an int.

    >>> from maskattn import recipes
    >>> recipes.gemma2(0), recipes.gemma2(1)
    (SlidingWindow(4095), Causal())
    """
    problems = Problems("gemma2")
    layer, window = problems.integer("layer", layer, minimum=0), problems.integer("window", window, minimum=1)
    problems.raise_if_any()
    return Causal() if layer % 2 else SlidingWindow(window - 1)


def llama4(layer: int, chunk: int = 8192) -> Mask:
    """Llama 4: causal inside chunks, and every fourth layer (3, 7, ...) causal over everything. True = may attend.

    Hugging Face's Llama4TextConfig (`attention_chunk_size`, `no_rope_layer_interval` 4). Chunks count from position 0;
    in a batch padded on the left they start where the text does: `llama4(layer).at(-padding, -padding)`.

    Raises:
        ValueError: layer is negative or chunk less than 1. TypeError: one is not an int.

    >>> from maskattn import recipes
    >>> recipes.llama4(0), recipes.llama4(3)
    (Causal() & Chunked(8192), Causal())
    """
    problems = Problems("llama4")
    layer, chunk = problems.integer("layer", layer, minimum=0), problems.integer("chunk", chunk, minimum=1)
    problems.raise_if_any()
    return Causal() if (layer + 1) % 4 == 0 else Causal() & Chunked(chunk)


def prefix_lm(prefix: Array) -> Mask:
    """A prefix that everyone sees, then causal. True = may attend.

    Raffel et al. 2020 (T5, arXiv:1910.10683, section 3.2.1), PaliGemma. `prefix` is an int or an int array [B].

    Raises:
        ValueError: a prefix is negative, or the array has not one axis. TypeError: its dtype is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.prefix_lm(2), 4, 4))
    ##--
    ##--
    ###-
    ####
    """
    return PrefixLM(prefix)


def block_diffusion(length: int, block: int) -> Mask:
    """BD3-LM's training mask over a noisy copy of the text, then the clean one. True = may attend.

    Arriola et al. 2025 (arXiv:2503.09573; `block_diff_mask` of kuleshov-group/bd3lms), L = S = 2 * length. A noisy
    token sees its own noisy block and the clean blocks before it; a clean token sees the clean blocks up to its own.

    Raises:
        ValueError: length is no multiple of block, or one is less than 1. TypeError: one is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.block_diffusion(4, 2), 8, 8))
    ##------
    ##------
    --####--
    --####--
    ----##--
    ----##--
    ----####
    ----####
    """
    problems = Problems("block_diffusion")
    length, block = problems.integer("length", length, minimum=1), problems.integer("block", block, minimum=1)
    if not problems and length % block:
        problems.value(f"length must be a multiple of block {block}, got {length}")
    problems.raise_if_any()
    clean = [np.arange(2 * length) >= length]
    # the block of k, counted in the clean half, is before that of q
    before = BlockCausal(block).at(q_offset=-block, k_offset=-length)
    noisy = Chunked(block) | (KeyMask(clean) & before)
    return (QueryMask(clean) & KeyMask(clean) & BlockCausal(block)) | (Not(QueryMask(clean)) & noisy)
