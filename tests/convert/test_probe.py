import numpy as np
import pytest

from maskattn import convert_tensors
from maskattn.config import AttentionConfig
from maskattn.convert import layouts, probe
from tests.convert.layouts.float64_layer import layer
from tests.convert.layouts.layout_cases import normal, tensors_for
from tests.frameworks import optional, torch

BloomConfig = optional("transformers.BloomConfig")
BloomAttention = optional("transformers.models.bloom.modeling_bloom.BloomAttention")

CONFIG = AttentionConfig(35, 5)
X = np.random.default_rng(1).standard_normal((2, 11, 35)).astype(np.float32)
CAUSAL = np.tril(np.ones((11, 11), bool))[None, None]
FUSED = ("hf-neox", "megatron-v0")


def weights(layout, config=CONFIG, dtype=np.float32):
    return {name: (array / 6).astype(dtype) for name, array in normal(layout, config).items()}


def reference(tensors, layout, config=CONFIG):
    canonical = convert_tensors(tensors, source=layout, target="canonical", config=config)
    return layer(X, canonical, np.broadcast_to(CAUSAL, (2, 1, 11, 11))).astype(np.float32)


@pytest.mark.parametrize("right", FUSED)
def test_a_probe_settles_what_shapes_leave_open(right):
    bare = weights(right)
    tensors = {f"h.0.{name}": array for name, array in bare.items()}
    found = layouts.detect(tensors, CONFIG)
    assert {candidate.layout for candidate in found} == set(FUSED)
    inputs = {"query": X, "mask": CAUSAL}
    settled = probe(tensors, FUSED, CONFIG, inputs=inputs, output=reference(bare, right))
    assert settled.layout == right and "of its limit" in str(settled[0])
    assert [candidate.layout for candidate in settled.rejected] == [name for name in FUSED if name != right]


def test_bloom_itself_settles_it():
    module = BloomAttention(BloomConfig(hidden_size=35, n_head=5), layer_idx=0).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 6)
        x = torch.from_numpy(X)
        slopes = torch.arange(1, 6).float()[:, None, None] * torch.arange(11).float() / 7
        mask = torch.from_numpy(np.where(CAUSAL, np.float32(0), np.finfo(np.float32).min))
        output = module(x, torch.zeros_like(x), slopes.repeat(2, 1, 1), mask)[0]
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    inputs = {"query": X, "mask": CAUSAL, "bias": slopes.numpy()[None]}
    assert probe(tensors, FUSED, CONFIG, inputs=inputs, output=output.numpy()).layout == "hf-neox"


def test_none_or_several_that_pass_are_refused():
    tensors = weights("hf-neox")
    inputs = {"query": X, "mask": CAUSAL}
    with pytest.raises(ValueError, match=r"(?s)no layout fits.*hf-neox.*of its limit"):
        wrong = reference(weights("hf-neox"), "hf-neox") + np.float32(1e-3)
        _ = probe(tensors, FUSED, CONFIG, inputs=inputs, output=wrong).layout
    zeros = {name: np.zeros_like(array) for name, array in tensors.items()}
    with pytest.raises(ValueError, match="2 layouts fit these tensors"):
        _ = probe(zeros, FUSED, CONFIG, inputs=inputs, output=np.zeros_like(X)).layout
    with pytest.raises(ValueError, match="no layout fits"):
        output = np.full_like(X, np.nan)
        _ = probe(tensors, FUSED, CONFIG, inputs=inputs, output=output).layout


def test_cross_attention_with_a_scale_of_its_own():
    config = AttentionConfig(35, 5, kdim=11, vdim=13, scale=0.25)
    tensors = weights("timm", config)
    draw = np.random.default_rng(2)
    key, value = (draw.standard_normal((2, 6, width)).astype(np.float32) for width in (11, 13))
    w = {n: a.astype(np.float64) for n, a in tensors.items()}
    q, k, v = (
        (x @ w[f"{n}.weight"].T + w[f"{n}.bias"]).reshape(2, -1, 5, 7).swapaxes(1, 2)
        for n, x in (("q_proj", X), ("k_proj", key), ("v_proj", value))
    )
    scores = np.exp(q @ k.swapaxes(-1, -2) * 0.25)
    heads = scores / scores.sum(axis=-1, keepdims=True) @ v
    output = heads.swapaxes(1, 2).reshape(2, 11, 35) @ w["proj.weight"].T + w["proj.bias"]
    inputs = {"query": X, "key": key, "value": value}
    assert probe(tensors, ["timm"], config, inputs=inputs, output=output).layout == "maskattn-torch"


def test_bad_arguments_and_layers_it_cannot_compute():
    tensors = weights("hf-neox")
    with pytest.raises(ValueError) as caught:
        probe(tensors, FUSED, CONFIG, inputs={"key": X[0], "mask": np.ones(3), "x": X}, output=X)
    for part in ("query .* is missing", "unknown name 'x'", "key: expected shape", "mask: expected bool"):
        assert caught.match(part)
    with pytest.raises(ValueError, match="unknown layout"):
        probe(tensors, ["neo"], CONFIG, inputs={"query": X}, output=X)
    with pytest.raises(TypeError, match="inputs must be a mapping"):
        probe(tensors, FUSED, CONFIG, inputs=X, output=X)
    with pytest.raises(ValueError, match="output: expected shape"):
        _ = probe(tensors, FUSED, CONFIG, inputs={"query": X}, output=X[:, :3]).layout
    normed = tensors_for("timm", CONFIG, every=True)
    with pytest.raises(ValueError, match="not part of plain attention"):
        _ = probe(normed, ["timm"], CONFIG, inputs={"query": X}, output=X).layout
    two = {f"{i}.{name}": array for i in range(2) for name, array in tensors.items()}
    with pytest.raises(ValueError, match="expected the tensors of one layer, found 2"):
        _ = probe(two, FUSED, CONFIG, inputs={"query": X}, output=X).layout
