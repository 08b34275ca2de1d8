"""wav2vec 2.0 and HuBERT."""

from __future__ import annotations

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Key, Merged, Row, When

_STABLE = Key("do_stable_layer_norm", default=False)
_HIDDEN_DROPOUT = Key("hidden_dropout", default=0.1)


def _without(*names: str) -> dict[str, str]:
    """Options that are refused."""
    return dict.fromkeys(names, "there is no part for it")


def hides_frames(default: bool) -> Merged:
    """Whether training hides frames or channels of features (SpecAugment)."""

    def read(reading: Reading) -> str | None:
        rates = ("mask_time_prob", 0.05), ("mask_feature_prob", 0.0)
        on = reading.get("apply_spec_augment", default=default)
        on = on and any(reading.get(name, default=rate) > 0 for name, rate in rates)
        return "apply_spec_augment=True hides parts of what it hears (SpecAugment)" if on else None

    return Merged(read)


WAV2VEC2: Row = {
    "kind": "sound",
    "prefix": "wav2vec2.",
    "table": "feature_projection.projection",
    "refused": _without("add_adapter", "adapter_attn_dim"),
    "layers": "encoder.layers.{}",
    "attention": tuple(f"attention.{name}_proj" for name in ("q", "k", "v", "out")),
    "norm": "layer",
    "eps": Key("layer_norm_eps", default=1e-5),
    "norms": When(
        _STABLE,
        {"attention_in": "layer_norm", "mlp_in": "final_layer_norm"},
        {"attention_sum": "layer_norm", "mlp_sum": "final_layer_norm"},
    ),
    "mlp": ("feed_forward.intermediate_dense", "feed_forward.output_dense"),
    "mlp_width": Key("intermediate_size"),
    "activation": Key("hidden_act", default="gelu"),
    "front_activation": Key("feat_extract_activation", default="gelu"),
    "front_norms": Key("feat_extract_norm", default="group"),
    "after": When(_STABLE, None, "encoder.layer_norm"),
    "final": When(_STABLE, "encoder.layer_norm"),
    "bare": True,
    "dropout": _HIDDEN_DROPOUT,
    "inner_dropout": Key("activation_dropout", default=0.1),
    "layerdrop": Key("layerdrop", default=0.1),
    "untrained": hides_frames(True),
    "project_norm": "feature_projection.layer_norm",
    "head": "lm_head",
}

SOUND: dict[str, Row] = {
    "wav2vec2": WAV2VEC2,
    "hubert": {
        **WAV2VEC2,
        "prefix": "hubert.",
        "refused": _without("conv_pos_batch_norm"),
        "project_norm": When(Key("feat_proj_layer_norm", default=True), "feature_projection.layer_norm"),
    },
}
