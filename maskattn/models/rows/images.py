"""ViT and its relatives, Swin's windows, and models of images beside texts."""

from __future__ import annotations

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Key, Merged, Row, When, has_table, stage_of
from maskattn.models.build import Builder
from maskattn.models.build_images import ImageBuilder, pair

_ACT = Key("hidden_act", default="gelu")
_DROPOUT = Key("hidden_dropout_prob", default=0.0)
_TABLE = "relative_position_bias_table"


def _drop_path(reading: Reading) -> float:
    """Stochastic depth: from 0 at the first layer to the rate at the last."""
    depths = reading.get("depths", default=None)
    layers = sum(depths) if depths else reading.get("num_hidden_layers")
    rate: float = reading.get("drop_path_rate", default=0.1) * reading.layer / max(layers - 1, 1)
    return rate


#: ViT.
VIT: Row = {
    "kind": "images",
    "prefix": "vit.",
    "patches": "embeddings.patch_embeddings.projection",
    "before": ("embeddings.cls_token",),
    "mask_token": "embeddings.mask_token",
    "positions": "embeddings.position_embeddings",
    "layers": "layers.{}",
    "attention": tuple(f"attention.{name}_proj" for name in "qkvo"),
    "norm": "layer",
    "eps": Key("layer_norm_eps", default=1e-12),
    "norms": {"attention_in": "layernorm_before", "mlp_in": "layernorm_after"},
    "mlp": ("mlp.fc1", "mlp.fc2"),
    "mlp_width": Key("intermediate_size"),
    "activation": _ACT,
    "final": "layernorm",
    "bare": True,
    "dropout": _DROPOUT,
    "pooled": "first",
    "pooler": "pooler.dense",
    "pooler_activation": Key("pooler_act", default="tanh"),
    "classes": (("classifier",),),
}


def _without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if not name.startswith(names)}


def _dino_width(reading: Reading) -> int:
    width = int(reading.get("hidden_size") * reading.get("mlp_ratio", default=4))
    gated = reading.get("use_swiglu_ffn", default=False)
    return (int(width * 2 / 3) + 7) // 8 * 8 if gated else width


_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

#: DINOv2.
_DINO2: Row = {
    **_without(VIT, "pooler"),
    "prefix": "dinov2.",
    "layers": "encoder.layer.{}",
    "mask_axes": 2,
    "masked": Key("use_mask_token", default=True),
    "eps": Key("layer_norm_eps", default=1e-6),
    "norms": {"attention_in": "norm1", "mlp_in": "norm2"},
    "mlp": When(Key("use_swiglu_ffn", default=False), _GATED, VIT["mlp"]),
    "mlp_width": Merged(_dino_width),
    "activation": When(Key("use_swiglu_ffn", default=False), "silu", _ACT),
    "scales": ("layer_scale1.lambda1", "layer_scale2.lambda1"),
    "dropout": 0.0,
    "table_dropout": _DROPOUT,
    "drop_path": Key("drop_path_rate", default=0.0),
    "classes_read": "both",
}


def _beit_held(reading: Reading) -> dict[str, str]:
    """The table of each layer."""
    if reading.get("use_shared_relative_position_bias", default=False):
        if reading.get("use_relative_position_bias", default=False):
            raise ValueError(f"{reading.where}: a table for each layer and one for all are not known together")
        return {}
    return (
        {"relative_position_bias.table": f"relative_position_bias.{_TABLE}"}
        if reading.get("use_relative_position_bias", default=False)
        else {}
    )


_MEAN = Key("use_mean_pooling", default=True)
_SHARED = Key("use_shared_relative_position_bias", default=False)
_SCALED = Merged(lambda reading: reading.get("layer_scale_init_value", default=0.1) > 0)


def _place(reading: Reading) -> tuple[int, int]:
    """The stage of a layer, and which block of the stage it is."""
    stage = stage_of(reading)
    return stage, reading.layer - sum(reading.get("depths")[:stage])


def _window_layer(reading: Reading) -> str:
    return "encoder.layers.{}.blocks.{}".format(*_place(reading))


