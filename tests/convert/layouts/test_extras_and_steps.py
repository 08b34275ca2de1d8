"""What layouts hold beside projections: kept, refused by name, recomputed, or a step that is announced."""

import itertools

import numpy as np
import pytest

from maskattn import checkpoints, convert_tensors
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.layouts._buffers import position_index
from maskattn.convert.layouts._extras import EXTRAS, Extra
from maskattn.parity.checkpoint.against import compare
from maskattn.parity.checkpoint.verify import verify_checkpoint
from tests.convert.layouts.layout_cases import normal, tensors_for
from tests.twin import same_tensors

CONFIG = AttentionConfig(35, 5)
EVEN = AttentionConfig(30, 5, qkv_bias=False, out_bias=False)


def converted(tensors, source, target, config=CONFIG):
    return convert_tensors(tensors, source=source, target=target, config=config)


def test_extras_move_with_their_operation():
    swin = tensors_for("hf-swin-v2", CONFIG, every=True)
    canonical = converted(swin, "hf-swin-v2", "canonical")
    mlp = swin["self.continuous_position_bias_mlp.0.weight"]
    assert canonical["cpb_mlp.0.kernel"].tobytes() == mlp.T.tobytes() and mlp.shape == (13, 2)
    assert canonical["logit_scale"].tobytes() == swin["self.logit_scale"].tobytes()
    assert canonical["logit_scale"].shape == (5,)
    same_tensors(
        dict(sorted(converted(canonical, "canonical", "swin-v2").items())),
        dict(sorted(converted(swin, "hf-swin-v2", "swin-v2").items())),
    )
    mha = tensors_for("torch-mha", CONFIG, every=True)
    canonical = converted(mha, "torch-mha", "canonical")
    assert canonical["bias_k"].shape == (5, 7) and canonical["bias_k"].tobytes() == mha["bias_k"].tobytes()
    timm = tensors_for("timm", CONFIG, every=True)
    assert converted(timm, "timm", "canonical")["norm.scale"].tobytes() == timm["norm.weight"].tobytes()
    operations = {e.operation for name in layouts.names() for e in layouts.get(name).extras}
    assert operations == {"raw", "transpose", "reshape"}


def test_the_norms_of_qwen3_become_those_of_flax():
    tensors = tensors_for("hf-qwen3", EVEN, every=True)
    nnx = converted(tensors, "hf-qwen3", "flax-nnx", EVEN)
    assert nnx["query_ln.scale"].tobytes() == tensors["q_norm.weight"].tobytes()
    same_tensors(converted(nnx, "flax-nnx", "hf-qwen3", EVEN), tensors)


def test_every_extra_is_known_to_the_canonical_form():
    for name in layouts.names():
        for extra in layouts.get(name).extras:
            assert (extra.to or extra.axes) in EXTRAS[extra.canonical], (name, extra)
    config = AttentionConfig(60, 6, num_kv_heads=2)
    for extra in layouts.get("canonical").extras:
        assert isinstance(extra, Extra) and extra.operation == "raw"
    per_head = {"query_norm.scale": (6, 10), "key_norm.scale": (2, 10)}
    assert layouts.get("canonical").misfits(per_head, config) == []
    assert "has a place for it in another shape" in layouts.get("hf-qwen3").misfits(per_head, config)[0]


@pytest.mark.parametrize(
    ("source", "target", "names"),
    [
        ("timm", "torch-mha", ["query_norm.scale", "key_norm.bias", "norm.scale"]),
        ("timm", "flax-linen", ["norm.scale", "norm.bias"]),
        ("torch-mha", "hf-bert", ["bias_k", "bias_v"]),
        ("swin", "hf-bert", ["relative_position_bias.table"]),
        ("hf-swin-v2", "hf-bert", ["logit_scale", "cpb_mlp.0.kernel", "cpb_mlp.2.kernel"]),
    ],
)
def test_what_the_target_has_no_place_for_is_refused_by_name(source, target, names):
    tensors = {f"a.{name}": array for name, array in tensors_for(source, CONFIG, every=True).items()}
    with pytest.raises(ValueError) as caught:
        converted(tensors, source, target)
    for name in names:
        assert f"a.{name} [" in str(caught.value)
    assert f"layout {layouts.get(target).name} has no place for it" in str(caught.value)


def test_what_the_target_cannot_do_without_is_missing():
    with pytest.raises(ValueError, match=r"relative_position_bias\.table: layout hf-swin cannot do without it"):
        converted(tensors_for("hf-bert", CONFIG), "hf-bert", "hf-swin")
    tensors = tensors_for("hf-swin", CONFIG)
    del tensors["self.relative_position_bias_table"]
    with pytest.raises(ValueError, match=r"self\.relative_position_bias_table: missing, expected shape \[rows, 5\]"):
        converted(tensors, "hf-swin", "canonical")
    with pytest.raises(ValueError, match=r"expected shape \[rows, 5\], got \[9, 4\]"):
        wrong = tensors | {"self.relative_position_bias_table": np.zeros((9, 4))}
        converted(wrong, "hf-swin", "canonical")


