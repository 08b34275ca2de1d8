"""Tiny models of images, and of images beside texts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskattn.parity.models.tiny._tiny import SIZES, Tiny

_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 44,
    "image_size": 28,
    "patch_size": 7,
    "num_channels": 3,
}
_DINO = {key: value for key, value in _VIT.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
_BEIT = {**_VIT, "use_relative_position_bias": True}
_SWIN = {
    "image_size": 44,
    "patch_size": 2,
    "embed_dim": 12,
    "depths": [2, 1, 2],
    "num_heads": [2, 3, 4],
    "window_size": 4,
    "mlp_ratio": 2.0,
}
_DINO3 = {**_VIT, "num_register_tokens": 3, "num_attention_heads": 3}
_MAE = {
    **_VIT,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 20,
    "mask_ratio": 0.6,
}
_TEXT = {**SIZES, "num_attention_heads": 4, "num_hidden_layers": 3, "projection_dim": 20, "eos_token_id": 80}
_VISION = {**_VIT, "projection_dim": 20}
_CLIP = {"text_config": _TEXT, "vision_config": {**_VISION, "hidden_size": 36}, "projection_dim": 20}
_TEXT2 = {**SIZES, "num_attention_heads": 4, "num_hidden_layers": 3, "projection_size": 36}
_SIGLIP = {"text_config": _TEXT2, "vision_config": {**_VIT, "hidden_size": 36}}

_IMAGE = (3, 28, 28)
#: Of another size than those of training, in both directions.
_OTHER = (3, 23, 40)
_ASKED = {"interpolate_pos_encoding": True}
_NOISE = np.random.default_rng(3).random((2, 16), np.float32)
#: Texts with their end, 80, twice, and larger ids.
_IDS = np.random.default_rng(4).integers(7, 90, (2, 14))
_IDS[[0, 0, 1, 1], [8, 10, 5, 7]] = 80


def _of(model: str, config: Mapping[str, object], image: tuple[int, ...] = _IMAGE, **options: object) -> Tiny:
    return Tiny(model, config, "images", (), image=image, options=options)


IMAGES: dict[str, Tiny] = {
    "vit": _of("ViTForImageClassification", {**_VIT, "num_labels": 5}),
    "vit+pooled": _of("ViTModel", {**_VIT, "pooler_output_size": 20, "qkv_bias": False}),
    "vit+size": _of("ViTModel", _VIT, _OTHER, **_ASKED),
    "deit": _of("DeiTForImageClassification", _VIT),
    "deit+teacher": _of("DeiTForImageClassificationWithTeacher", {**_VIT, "num_labels": 5}),
    "deit+pooled": _of("DeiTModel", _VIT, _OTHER, **_ASKED),
    "beit": _of("BeitForImageClassification", {**_BEIT, "num_labels": 5}),
    "beit+pooled": _of("BeitModel", {**_BEIT, "use_mean_pooling": False, "use_mask_token": True}),
    "beit+shared": _of("BeitModel", {**_VIT, "use_shared_relative_position_bias": True, "layer_scale_init_value": 0.0}),
    "beit+codes": _of("BeitForMaskedImageModeling", {**_BEIT, "use_mask_token": True, "vocab_size": 11}),
    "beit+places": _of("BeitModel", {**_VIT, "use_absolute_position_embeddings": True}, _OTHER),
    "swin": _of("SwinForImageClassification", {**_SWIN, "num_labels": 5}, (3, 44, 44)),
    "swin+size": _of("SwinModel", {**_SWIN, "use_absolute_embeddings": True}, (3, 32, 46), **_ASKED),
    "swinv2": _of("Swinv2ForImageClassification", {**_SWIN, "num_labels": 5}, (3, 44, 44)),
    "swinv2+size": _of("Swinv2Model", {**_SWIN, "pretrained_window_sizes": [6, 6, 3]}, (3, 41, 54)),
    "dinov2": _of("Dinov2ForImageClassification", {**_DINO, "num_labels": 5}),
    "dinov2+gated": _of("Dinov2Model", {**_DINO, "use_swiglu_ffn": True}, _OTHER),
    "dinov2_with_registers": _of("Dinov2WithRegistersForImageClassification", {**_DINO, "num_register_tokens": 3}),
    "dinov2_with_registers+size": _of("Dinov2WithRegistersModel", {**_DINO, "num_register_tokens": 3}, _OTHER),
    "dinov3_vit": _of("DINOv3ViTModel", _DINO3, _OTHER),
    "dinov3_vit+gated": _of("DINOv3ViTModel", {**_DINO3, "use_gated_mlp": True, "mlp_bias": False, "key_bias": True}),
    "vit_mae": _of("ViTMAEForPreTraining", _MAE, noise=_NOISE),
    "vit_mae+encoder": _of("ViTMAEModel", _MAE, noise=_NOISE),
    "vit_mae+size": _of("ViTMAEForPreTraining", _MAE, (3, 28, 35), noise=np.resize(_NOISE, (2, 20)), **_ASKED),
    "clip": Tiny("CLIPModel", _CLIP, "pairs", image=_IMAGE, options={"input_ids": _IDS}),
    "clip+classes": _of("CLIPForImageClassification", {**_CLIP, "num_labels": 5}),
    "clip_text_model": Tiny("CLIPTextModel", {**_TEXT, "eos_token_id": 2}),
    "clip_text_model+embeds": Tiny("CLIPTextModelWithProjection", _TEXT, options={"input_ids": _IDS}),
    "clip_vision_model": _of("CLIPVisionModel", _VISION, _OTHER, **_ASKED),
    "clip_vision_model+embeds": _of("CLIPVisionModelWithProjection", _VISION),
    "siglip": Tiny("SiglipModel", _SIGLIP, "pairs", image=_IMAGE),
    "siglip+classes": _of("SiglipForImageClassification", {**_SIGLIP, "num_labels": 5}),
    "siglip_text_model": Tiny("SiglipTextModel", _TEXT2),
    "siglip_vision_model": _of("SiglipVisionModel", _VIT, _OTHER, **_ASKED),
    "siglip_vision_model+plain": _of("SiglipVisionModel", {**_VIT, "vision_use_head": False}),
}
