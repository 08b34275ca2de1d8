"""The attention function of transformers' registry."""

from __future__ import annotations

import torch

from maskattn.masks import Causal, Mask, Segments
from maskattn_torch import functional
from maskattn_torch._modes import plain
from maskattn_torch._symbolic import below
from maskattn_torch.hugging_face._masks import ModelMask, settled
from maskattn_torch.types import Array

#: In calls of less work a mask is a tensor, made once for all layers: planning would cost more.
_SHORT = 1e8

#: What some models pass, and this cannot do: it would change the result.
_CANNOT = {
    "indices": "sparse attention over chosen keys",
    "block_indices": "sparse attention over chosen blocks",
    "sinks": "sinks that depend on the query",
    "cache": "a paged cache (continuous batching)",
}


def attention(
    module: object,
    query: Array,
    key: Array,
    value: Array,
    attention_mask: Mask | Array | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Array | None = None,
    position_bias: Array | None = None,
    cu_seq_lens_q: Array | None = None,
    cu_seq_lens_k: Array | None = None,
    output_attentions: bool | None = None,
    **others: object,
) -> tuple[Array, None]:
    """What `AttentionInterface` calls: attention of a module of transformers.

    Args:
        module: the attention module; its `is_causal` counts where there is no mask and is_causal is None.
        query: [B, H, L, D]; key: [B, K, S, D]; value: [B, K, S, Dv]. Head h reads key/value head h // (H // K).
        attention_mask: a Mask; a bool tensor [B, 1 or H, L, S], True = may attend; a float one, which is added; or
            None: causal, where that is what the module is and L > 1, else everything.
        dropout: the probability that a weight is dropped, drawn from PyTorch's generator.
        scaling: multiplies query times key (default 1 / sqrt(D)).
        softcap, s_aux: as softcap and sinks [H] of `maskattn_torch.attention`.
        position_bias: [B or 1, H or 1, L, S], added to the scores.
        cu_seq_lens_q, cu_seq_lens_k: cumulative lengths of documents laid end to end, read where there is no mask.
        output_attentions: refused where True.
        others: what models say to other implementations.

    Returns:
        [B, L, H, Dv], and None for the weights.

    Raises:
        ValueError: something is asked that this cannot do, or the mask was made for other lengths.
    """
    _refuse(output_attentions, others)
    mask: Mask | Array | None = attention_mask
    bias = position_bias
    if mask is None:
        mask = _unmasked(module, is_causal, query, cu_seq_lens_q, cu_seq_lens_k)
    elif isinstance(mask, ModelMask):
        mask = _of_model(mask, query, key, value)
    elif isinstance(mask, torch.Tensor) and mask.dtype != torch.bool:
        mask, added = _additive(mask)
        bias = added if bias is None else bias if added is None else bias + added
    query, key, value = _of_one_batch(query, key, value)
    shape = (*query.shape[:3], value.shape[3])
    if _packs(query, key, mask, bias, s_aux, dropout):
        query = query.reshape(shape[0], key.shape[1], -1, query.shape[3])
    drawn = None
    if dropout:
        drawn = torch.randint(0, 1 << 31, (2,), device=query.device).to(torch.uint32)
    sinks = None if s_aux is None else s_aux.reshape(-1)
    out = functional.attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        mask,
        bias=bias,
        scale=scaling,
        softcap=softcap,
        sinks=sinks,
        dropout_rate=dropout,
        dropout_key=drawn,
    )
    if query.shape[2] != shape[2]:
        out = out.transpose(1, 2).reshape(shape).transpose(1, 2)
    return out.contiguous(), None


def _packs(query: Array, key: Array, mask: object, bias: object, sinks: object, dropout: float) -> bool:
    """Whether one token's query heads go as so many queries of their key/value head: SDPA would repeat the cache."""
    if query.shape[2] != 1 or query.shape[1] == key.shape[1] or not plain() or dropout:
        return False
    shared = mask is None or isinstance(mask, torch.Tensor) and mask.shape[1] == mask.shape[2] == 1
    return shared and bias is None and sinks is None


def _refuse(output_attentions: bool | None, others: dict[str, object]) -> None:
    if output_attentions:
        raise ValueError(
            "attn_implementation='maskattn' gives no attention weights (output_attentions=True): "
            "attn_implementation='eager' does"
        )
    for name, what in _CANNOT.items():
        if others.get(name) is not None:
            raise ValueError(f"attn_implementation='maskattn' has no {what}, which this model asks for ({name})")


def _unmasked(
    module: object, is_causal: bool | None, query: Array, starts_q: Array | None, starts_k: Array | None
) -> Mask | None:
    """The mask where a model gives none: aligned at the start, as SDPA's is_causal."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask: Mask | None = Causal() if query.shape[2] > 1 and causal else None
    if starts_q is None:
        return mask
    if query.shape[0] != 1:
        raise ValueError(f"cu_seq_lens_q is of documents laid end to end in one row, but the batch is {query.shape[0]}")
    documents = Segments.from_cu_seqlens(starts_q, starts_k, q_len=query.shape[2])
    return documents if mask is None else documents & mask


def _of_model(given: ModelMask, query: Array, key: Array, value: Array) -> Mask | Array | None:
    _, _, q_len, kv_len = given.shape
    if (query.shape[2], key.shape[2]) != (q_len, kv_len):
        raise ValueError(
            f"attn_implementation='maskattn': the mask was made for {q_len} queries and {kv_len} keys, but attention "
            f"is asked for {query.shape[2]} and {key.shape[2]}"
        )
    mask = settled(given)
    if mask is None or not plain() or type(mask) is Causal:
        return mask
    work = 2 * query.shape[0] * query.shape[1] * q_len * kv_len * (query.shape[3] + value.shape[3])
    return given.tensor(query.device) if below(work, _SHORT) else mask


def _additive(added: Array) -> tuple[Array | None, Array | None]:
    """(mask, bias) of a tensor that is to be added: where it is 0 and the least number alone, it is a mask."""
    if plain() and not added.requires_grad:
        open_ = added == 0
        if bool((open_ | (added <= torch.finfo(added.dtype).min)).all()):
            return open_, None
    return None, added


def _of_one_batch(*arrays: Array) -> tuple[Array, ...]:
    """A batch of 1 (learned queries, say) serves every row."""
    if arrays[0].shape[0] == arrays[1].shape[0] == arrays[2].shape[0]:
        return arrays
    batch = max([x.shape[0] for x in arrays])
    return tuple([x.expand(batch, *x.shape[1:]) if x.shape[0] == 1 else x for x in arrays])