def test_a_zero_key_bias_is_a_step_and_any_other_is_refused():
    bert = normal("hf-bert", CONFIG)
    swin = tensors_for("swin-v2", CONFIG)
    canonical = converted(swin, "swin-v2", "canonical")
    assert canonical["key.bias"].tobytes() == bytes(4 * 35)
    (read,) = layouts.steps("swin-v2", "canonical", CONFIG, swin)
    assert read.name == "zero key bias" and read.exact
    assert layouts.steps("swin-v2", "canonical", AttentionConfig(35, 5, qkv_bias=False)) == ()
    assert [step.name for step in layouts.steps("swin-v2", "hf-swin-v2", CONFIG)] == ["zero key bias"] * 2
    extras = {name: array for name, array in canonical.items() if name.startswith(("logit", "cpb"))}
    given = converted(bert, "hf-bert", "canonical") | extras
    with pytest.raises(ValueError, match=r"key\.bias: layout swin-v2 stores none, and this one is not \+0 everywhere"):
        converted(given, "canonical", "swin-v2")
    with pytest.raises(ValueError, match=r"not \+0 everywhere"):
        converted(given | {"key.bias": np.full((5, 7), -0.0, np.float32)}, "canonical", "swin-v2")
    converted(given | {"key.bias": np.zeros((5, 7), np.float32)}, "canonical", "swin-v2")


def test_the_index_of_swin_is_checked_dropped_and_rebuilt():
    tensors = tensors_for("swin", CONFIG)
    dropped = converted(tensors, "swin", "hf-swin")
    assert not any("index" in name for name in dropped)
    same_tensors(converted(dropped, "hf-swin", "swin"), tensors)
    steps = layouts.steps("swin", "swin", CONFIG, tensors)
    assert [step.name for step in steps] == ["drop relative_position_index", "build relative_position_index"]
    assert all(step.exact for step in steps)
    (old,) = layouts.steps("hf-swin", "canonical", CONFIG, ["self.relative_position_index"])
    assert not old.exact and str(old).endswith("(cannot be undone exactly)")
    index = tensors["relative_position_index"]
    for wrong in (index.T, index + 1, index.astype(np.int32), np.zeros((4, 3), np.int64)):
        with pytest.raises(ValueError, match=r"relative_position_index: "):
            converted(tensors | {"relative_position_index": wrong}, "swin", "hf-swin")
    # A window of 2 x 5 has 27 rows, which no square window has.
    table = np.ones((27, 5), np.float32)
    oblong = tensors | {"relative_position_bias_table": table, "relative_position_index": position_index(2, 5)}
    with pytest.raises(ValueError, match="is not that of a square window"):
        converted(oblong, "swin", "canonical")
    hf = tensors_for("hf-swin", CONFIG) | {"self.relative_position_bias_table": table}
    kept = hf | {"self.relative_position_index": position_index(2, 5)}
    same_tensors(converted(kept, "hf-swin", "timm-swin"), converted(hf, "hf-swin", "timm-swin"))
    for wrong in (position_index(2, 5).T, position_index(10, 1)):
        with pytest.raises(ValueError, match="not the index of any window whose table has 27 rows"):
            converted(hf | {"self.relative_position_index": wrong}, "hf-swin", "timm-swin")


def test_buffers_must_hold_what_a_model_would_compute():
    gpt2 = tensors_for("hf-gpt2", CONFIG)
    mask = np.tril(np.ones((6, 6)))[None, None]
    fill = np.array(-1e4, np.float32)
    plain = converted(gpt2, "hf-gpt2", "canonical")
    for dtype in (bool, np.uint8, np.float32):
        buffers = {"bias": mask.astype(dtype), "masked_bias": fill}
        same_tensors(converted(gpt2 | buffers, "hf-gpt2", "canonical"), plain)
    for wrong in ({"bias": 1 - mask}, {"bias": 2 * mask}, {"bias": mask[0]}, {"masked_bias": np.array(0.0)}):
        with pytest.raises(ValueError, match="not the causal mask|expected shape|expected one number"):
            converted(gpt2 | wrong, "hf-gpt2", "canonical")

    llama = tensors_for("hf-llama", EVEN)
    inverse = (10000.0 ** -(np.arange(0, 6, 2) / 6)).astype(np.float32)
    for frequencies in (inverse, np.ones(1, np.float32), inverse.astype(np.float16)):
        given = llama | {"rotary_emb.inv_freq": frequencies}
        same_tensors(converted(given, "hf-llama", "flax-nnx", EVEN), converted(llama, "hf-llama", "flax-nnx", EVEN))
    for scaled in (inverse / 8, np.array([1, 0.5, 0.1], np.float32), -inverse):
        with pytest.raises(ValueError, match="not the powers of one base"):
            converted(llama | {"rotary_emb.inv_freq": scaled}, "hf-llama", "flax-nnx", EVEN)

    swin = tensors_for("swin-v2", CONFIG)
    plain = converted(swin, "swin-v2", "canonical")
    for height, width, pretrained in ((3, 3, None), (4, 2, None), (3, 3, 6), (1, 3, None)):
        buffers = {"relative_coords_table": _coords(height, width, pretrained)}
        buffers["relative_position_index"] = position_index(height, width)
        same_tensors(converted(swin | buffers, "swin-v2", "canonical"), plain)
    for wrong in (_coords(3, 3, None) * 1.01, _coords(3, 3, None)[..., ::-1], np.zeros((1, 4, 4, 2))):
        with pytest.raises(ValueError, match="relative_coords_table: "):
            converted(swin | {"relative_coords_table": wrong}, "swin-v2", "canonical")


