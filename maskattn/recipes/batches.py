"""How sequences are laid out in a batch: padding, packing, shared prefixes, trees of drafts."""

from __future__ import annotations

import numpy as np

from maskattn._fields import Array, peek
from maskattn._lookup import wide
from maskattn._problems import Problems
from maskattn.masks import Causal, KeyMask, KeyPadding, Mask, Segments, Tree


def packed_documents(sizes: object = None, *, ids: Array = None, causal: bool = True) -> Mask:
    """Documents in one row, each sees only itself. True = may attend.

    Sequence packing without contamination (Krell et al. 2021, arXiv:2107.02027; FlashAttention's varlen calls).

    Args:
        sizes: the documents' lengths, laid end to end in one row, or
        ids: int [B, L], the document of each token; a negative id is padding.
        causal: whether a document is causal.

    Raises:
        ValueError: neither or both of sizes and ids are given; as `Segments.from_sizes` and `Segments`. TypeError: ids
            or sizes are not ints, or causal not a bool.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.packed_documents([2, 3]), 5, 5))
    #----
    ##---
    --#--
    --##-
    --###
    """
    problems = Problems("packed_documents")
    if (sizes is None) == (ids is None):
        problems.value(f"either sizes or ids must be given, got {'neither' if sizes is None else 'both'}")
    if causal not in (True, False):
        problems.type(f"causal must be a bool, got {causal!r}")
    problems.raise_if_any()
    documents = Segments.from_sizes(sizes) if ids is None else Segments(ids)
    return Causal() & documents if causal else documents


def left_padding(lengths: Array, kv_len: int) -> Mask:
    """Keys that are no padding, where rows end at kv_len and padding comes first. True = may attend.

    What generation uses (Hugging Face's `padding_side="left"`): k >= kv_len - lengths[b]. For a decoder, `& Causal()`;
    a padded query then sees nothing and follows `empty_rows`.

    Args:
        lengths: int [B], of NumPy or a framework.
        kv_len: the padded length.

    Raises:
        ValueError: a length is negative or exceeds kv_len (told where it can be read), or lengths has not one axis.
        TypeError: something is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(masks.Causal() & recipes.left_padding([3], kv_len=5), 5, 5))
    -----
    -----
    --#--
    --##-
    --###
    """
    problems = Problems("left_padding")
    lengths = problems.array("lengths", lengths, "int", "[B]")
    kv_len = problems.integer("kv_len", kv_len, minimum=0)
    values = None if problems else peek(lengths)
    if values is not None and values.size and not 0 <= int(values.min()) <= int(values.max()) <= kv_len:
        problems.value(f"lengths must be from 0 to kv_len {kv_len}, got {values.min()} to {values.max()}")
    problems.raise_if_any()
    return KeyPadding(lengths).at(k_offset=wide(lengths) - kv_len)


def right_padding(lengths: Array) -> Mask:
    """Keys that are no padding, where padding comes last: k < lengths[b]. True = may attend.

    What training uses (Hugging Face's `padding_side="right"`). `lengths` is int [B].

    Raises:
        ValueError: a length is negative, or the array has not one axis. TypeError: its dtype is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.right_padding([2, 4]), 2, 4))
    ##--
    ##--
    """
    return KeyPadding(lengths)


def shared_prefix(prefix_len: int, *branches: int) -> Mask:
    """Continuations of one prefix, laid end to end after it: each sees the prefix and itself. True = may attend.

    Several completions of one prompt in one row (parallel sampling, the questions about one document), as Hydragen
    (Juravsky et al. 2024, arXiv:2402.05099) and cascade attention compute them; L = S = prefix_len + sum(branches),
    causal. In a model with positions, every branch starts at prefix_len.

    Raises:
        ValueError: a length is negative. TypeError: one is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.shared_prefix(2, 2, 3), 7, 7))
    #------
    ##-----
    ###----
    ####---
    ##--#--
    ##--##-
    ##--###
    """
    problems = Problems("shared_prefix")
    sizes = [problems.integer("prefix_len", prefix_len, minimum=0)]
    sizes += [problems.integer(f"branches[{i}]", size, minimum=0) for i, size in enumerate(branches)]
    problems.raise_if_any()
    prefix = KeyMask([np.arange(sum(sizes)) < sizes[0]])
    return Causal() & (prefix | Segments.from_sizes(sizes))


def speculative_tree(prefix_len: Array, parents: Array) -> Mask:
    """A tree of drafted tokens after a cache: each sees the cache, its ancestors and itself. True = may attend.

    Medusa (Cai et al. 2024, arXiv:2401.10774), SpecInfer, EAGLE. The queries are the nodes; the keys are
    the cache, then the nodes: L = N, S = prefix_len + N. Where rows hold caches of different lengths, each row's nodes
    follow its own.

    Args:
        prefix_len: an int, or int [B].
        parents: int [N] or [B, N], as in `Tree`.

    Raises:
        ValueError: a length is negative, or parents is no tree. TypeError: something is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.speculative_tree(2, [-1, 0, 0, 1]), 4, 6))
    ###---
    ####--
    ###-#-
    ####-#
    """
    problems = Problems("speculative_tree")
    prefix_len = problems.integer_or_array("prefix_len", prefix_len, "[B]", minimum=0)
    problems.raise_if_any()
    lengths = [prefix_len] if isinstance(prefix_len, int) else prefix_len
    return KeyPadding(lengths) | Tree(parents).at(
        k_offset=-prefix_len if isinstance(prefix_len, int) else -wide(prefix_len)
    )
