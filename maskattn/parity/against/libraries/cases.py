"""Every row of the matrix: a peer, and one of its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from maskattn import masks
from maskattn.layer import ExtraKeys, Norm
from maskattn.parity.against.libraries import jax_peers, torch_peers
from maskattn.parity.against.libraries.answer import Answer, Theirs
from maskattn.parity.against.libraries.case import (
    BIAS,
    BIAS_EACH,
    BIAS_OF_KEYS,
    KEEP,
    KEEP_EACH,
    PADDING,
    B,
    Case,
    Data,
    H,
    L,
    S,
)

#: How each peer is called, and whether we have a function or module for its place.
PEERS: Mapping[str, tuple[Callable[[Data, bool], Answer], bool]] = {
    "module torch.nn.MultiheadAttention": (torch_peers.module, True),
    "torch scaled_dot_product_attention": (torch_peers.function, True),
    "module flax.linen.MultiHeadDotProductAttention": (jax_peers.linen, True),
    "flax.linen.dot_product_attention": (functools.partial(jax_peers.function, "flax.linen"), True),
    "module flax.nnx.MultiHeadAttention": (jax_peers.nnx, True),
    "flax.nnx.dot_product_attention": (functools.partial(jax_peers.function, "flax.nnx"), True),
    "jax.nn.dot_product_attention": (functools.partial(jax_peers.function, "jax.nn"), False),
}

_CAUSAL = np.tri(L, S, dtype=bool)
_SQUARE = np.tri(L, dtype=bool)
_ADDED = np.where(KEEP, BIAS, -np.inf).astype(np.float32)
_TO_HEADS = KEEP[None, None]
_OF_KEYS = PADDING[:, None, None]


def _mha(name: str, given: Mapping[str, Theirs] | None = None, **options: Theirs) -> Case:
    return Case("module torch.nn.MultiheadAttention", name, given or {}, **options)


def _sdpa(name: str, given: Mapping[str, Theirs], **options: Theirs) -> Case:
    return Case("torch scaled_dot_product_attention", name, given, **options)


def _both(name: str, given: Mapping[str, Theirs], **options: Theirs) -> tuple[Case, Case]:
    """Of Flax's two modules."""
    peers = "module flax.linen.MultiHeadDotProductAttention", "module flax.nnx.MultiHeadAttention"
    return Case(peers[0], name, given, **options), Case(peers[1], name, given, **options)


def _linen(name: str, given: Mapping[str, Theirs], **options: Theirs) -> Case:
    return Case("flax.linen.dot_product_attention", name, given, **options)


def _nnx(name: str, given: Mapping[str, Theirs], **options: Theirs) -> Case:
    return Case("flax.nnx.dot_product_attention", name, given, **options)


def _jax(name: str, given: Mapping[str, Theirs], **options: Theirs) -> Case:
    return Case("jax.nn.dot_product_attention", name, given, **options)


_GROUPED = {"num_kv_heads": 2}
_NORM = {"qk_norm": Norm("layer", eps=1e-6)}
_QUERIES = np.array([L, L - 2], np.int32)
_LENGTHS = PADDING.sum(1).astype(np.int32)