def _shift(reading: Reading) -> int:
    return int(reading.get("window_size", default=7) // 2 if _place(reading)[1] % 2 else 0)


def _shift2(reading: Reading) -> int:
    """Swin v2 knows by the images of training which grids are one window, and does not shift those."""
    stage, window = _place(reading)[0], int(reading.get("window_size", default=7))
    image, patch = pair(reading.get("image_size", default=224)), pair(reading.get("patch_size", default=4))
    return _shift(reading) if (image[0] // patch[0]) >> stage > window else 0


def _unplaced(reading: Reading) -> None:
    """Swin v2 with learned positions: its table has a row too many for its own code.

    Raises:
        ValueError: the configuration asks for them.
    """
    if reading.get("use_absolute_embeddings", default=False):
        raise ValueError(f"{reading.where}: use_absolute_embeddings of 'swinv2' is not known")


#: Swin.
_SWIN: Row = {
    **_without(VIT, "before", "final", "bare", "pooler"),
    "kind": "windows",
    "prefix": "swin.",
    "padded": True,
    "patch_norm": "embeddings.norm",
    "positions": When(Key("use_absolute_embeddings", default=False), "embeddings.position_embeddings"),
    "layers": Merged(_window_layer),
    "held": {"relative_position_bias.table": f"attention.relative_position_bias.{_TABLE}"},
    "eps": Key("layer_norm_eps", default=1e-5),
    "mlp_width": Merged(
        lambda reading: int(reading.get("mlp_ratio", default=4.0) * (reading.get("embed_dim") << _place(reading)[0]))
    ),
    "drop_path": (Merged(_drop_path), 0.0),
    "shift": Merged(_shift),
    "grows": True,
    "merge": "encoder.layers.{}.downsample",
    "stages_final": "layernorm",
    "pooled": "mean",
    "classes_read": "pooled",
}


def _moves(reading: Reading) -> str | None:
    """DINOv3's options that draw where patches are."""
    options = ("pos_embed_shift", None), ("pos_embed_jitter", None), ("pos_embed_rescale", 2.0)
    said = {name: reading.get(name, default=None) if reading.has(name) else default for name, default in options}
    on = [f"{name}={value}" for name, value in said.items() if value is not None]
    return f"{', '.join(on)} moves patches" if on else None


#: What CLIP's and SigLIP's towers have in common.
_TOWER: Row = {
    "layers": "encoder.layers.{}",
    "attention": tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
    "norm": "layer",
    "eps": Key("layer_norm_eps", default=1e-5),
    "norms": {"attention_in": "layer_norm1", "mlp_in": "layer_norm2"},
    "mlp": ("mlp.fc1", "mlp.fc2"),
    "mlp_width": Key("intermediate_size"),
    "activation": Key("hidden_act", default="quick_gelu"),
    "bare": True,
    "dropout": 0.0,
}
_CLIP_TEXT: Row = {
    **_TOWER,
    "prefix": "text_model.",
    "table": "embeddings.token_embedding",
    "positions": "embeddings.position_embedding",
    "position_rows": Key("max_position_embeddings", default=77),
    "final": "final_layer_norm",
    "pooled": "end",
    "embeds": "text_projection",
    "embeds_width": Key("projection_dim", default=512),
}
_CLIP_VISION: Row = {
    **_TOWER,
    "kind": "images",
    "prefix": "vision_model.",
    "patches": "embeddings.patch_embedding",
    "patch_bias": False,
    "before": ("embeddings.class_embedding",),
    "token_axes": 1,
    "positions": "embeddings.position_embedding",
    "position_table": True,
    "front_norm": "pre_layrnorm",
    "pooled": "first",
    "pooler_norm": "post_layernorm",
    "classes": (("classifier",),),
    "classes_read": "mean",
    "embeds": "visual_projection",
    "embeds_width": Key("projection_dim", default=512),
}
_SIGLIP: Row = {
    "eps": Key("layer_norm_eps", default=1e-6),
    "activation": Key("hidden_act", default="gelu_pytorch_tanh"),
}
_SIGLIP_TEXT: Row = {
    **_without(_CLIP_TEXT, "embeds"),
    **_SIGLIP,
    "position_rows": Key("max_position_embeddings", default=64),
    "pooled": "last",
    "pooler": "head",
}
_SIGLIP_VISION: Row = {
    **_without(_CLIP_VISION, "embeds", "patch_bias", "before", "token_axes", "front_norm", "pooler_norm"),
    **_SIGLIP,
    "final": "post_layernorm",
    "pooled": When(Key("vision_use_head", default=True), "probe"),
    "pooler": "head",
}


def _sizes(kind: str, width: int, heads: int, activation: str, **more: object) -> dict[str, object]:
    """What the class of a tower's configuration says by itself."""
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 12,
        "num_attention_heads": heads,
        "hidden_act": activation,
        **more,
    }


_IDS = {"eos_token_id": 49407}
_TEXT = _sizes("clip_text_model", 512, 8, "quick_gelu", vocab_size=49408, max_position_embeddings=77, **_IDS)
_VISION = _sizes("clip_vision_model", 768, 12, "quick_gelu", patch_size=32)
_GELU = "gelu_pytorch_tanh"
_TEXT2 = _sizes("siglip_text_model", 768, 12, _GELU, vocab_size=32000, max_position_embeddings=64, **_IDS)
_VISION2 = _sizes("siglip_vision_model", 768, 12, _GELU, patch_size=16)

IMAGES: dict[str, Row] = {
    "vit": VIT,
    "deit": {
        **VIT,
        "prefix": "deit.",
        "before": ("embeddings.cls_token", "embeddings.distillation_token"),
        "classes": (("classifier",), ("cls_classifier", "distillation_classifier")),
    },
    "beit": {
        **_without(VIT, "pooler"),
        "prefix": "beit.",
        "masked": Key("use_mask_token", default=False),
        "positions": When(Key("use_absolute_position_embeddings", default=False), "embeddings.position_embeddings"),
        "attention_bias": (True, False, True, True),
        "held": Merged(_beit_held),
        "shared": When(
            _SHARED, {"relative_position_bias.table": f"shared_position_bias.{_TABLE.rpartition('.')[2]}"}, {}
        ),
        "scales": When(_SCALED, ("lambda_1", "lambda_2")),
        "final": When(_MEAN, None, "layernorm"),
        "drop_path": Merged(_drop_path),
        "fixed": Merged(has_table),
        "pooled": When(_MEAN, "mean", "first"),
        "pooler_norm": When(_MEAN, "pooler.layernorm"),
        "codes": "lm_head",
        "codes_norm": "layernorm",
        "classes_read": "pooled",
    },
    "dinov2": _DINO2,
    "dinov2_with_registers": {
        **_DINO2,
        "prefix": "dinov2_with_registers.",
        "masked": True,
        "registers": "embeddings.register_tokens",
        "register_rows": Key("num_register_tokens", default=4),
        "smooth": True,
    },
    "dinov3_vit": {
        **_without(_DINO2, "positions", "classes"),
        "untrained": Merged(_moves),
        "prefix": "",
        "patches": "embeddings.patch_embeddings",
        "mask_axes": 3,
        "masked": True,
        "registers": "embeddings.register_tokens",
        "register_rows": Key("num_register_tokens", default=0),
        "layers": "model.layer.{}",
        "attention_bias": (
            Key("query_bias", default=True),
            Key("key_bias", default=False),
            Key("value_bias", default=True),
            Key("proj_bias", default=True),
        ),
        "eps": Key("layer_norm_eps", default=1e-5),
        "mlp": When(Key("use_gated_mlp", default=False), _GATED, ("mlp.up_proj", "mlp.down_proj")),
        "mlp_width": Key("intermediate_size"),
        "mlp_bias": Key("mlp_bias", default=True),
        "activation": _ACT,
        "final": "norm",
        "axial": True,
    },
    "vit_mae": {
        **_without(VIT, "pooler", "pooled", "classes"),
        "kind": "autoencoder",
        "frozen": True,
        "decoder": {"prefix": "decoder.", "layers": "decoder_layers.{}", "final": "decoder_norm"},
    },
    "swin": _SWIN,
    "swinv2": {
        **_SWIN,
        "prefix": "swinv2.",
        "dropout": (Key("attention_probs_dropout_prob", default=0.0), _DROPOUT),
        "table_dropout": _DROPOUT,
        "drop_path": Merged(_drop_path),
        "positions": Merged(_unplaced),
        "attention": (*(f"attention.self.{name}" for name in ("query", "key", "value")), "attention.output.dense"),
        "attention_bias": (Key("qkv_bias", default=True), False, Key("qkv_bias", default=True), True),
        "held": {
            "logit_scale": "attention.self.logit_scale",
            "cpb_mlp.0.kernel": "attention.self.continuous_position_bias_mlp.0.weight",
            "cpb_mlp.0.bias": "attention.self.continuous_position_bias_mlp.0.bias",
            "cpb_mlp.2.kernel": "attention.self.continuous_position_bias_mlp.2.weight",
        },
        "norms": {"attention_out": "layernorm_before", "mlp_out": "layernorm_after"},
        "mlp": ("intermediate.dense", "output.dense"),
        "shift": Merged(_shift2),
        "grows": False,
        "merge_early": False,
    },
    "clip_text_model": _CLIP_TEXT,
    "clip_vision_model": _CLIP_VISION,
    "clip": {
        "kind": "towers",
        "text": (_CLIP_TEXT, Builder, _TEXT),
        "vision": (_CLIP_VISION, ImageBuilder, _VISION),
        "scale": {"name": "logit_scale", "shape": ()},
    },
    "siglip_text_model": _SIGLIP_TEXT,
    "siglip_vision_model": _SIGLIP_VISION,
    "siglip": {
        "kind": "towers",
        "text": (_SIGLIP_TEXT, Builder, _TEXT2),
        "vision": (_SIGLIP_VISION, ImageBuilder, _VISION2),
        "scale": {"name": "logit_scale", "shape": (1,), "bias": "logit_bias"},
    },
}
