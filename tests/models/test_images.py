"""Models of images, and of images beside texts: what the rows alone do not show."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from maskattn import models, standards
from maskattn.models.images import cubic
from maskattn.models.leaves import Conv
from maskattn.parity.models.peer import Peer
from maskattn.parity.models.tiny.images import IMAGES

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.hurried

VIT = {**IMAGES["vit"].config, "model_type": "vit"}
BEIT = {**IMAGES["beit"].config, "model_type": "beit", "drop_path_rate": 0.5}
SWIN = {**IMAGES["swin"].config, "model_type": "swin"}
MAE = {**IMAGES["vit_mae"].config, "model_type": "vit_mae"}
CLIP = {**IMAGES["clip"].config, "model_type": "clip"}
IMAGE = np.random.default_rng(0).standard_normal((2, 3, 28, 28), np.float32)
TEXTS = np.random.default_rng(1).integers(7, 90, (3, 14))


def of_torch(config: dict[str, Any]) -> Any:
    from maskattn_torch.models import Model

    return Model(models.describe(config))


def of_jax(config: dict[str, Any]) -> Any:
    from maskattn_jax.models import Model

    return Model(models.describe(config))


@pytest.mark.parametrize("name", IMAGES)
def test_all_tensors_are_held_and_files_say_what_configurations_say(name: str) -> None:
    peer = Peer.of(name, IMAGES[name])
    table = models.describe(peer.config, peer.tensors)
    held = {f"{path}.{one}".rstrip("."): t.shape for path, leaf in table.leaves() for one, t in leaf.tensors().items()}
    assert held == {name: x.shape for name, x in peer.tensors.items()}
    assert models.describe(json.loads(peer.config.to_json_string()), peer.tensors) == table


@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        (VIT, {"images": IMAGE[:, :2]}, r"images must be \[B, 3, height, width\], got \[2, 2, 28, 28\]"),
        (VIT, {"images": IMAGE[..., :5]}, r"at least one patch \[7, 7\], got \[2, 3, 28, 5\]"),
        (VIT, {"tokens": TEXTS}, "images must be .*, got None"),
        (BEIT, {"images": IMAGE[..., :21]}, r"images must be \[B, 3, 28, 28\], got \[2, 3, 28, 21\]"),
        (SWIN, {"images": IMAGE[..., :7]}, "at least a window of 4 patches high and wide, got 7 and 2"),
        (MAE, {"images": IMAGE}, r"noise must be given, \[2, 16\], or a dropout_key"),
        (MAE, {"images": IMAGE, "noise": IMAGE[:, 0, 0]}, r"noise must be \[B, patches\] = \[2, 16\], got \[2, 28\]"),
        (CLIP, {}, "tokens or images must be given"),
    ],
)
def test_inputs_that_do_not_fit_are_named(config: dict[str, Any], given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        of_torch(config).eval()(**{name: torch.tensor(x) for name, x in given.items()})


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="vit model attends to later tokens"):
        of_torch(VIT).generate(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="use_absolute_embeddings of 'swinv2'"):
        models.describe({**SWIN, "model_type": "swinv2", "use_absolute_embeddings": True})
    with pytest.raises(ValueError, match="a table for each layer and one for all"):
        models.describe({**BEIT, "use_shared_relative_position_bias": True})
    with pytest.raises(ValueError, match="mask_ratio must be a share from 0 to 1, got 1.2"):
        models.describe({**MAE, "mask_ratio": 1.2})


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("old", "new"), [(4, 9), (9, 4), (5, 5), (3, 1), (1, 6)])
def test_interpolation_is_pytorchs(old: int, new: int, smooth: bool) -> None:
    x = torch.eye(old)[None, :, :, None].repeat(1, 1, 1, 3)
    size = {"size": (new, 3), "mode": "bicubic", "antialias": smooth}
    theirs = torch.nn.functional.interpolate(x, **size)[0, :, :, 0].T
    assert np.abs(cubic(old, new, smooth) - theirs.numpy()).max() <= standards.value("tier4.float32")


def test_patches_are_a_product() -> None:
    leaf = Conv("patches", 3, 5, (7, 4), (7, 4))
    weight = torch.randn(5, 3, 7, 4)
    image = torch.tensor(IMAGE[..., :27])
    product = leaf.pieces(image.permute(0, 2, 3, 1)) @ weight.permute(2, 3, 1, 0).reshape(-1, 5)
    theirs = torch.nn.functional.conv2d(image, weight, stride=(7, 4)).permute(0, 2, 3, 1)
    assert leaf.is_product
    assert not Conv("patches", 3, 5, (7, 4), (4, 4)).is_product
    assert not Conv("patches", 3, 5, (7, 4), (7, 4), padding=1).is_product
    assert product.shape == theirs.shape
    assert (product - theirs).abs().max() <= standards.value("tier4.float32") * theirs.abs().max()


def test_a_tower_alone_gives_what_it_gives_beside_the_other() -> None:
    model = of_torch(CLIP).eval()
    with torch.no_grad():
        both = model(torch.tensor(TEXTS), images=torch.tensor(IMAGE))
        text, image = model(torch.tensor(TEXTS)), model(images=torch.tensor(IMAGE))
    assert both.logits.shape == (2, 3)
    assert text.logits is None
    assert torch.equal(text.text_embeds, both.texts.text_embeds)
    assert torch.equal(image.image_embeds, both.images.image_embeds)
    cosines = torch.nn.functional.normalize(image.image_embeds) @ torch.nn.functional.normalize(text.text_embeds).T
    logits = cosines * model.logit_scale.exp()
    assert (logits - both.logits).abs().max() <= standards.value("tier4.float32") * logits.abs().max()


def test_images_take_the_dtype_of_the_model() -> None:
    assert of_torch(VIT).to(torch.bfloat16).eval()(images=torch.tensor(IMAGE)).logits.dtype == torch.bfloat16


def test_training_draws_the_same_in_both_twins() -> None:
    """Which patches are seen, and which branches are dropped."""
    key, image = 7, IMAGE[:1]
    ours, other = of_torch(MAE), of_jax(MAE)
    found = ours(images=torch.tensor(image), dropout_key=key)
    again = other(images=image, dropout_key=key)
    assert np.array_equal(found.masked.numpy(), again.masked)
    assert found.masked.sum() == 16 - int(16 * (1 - MAE["mask_ratio"]))
    assert close(found.logits, again.logits)
    ours, other = of_torch(BEIT), of_jax(BEIT)
    found, again = ours(images=torch.tensor(image), dropout_key=key), other(images=image, dropout_key=key)
    assert close(found.logits, again.logits)
    assert not close(found.logits, ours.eval()(images=torch.tensor(image)).logits.detach().numpy())


def close(x: Any, y: Any) -> bool:
    x = x.detach().numpy()
    return bool(np.abs(x - np.asarray(y)).max() <= standards.value("tier4.float32") * np.abs(x).max())
