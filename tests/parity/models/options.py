"""Every option of a configuration set to other values: each must change our model as it changes transformers' own,
or be refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from maskattn import models, standards
from maskattn.parity.models.peer import Peer
from maskattn.parity.models.run import MORE
from maskattn.parity.models.tiny import Tiny
from maskattn.parity.models.twins import Torch

#: What changes no number of a call, or is a size that the tiny row must choose with care.
ASIDE = {"return_dict", "use_cache", "vocab_size", "problem_type", "transformers_version", "architectures", "dtype"}
ASIDE |= {"model_type", "id2label", "label2id", "output_hidden_states", "output_attentions", "chunk_size_feed_forward"}
ASIDE |= {"bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "_name_or_path", "initializer_range"}
ASIDE |= {"decoder_start_token_id", "hidden_size", "num_attention_heads", "n_head", "n_embd", "d_model"}
TEXTS = {
    "position_embedding_type": ("absolute", "rotary", "relative_key"),
    "feed_forward_proj": ("relu", "gated-gelu", "gated-silu", "silu"),
    "attention_type": ("original_full", "block_sparse"),
    "encoder_attention_type": ("local", "transient-global"),
    "scoring_func": ("softmax", "sigmoid"),
    "topk_method": ("greedy", "group_limited_greedy", "noaux_tc"),
    "norm_rel_ebd": ("none", "layer_norm"),
    "feat_extract_norm": ("group", "layer"),
    "summary_type": (),
}
ACTIVATIONS = ("relu", "silu", "gelu_new", "gelu", "quick_gelu", "tanh", "mish", "gelu_10", "relu6", "leaky_relu")
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 8},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "truncate": False},
    {"rope_type": "default", "rope_theta": 77.0},
    {"partial_rotary_factor": 0.25},
    {"partial_rotary_factor": 1.0},
    {"rope_type": "proportional", "factor": 2.0},
)


def others(key: str, value: Any) -> Iterator[Any]:
    """Values that an option may have instead."""
    if key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
        nested = any(isinstance(each, dict) for each in value.values())
        for more in ROPES:
            yield {kind: {**each, **more} for kind, each in value.items()} if nested else {**value, **more}
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, value * 2)
    elif isinstance(value, float):
        yield from (value * 2 or 0.5, 0.7)
    elif isinstance(value, str):
        known = TEXTS.get(key, ACTIVATIONS if "act" in str(key) else ())
        yield from (other for other in known if other != value)
    elif value is None:
        yield from (2.0, 3, True, "gelu_new" if "act" in key else "mean")
    elif isinstance(value, list) and len(set(map(str, value))) > 1:
        yield value[::-1]
    elif isinstance(value, dict):
        for name in sorted(value.keys() - ASIDE):
            inner = value[name]
            yield from ({**value, name: other} for other in others(name, inner))


def tried(name: str, tiny: Tiny) -> Iterator[tuple[str, Any, str]]:
    """(option, value, what came of it): "same", "refused: " by ours, "no model" of transformers, or "DIFFERS"."""
    import transformers

    whole = transformers.AutoConfig.for_model(name.partition("+")[0], **tiny.config)
    for key, value in whole.to_dict().items():
        if key in ASIDE or key.startswith("_"):
            continue
        for other in others(key, value):
            # eager counts ALiBi's bias twice
            attention = "sdpa" if key == "alibi" else tiny.attention
            yield key, other, outcome(name, replace(tiny, config={**tiny.config, key: other}, attention=attention))


def outcome(name: str, tiny: Tiny) -> str:
    """What comes of a configuration."""
    try:
        peer = Peer.of(name, tiny)
        batches = [peer.batch(tiny, side) for side in tiny.padding or ("",)]
        theirs = [peer.run(batch)[0] for batch in batches]
    except Exception as error:
        return f"no model: {type(error).__name__}"
    try:
        table = models.describe(peer.config, peer.tensors)
    except ValueError as error:
        return f"refused: {error}"
    try:
        ours = [Torch(table, peer.tensors).run(batch)[0] for batch in batches]
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("Model: "):
            return f"refused: {error}"
        return f"DIFFERS by {type(error).__name__}: {error}"
    worst = 0.0
    for batch, one, other in zip(batches, ours, theirs, strict=True):
        if other.keys() ^ (one.keys() - (MORE - other.keys())):
            return f"DIFFERS in {one.keys() ^ other.keys()}"
        for what, x in other.items():
            keep = peer.kept(batch, what, x.shape)
            if not (abs(x[keep]) < 1e30).all():
                return "no model: no numbers"
            if one[what].shape != x.shape:
                return f"DIFFERS in the shape of {what}"
            worst = max(worst, standards.model_share(one[what][keep], x[keep]))
    return "same" if worst <= 1 else f"DIFFERS {worst:.1e}"
