"""Models whose names in memory and in files differ, saved by transformers itself."""

import numpy as np
import pytest
import transformers as hf

from maskattn import checkpoints, convert_tensors
from maskattn.config import AttentionConfig
from maskattn.convert import layouts

SIZE = {"hidden_size": 35, "num_attention_heads": 5, "num_hidden_layers": 2, "image_size": 4, "patch_size": 2}
SWIN = {"image_size": 8, "patch_size": 2, "embed_dim": 35, "depths": [2], "num_heads": [5], "window_size": 2}

MODELS = {
    "ViT": (lambda: hf.ViTModel(hf.ViTConfig(**SIZE, intermediate_size=7)), "hf-vit", "hf-llama"),
    "DINOv2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZE, mlp_ratio=1)), "hf-dinov2", "hf-llama"),
    "Swin": (lambda: hf.SwinModel(hf.SwinConfig(**SWIN)), "hf-swin", "hf-swin-memory"),
    "Swin v2": (lambda: hf.Swinv2Model(hf.Swinv2Config(**SWIN)), "hf-swin-v2", "hf-swin-v2"),
}
CONFIG = AttentionConfig(35, 5)


@pytest.mark.parametrize("name", MODELS)
def test_both_dialects_hold_the_same(name, tmp_path):
    build, disk, memory = MODELS[name]
    model = build()
    held = {n: tensor.numpy() for n, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    with checkpoints.open(tmp_path / "model.safetensors") as reader:
        filed = {n: reader[n] for n in reader}
    canonical = []
    for tensors, layout in ((filed, disk), (held, memory)):
        assert layouts.detect(tensors).layout == layout.replace("dinov2", "vit")
        given = {"target": "canonical", "config": CONFIG, "others": "drop"}
        canonical.append(convert_tensors(tensors, source=layout, **given))
        back = convert_tensors(canonical[-1], source="canonical", target=layout, config=CONFIG)
        assert {n: a.tobytes() for n, a in back.items()} == {n: tensors[n].tobytes() for n in back}
        assert len(layouts.get(layout).match(tensors)) == 2
    file, live = ([part[n].tobytes() for n in sorted(part)] for part in canonical)
    assert file == live and len(file) >= 16
    assert np.unique(np.concatenate([a.reshape(-1) for a in canonical[0].values()])).size > 2000