def _coords(height, width, pretrained):
    """Swin v2's rule: offsets over the pretraining's (or own) window - 1, times 8, then the signed logarithm."""
    table = np.zeros((1, 2 * height - 1, 2 * width - 1, 2), np.float32)
    for y, x in itertools.product(range(2 * height - 1), range(2 * width - 1)):
        for axis, (at, size) in enumerate(((y, height), (x, width))):
            offset = 8 * (at - size + 1) / max((pretrained or size) - 1, 1)
            table[0, y, x, axis] = np.sign(offset) * np.log2(abs(offset) + 1) / 3
    return table


def test_part_of_a_layer_converts_by_itself():
    """What a plan that streams tensors relies on."""
    for name in ("hf-llama", "meta-llama", "hf-phi3"):
        layout = layouts.get(name)
        tensors = tensors_for(name, EVEN)
        whole = layout.to_canonical(tensors, EVEN)
        sources = layout.sources(EVEN)
        assert set(sources) == set(tensors) and {c for held in sources.values() for c in held} == set(whole)
        for local, held in sources.items():
            part = layout.to_canonical({local: tensors[local]}, EVEN)
            assert set(part) == set(held)
            assert all(part[c].tobytes() == whole[c].tobytes() for c in held)
            back = layout.from_canonical(part, EVEN)
            assert list(back) == [local] and back[local].tobytes() == tensors[local].tobytes()


def test_checkpoints_are_compared_with_their_extras_and_not_run_without_them(tmp_path):
    tensors = tensors_for("hf-qwen3", EVEN, every=True)
    other = tensors | {"k_norm.weight": tensors["k_norm.weight"][::-1].copy()}
    for name, saved in (("one", tensors), ("two", other)):
        checkpoints.save(tmp_path / f"{name}.safetensors", saved)
    paths = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert compare(paths[0], paths[0], num_heads=5) is None
    assert "key_norm.scale" in str(compare(*paths, num_heads=5))
    with pytest.raises(ValueError, match=r"holds key_norm\.scale, query_norm\.scale: what is run here is attention"):
        verify_checkpoint(paths[0], num_heads=5)


SINKS = AttentionConfig(30, 6, num_kv_heads=2, qkv_bias=False, out_bias=False, sinks=True)


def test_sinks_move_between_the_layouts_that_have_them():
    held = [name for name in layouts.names() if not layouts.get(name).unsupported(SINKS)]
    assert {"canonical", "maskattn-torch", "flax-nnx", "flax-linen", "hf-llama"} == set(held)
    for source, target in itertools.permutations(held, 2):
        tensors = tensors_for(source, SINKS)
        there = converted(tensors, source, target, SINKS)
        assert there["sinks"].tobytes() == tensors["sinks"].tobytes() and there["sinks"].shape == (6,)
        back = converted(there, target, source, SINKS)
        assert back["sinks"].tobytes() == tensors["sinks"].tobytes()
        inferred = layouts.get(source).infer(tensors, 6, 2)
        assert inferred.sinks


def test_sinks_that_a_configuration_does_not_have_or_misses_are_named():
    tensors = tensors_for("timm", SINKS)
    with pytest.raises(ValueError, match="sinks: left over"):
        converted(tensors, "timm", "flax-nnx", SINKS.replace(sinks=False))
    with pytest.raises(ValueError, match=r"sinks: missing, expected shape \[6\]"):
        converted({n: x for n, x in tensors.items() if n != "sinks"}, "timm", "flax-nnx", SINKS)
    with pytest.raises(
        ValueError, match="layout hf-bert cannot hold this config: sinks is True, but the module has none"
    ):
        converted(tensors, "timm", "hf-bert", SINKS)
    with pytest.raises(ValueError, match="softcap is 3.0, but the module has none"):
        converted(tensors_for("timm", CONFIG), "timm", "torch-mha", CONFIG.replace(softcap=3.0))
