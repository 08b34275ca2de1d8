"""Rows of models of images, and of the texts beside them."""

from __future__ import annotations

from maskattn._hf_config import Reading, Value
from maskattn.layer.from_hf._specs import Key, Made, Merged, Row, When
from maskattn.layer.parts import Cosine
from maskattn.layer.position_bias import ContinuousTable, WindowTable
from maskattn.layer.rotary import Rotary

_DROPOUT = Key("attention_probs_dropout_prob", "attention_dropout", default=0.0)

#: ViT and its relatives.
VIT: Row = {
    "embed_dim": Key("hidden_size"),
    "num_heads": Key("num_attention_heads"),
    "qkv_bias": Key("qkv_bias", default=True),
    "dropout_rate": _DROPOUT,
}
_BIASED: Row = {**VIT, "qkv_bias": True}


def _pair(value: Value) -> tuple[int, int]:
    """Height and width of an image or a patch, of which one number may stand for both."""
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else (int(value), int(value))


def _grid(reading: Reading) -> tuple[int, int]:
    """Patches of an image, in height and width."""
    size, patch = _pair(reading.get("image_size", default=224)), _pair(reading.get("patch_size", default=16))
    return size[0] // patch[0], size[1] // patch[1]


def has_table(reading: Reading) -> bool:
    """Whether BEiT has relative positions: a table for each layer, or one for all."""
    names = ("use_relative_position_bias", "use_shared_relative_position_bias")
    return any(reading.get(name, default=False) for name in names)


def _quarters(reading: Reading) -> tuple[int, int]:
    """How many pairs of a head's numbers each axis of an image turns."""
    pairs = reading.get("hidden_size") // reading.get("num_attention_heads") // 4
    return pairs, pairs


def stage_of(reading: Reading) -> int:
    """The stage of a layer, whose number counts through all stages."""
    depths, layer = reading.get("depths"), reading.layer
    for stage, depth in enumerate(depths):
        if layer < depth:
            return stage
        layer -= depth
    raise ValueError(f"{reading.where}: layer must be in [0, {sum(depths)}), got {reading.layer}")


def _shrunk(reading: Reading) -> tuple[int, int]:
    """Swin v2's window: no larger than what a stage has of the image."""
    window, stage = _pair(reading.get("window_size", default=7)), stage_of(reading)
    height, width = (n >> stage for n in _grid(reading))
    return min(window[0], height), min(window[1], width)


def _pretrained(reading: Reading) -> tuple[int, int]:
    return _pair(reading.get("pretrained_window_sizes", default=(0,) * 99)[stage_of(reading)])


_SWIN: Row = {
    "embed_dim": Merged(lambda reading: reading.get("embed_dim") << stage_of(reading)),
    "num_heads": Merged(lambda reading: reading.get("num_heads")[stage_of(reading)]),
    "qkv_bias": Key("qkv_bias", default=True),
    "dropout_rate": _DROPOUT,
}

VISION: dict[str, Row] = {
    "vit": VIT,
    "deit": VIT,
    "vit_mae": VIT,
    "dinov2": VIT,
    "dinov2_with_registers": VIT,
    "dinov3_vit": {
        **VIT,
        "qkv_bias": True,
        "out_bias": Key("proj_bias", default=True),
        # half of a head for rows, half for columns; positions are 2 pi times -1 to 1
        "rotary": Made(Rotary, theta=Key("rope_theta", default=100.0), axes=Merged(_quarters)),
    },
    "beit": {
        **_BIASED,
        "position_bias": When(
            Merged(has_table),
            Made(WindowTable, window=Merged(_grid), first=True),
        ),
    },
    "swin": {
        **_SWIN,
        "position_bias": Made(WindowTable, window=Merged(lambda reading: _pair(reading.get("window_size", default=7)))),
    },
    "swinv2": {
        **_SWIN,
        "cosine": Cosine(),
        "position_bias": Made(ContinuousTable, window=Merged(_shrunk), pretrained=Merged(_pretrained)),
    },
    "clip_text_model": _BIASED,
    "clip_vision_model": _BIASED,
    "siglip_text_model": _BIASED,
    "siglip_vision_model": _BIASED,
}
