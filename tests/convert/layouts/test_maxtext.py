"""MaxText's three ways of storing attention, against its sources: what is folded in, and which pairs are turned."""

import ml_dtypes
import numpy as np
import pytest

from maskattn import convert_tensors, optimizers, standards
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.optimizers import OptimizerState
from tests.convert.layouts.layout_cases import normal, tensors_for
from tests.convert.layouts.peer_cases import attend, converted, heads, inputs_of
from tests.twin import same_tensors


def rotated(x, interleaved):
    """Rotary embedding of [B, L, H, D]: pairs as MaxText's LLaMARotaryEmbedding takes them, or as RotaryEmbedding."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None, None] / 100.0 ** (np.arange(half) / half)
    one, two = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = one * np.cos(angles) - two * np.sin(angles), two * np.cos(angles) + one * np.sin(angles)
    return np.stack(turned, -1).reshape(x.shape) if interleaved else np.concatenate(turned, -1)


ROTARY = AttentionConfig(30, 6, num_kv_heads=2, head_dim=4)
MAXTEXT = {"maxtext": (False, 0.5), "maxtext-scaled": (False, 1.0), "maxtext-llama": (True, 1.0)}


@pytest.mark.parametrize("layout", MAXTEXT)
def test_maxtext(layout):
    """Against the canonical form: half-split pairs, scaled when it runs. D = 4, so that folding is exact."""
    interleaved, scale = MAXTEXT[layout]
    canonical, tensors = converted(layout, ROTARY)
    x = inputs_of(ROTARY)[0].astype(np.float64)

    def run(weights, names, interleaved, scale):
        kernel, bias = (
            lambda role, part=part: weights[names.format(role, part)].astype(np.float64) for part in ("kernel", "bias")
        )
        q, k, v = (np.einsum("ble,ehd->blhd", x, kernel(r)) + bias(r) for r in ("query", "key", "value"))
        out = attend(rotated(q, interleaved), rotated(k, interleaved), v, scale)
        return np.einsum("blhd,hdo->blo", heads(out, 6), kernel("out")) + bias("out")

    right = run(canonical, "{}.{}", False, 0.5)
    names = "{}/{}"
    assert (
        np.abs(run(tensors, names, interleaved, scale) - right).max()
        <= standards.value("convert.folded") * standards.eps("float64") * np.abs(right).max()
    )
    for other in set(MAXTEXT.values()) - {MAXTEXT[layout]}:
        assert np.abs(run(tensors, names, *other) - right).max() > 0.01 * np.abs(right).max()


def test_maxtext_folds_as_its_converter_does():
    """strategies/llama.py, saving_to_hf False: half-split to interleaved pairs, then one product in float32."""
    bits = np.random.default_rng(3)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        config = AttentionConfig(32, 3, num_kv_heads=1, head_dim=128, qkv_bias=False, out_bias=False)
        canonical = {
            n: bits.standard_normal(s).astype(dtype) for n, s in layouts.get("canonical").shapes(config).items()
        }
        there = convert_tensors(canonical, source="canonical", target="maxtext-llama", config=config)
        first, second = np.split(canonical["query.kernel"], 2, axis=-1)
        pairs = np.stack([first, second], axis=-1).reshape(canonical["query.kernel"].shape)
        right = (pairs.astype(np.float32) * np.float32(1 / np.sqrt(128))).astype(dtype)
        assert there["query/kernel"].tobytes() == right.tobytes()
        back = convert_tensors(there, source="maxtext-llama", target="canonical", config=config)
        changed = float((back["query.kernel"] != canonical["query.kernel"]).mean())
        assert 0.1 < changed < 0.5  # which is why the step says so beforehand; nothing else changes
        same_tensors(
            {n: back[n] for n in back if n != "query.kernel"}, {n: canonical[n] for n in back if n != "query.kernel"}
        )


def test_what_maxtext_cannot_undo_is_said_before():
    for head_dim, exact in ((128, False), (64, True), (16, True), (80, False)):
        config = AttentionConfig(64, 2, head_dim=head_dim)
        (step,) = layouts.steps("hf-llama", "maxtext-llama", config)
        assert step.name == "fold the scale in" and step.exact is exact
        assert ("cannot be undone exactly" in str(step)) is not exact
        (step,) = layouts.steps("maxtext-scaled", "hf-llama", config)
        assert step.name == "unfold the scale" and step.exact is exact
    assert layouts.steps("maxtext", "hf-llama", config) == ()
    huge = {n: np.full(s, 6e4, np.float16) for n, s in layouts.get("maxtext-scaled").shapes(ROTARY).items()}
    with pytest.raises(ValueError, match=r"query\.kernel: times 2\.0 it overflows float16"):
        convert_tensors(huge, source="maxtext-scaled", target="canonical", config=ROTARY)
    state = OptimizerState("sgd", None, {"trace": normal("hf-llama", ROTARY)})
    with pytest.raises(ValueError, match="moments from hf-llama to maxtext-llama: .*fold the scale in"):
        optimizers.convert(state, source="hf-llama", target="maxtext-llama", config=ROTARY)


def test_names_alone_do_not_tell_what_maxtext_computes():
    tensors = tensors_for("maxtext", ROTARY, prefix="params/decoder/layers_0/self_attention/")
    found = layouts.detect(tensors)
    assert {candidate.layout for candidate in found} == {"flax-linen", "maxtext", "maxtext-scaled", "maxtext-llama"}
    with pytest.raises(ValueError, match="4 layouts fit these tensors: name the source layout"):
        _ = found.layout
    for at in ("params/blocks_0/self_attention/", "params/decoder/layers_0/attention/", ""):
        assert layouts.detect(tensors_for("maxtext", ROTARY, prefix=at)).layout == "flax-linen"
    normed = tensors_for("maxtext", ROTARY, prefix="params/decoder/layers_0/self_attention/", every=True)
    assert layouts.detect(normed).layout == "maxtext"