CASES: tuple[Case, ...] = (
    _mha("attn_mask, bool [L, S]", {"attn_mask": ~KEEP}, mask=masks.from_torch_mha(~KEEP)),
    _mha(
        "attn_mask, bool [B * H, L, S]",
        {"attn_mask": ~KEEP_EACH.reshape(B * H, L, S)},
        mask=masks.from_torch_mha(~KEEP_EACH.reshape(B * H, L, S), num_heads=H),
    ),
    _mha("attn_mask, float", {"attn_mask": _ADDED}, mask=masks.Dense(KEEP), bias=BIAS[None, None]),
    _mha("attn_mask, float [B * H, L, S]", {"attn_mask": BIAS_EACH.reshape(B * H, L, S)}, bias=BIAS_EACH),
    _mha("key_padding_mask, bool", {"key_padding_mask": ~PADDING}, mask=masks.from_torch_mha(None, ~PADDING)),
    _mha("key_padding_mask, float", {"key_padding_mask": BIAS_OF_KEYS}, bias=BIAS_OF_KEYS[:, None, None]),
    _mha(
        "attn_mask and key_padding_mask",
        {"attn_mask": ~KEEP, "key_padding_mask": ~PADDING},
        mask=masks.from_torch_mha(~KEEP, ~PADDING),
    ),
    _mha("is_causal", {"attn_mask": ~_SQUARE, "is_causal": True}, mask=masks.Causal(), alone=True),
    _mha("need_weights", {"attn_mask": ~KEEP}, mask=masks.Dense(KEEP), weights="mean"),
    _mha("average_attn_weights=False", {"attn_mask": ~KEEP}, mask=masks.Dense(KEEP), weights="each"),
    _mha(
        "add_bias_kv",
        {"attn_mask": ~KEEP},
        mask=masks.Dense(KEEP),
        changes={"extra_keys": ExtraKeys()},
        made={"add_bias_kv": True},
    ),
    _mha(
        "add_zero_attn",
        {"attn_mask": ~KEEP},
        mask=masks.Dense(KEEP),
        changes={"extra_keys": ExtraKeys(False, True)},
        made={"add_zero_attn": True},
    ),
    _mha(
        "add_bias_kv and add_zero_attn",
        {"key_padding_mask": ~PADDING},
        mask=masks.KeyMask(PADDING),
        changes={"extra_keys": ExtraKeys(True, True)},
        made={"add_bias_kv": True, "add_zero_attn": True},
    ),
    _mha("kdim and vdim", {"attn_mask": ~KEEP}, mask=masks.Dense(KEEP), changes={"kdim": 10, "vdim": 9}),
    _mha("bias=False", {"attn_mask": ~KEEP}, mask=masks.Dense(KEEP), changes={"qkv_bias": False, "out_bias": False}),
    _mha("eval() under no_grad", {"attn_mask": ~KEEP}, mask=masks.Dense(KEEP), trained=False),
    _sdpa("attn_mask, bool [L, S]", {"attn_mask": KEEP}, mask=masks.Dense(KEEP)),
    _sdpa("attn_mask, bool [B, 1, 1, S]", {"attn_mask": _OF_KEYS}, mask=masks.KeyMask(PADDING)),
    _sdpa("attn_mask, bool [B, H, L, S]", {"attn_mask": KEEP_EACH}, mask=masks.Dense(KEEP_EACH)),
    _sdpa("attn_mask, float", {"attn_mask": _ADDED}, mask=masks.Dense(KEEP), bias=BIAS[None, None]),
    _sdpa("attn_mask, float [B, H, L, S]", {"attn_mask": BIAS_EACH}, bias=BIAS_EACH),
    _sdpa("is_causal", {"is_causal": True}, mask=masks.Causal()),
    _sdpa("enable_gqa", {"attn_mask": KEEP, "enable_gqa": True}, mask=masks.Dense(KEEP), changes=_GROUPED),
    _sdpa("scale", {"attn_mask": KEEP, "scale": 0.7}, mask=masks.Dense(KEEP), changes={"scale": 0.7}),
    _sdpa("a value width of its own", {"attn_mask": KEEP}, mask=masks.Dense(KEEP), changes={"v_head_dim": 5}),
    _sdpa(
        "rows that may attend to nothing",
        {"attn_mask": KEEP & (np.arange(L) != 2)[:, None]},
        mask=masks.Dense(KEEP & (np.arange(L) != 2)[:, None]),
    ),
    *_both("mask, bool", {"mask": KEEP_EACH}, mask=masks.from_flax(KEEP_EACH)),
    *_both(
        "mask, 0 and 1 (combine_masks)",
        {"mask": (_TO_HEADS & _OF_KEYS).astype(np.float32)},
        mask=masks.from_flax((_TO_HEADS & _OF_KEYS).astype(np.float32)),
    ),
    *_both(
        "use_bias=False",
        {"mask": _OF_KEYS},
        mask=masks.KeyMask(PADDING),
        changes={"qkv_bias": False, "out_bias": False},
    ),
    *_both("normalize_qk", {"mask": _TO_HEADS}, mask=masks.Dense(KEEP), changes=_NORM, made={"normalize_qk": True}),
    *_both("decode", {}, mask=masks.Causal(), alone=True, decodes=True),
    *_both("widths of its own", {"mask": _TO_HEADS}, mask=masks.Dense(KEEP), changes={"embed_dim": 11, "out_dim": 8}),
    Case(
        "module flax.nnx.MultiHeadAttention",
        "num_kv_heads",
        {"mask": _TO_HEADS},
        mask=masks.Dense(KEEP),
        changes={**_GROUPED, "kdim": 10, "vdim": 10},
    ),
    Case(
        "module flax.nnx.MultiHeadAttention",
        "is_causal and mask",
        {"is_causal": True, "mask": np.broadcast_to(_OF_KEYS, (B, 1, L, S))},
        mask=masks.Causal() & masks.KeyMask(PADDING),
    ),
    _linen("mask, 0 and 1", {"mask": KEEP_EACH.astype(np.int32)}, mask=masks.from_flax(KEEP_EACH.astype(np.int32))),
    _linen("bias and mask", {"bias": BIAS_EACH, "mask": _TO_HEADS}, mask=masks.Dense(KEEP), bias=BIAS_EACH),
    _nnx("bias", {"bias": BIAS_EACH}, bias=BIAS_EACH),
    _nnx("fewer heads of keys and values", {"mask": _TO_HEADS}, mask=masks.Dense(KEEP), changes=_GROUPED),
    _jax("mask", {"mask": KEEP_EACH}, mask=masks.Dense(KEEP_EACH)),
    _jax("bias", {"bias": BIAS_EACH}, bias=BIAS_EACH),
    _jax("bias and mask", {"bias": BIAS_EACH, "mask": KEEP_EACH}, mask=masks.Dense(KEEP_EACH), bias=BIAS_EACH),
    _jax("is_causal", {"is_causal": True}, mask=masks.Causal()),
    _jax("local_window_size=2", {"local_window_size": 2}, mask=masks.SlidingWindow(2, 2)),
    _jax("local_window_size=(1, 2)", {"local_window_size": (1, 2)}, mask=masks.SlidingWindow(1, 2)),
    _jax(
        "local_window_size and is_causal",
        {"local_window_size": (2, 0), "is_causal": True},
        mask=masks.Causal() & masks.SlidingWindow(2, 0),
    ),
    _jax("key_value_seq_lengths", {"key_value_seq_lengths": _LENGTHS}, mask=masks.KeyPadding(_LENGTHS)),
    _jax(
        "query_seq_lengths",
        {"query_seq_lengths": _QUERIES},
        mask=masks.QueryMask(np.arange(L) < _QUERIES[:, None]),
    ),
    _jax("fewer heads of keys and values", {"mask": _TO_HEADS}, mask=masks.Dense(KEEP), changes=_GROUPED),
    _jax("scale", {"mask": _TO_HEADS, "scale": 0.7}, mask=masks.Dense(KEEP), changes={"scale": 0.7}),
)
