import numpy as np
import pytest

from maskattn import convert_tensors
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from tests.convert.layouts.layout_cases import tensors_for
from tests.twin import same_tensors

CONFIG = AttentionConfig(35, 5)
GROUPED = AttentionConfig(30, 6, num_kv_heads=2, head_dim=7, v_head_dim=3, out_dim=11)


def test_many_layers_keep_their_prefixes_in_the_target_s_spelling():
    tensors = {}
    for layer in (0, 1, 10):
        tensors |= tensors_for("hf-bert", CONFIG, prefix=f"encoder.layer.{layer}.attention.", seed=layer)
    out = convert_tensors(tensors, source="hf-bert", target="flax-linen", config=CONFIG)
    assert len(out) == 24
    assert "encoder/layer/10/attention/query/kernel" in out
    same_tensors(convert_tensors(out, source="flax-linen", target="hf-bert", config=CONFIG), tensors)
    alone = {name.removeprefix("encoder.layer.10.attention."): a for name, a in tensors.items() if ".10." in name}
    single = convert_tensors(alone, source="hf-bert", target="flax-linen", config=CONFIG)
    same_tensors(
        {f"encoder/layer/10/attention/{n}": a for n, a in single.items()}, {n: a for n, a in out.items() if "/10/" in n}
    )


def test_one_error_lists_every_fault():
    tensors = tensors_for("timm", CONFIG, prefix="a.")
    del tensors["a.qkv.bias"]
    tensors["a.qkv.weight"] = tensors["a.qkv.weight"].T
    tensors["a.proj.weight"] = tensors["a.proj.weight"].view(np.int32)
    tensors["a.proj.bias"] = list(range(35))
    tensors["a.q_norm.weight"] = np.ones(5)
    tensors["a.relative_position_bias_table"] = np.ones((9, 5))
    tensors["b.qkv.weight"] = np.ones((2, 2))
    tensors["head.weight"] = np.ones(3)
    with pytest.raises(ValueError) as caught:
        convert_tensors(tensors, source="timm", target="flax-nnx", config=CONFIG)
    text = str(caught.value)
    for part in (
        "a.qkv.bias: missing, expected shape [105]",
        "a.qkv.weight: expected shape [105, 35], got [35, 105]",
        "a.proj.weight: expected dtype float64, float32, float16, bfloat16, got int32",
        "a.proj.bias: expected a NumPy array, got builtins.list",
        "a.q_norm.weight: expected shape [7] or [5, 7], got [5]",
        "a.relative_position_bias_table: left over: a layer with a table is of layout swin",
        "b.proj.weight: missing",
        "b.qkv.weight: expected shape [105, 35], got [2, 2]",
        "head.weight: left over: it lies outside every attention layer",
    ):
        assert part in text, part


def test_a_bias_the_config_does_not_have_is_left_over():
    config = AttentionConfig(35, 5, qkv_bias=False)
    with pytest.raises(ValueError, match=r"qkv\.bias: left over: no part of layout maskattn-torch with this config"):
        convert_tensors(tensors_for("timm", CONFIG), source="timm", target="flax-nnx", config=config)


def test_what_lies_outside_a_layer_is_kept_or_dropped_only_when_asked():
    prefix = "encoder.layer.0.attention."
    tensors = tensors_for("hf-bert", CONFIG, prefix=prefix)
    norm = {prefix + "output.LayerNorm.weight": np.ones(35, np.float32), "pooler.dense.bias": np.arange(3)}
    given = {"source": "hf-bert", "target": "timm", "config": CONFIG}
    with pytest.raises(ValueError, match=r"attention\.output\.LayerNorm\.weight: left over: it lies outside"):
        convert_tensors(tensors | norm, **given)
    plain = convert_tensors(tensors, **given)
    same_tensors(convert_tensors(tensors | norm, others="drop", **given), plain)
    kept = convert_tensors(tensors | norm, others="keep", **given)
    same_tensors(kept, plain | norm)
    assert not any(np.shares_memory(kept[name], norm[name]) for name in norm)
    inside = {prefix + "self.distance_embedding.weight": np.ones((3, 7), np.float32)}
    for others in ("keep", "drop"):
        with pytest.raises(ValueError, match="relative position embeddings have no canonical form"):
            convert_tensors(tensors | inside, others=others, **given)


def test_a_kept_name_may_not_meet_a_converted_one():
    tensors = tensors_for("hf-bert", CONFIG, prefix="a.") | {"a.b.qkv.weight": np.ones(1), "a.b.other": np.ones(1)}
    with pytest.raises(ValueError, match="left over"):
        convert_tensors(tensors, source="hf-bert", target="timm", config=CONFIG)
    tensors = tensors_for("hf-bert", CONFIG, prefix="a.") | {"a/query/kernel": np.ones(1)}
    with pytest.raises(ValueError, match="a/query/kernel: the name of a tensor that is kept is also"):
        convert_tensors(tensors, source="hf-bert", target="flax-linen", config=CONFIG, others="keep")


def test_query_key_and_value_of_different_dtypes_are_refused():
    tensors = tensors_for("hf-bert", CONFIG)
    tensors["self.key.weight"] = np.ones((35, 35), np.float64)
    with pytest.raises(
        ValueError, match="one dtype for the kernel of query, key and value, got query float32, key float64"
    ):
        convert_tensors(tensors, source="hf-bert", target="timm", config=CONFIG)


def test_a_prefix_that_could_not_be_turned_back_is_refused():
    tensors = tensors_for("timm", CONFIG, prefix="a/b.attn.")
    with pytest.raises(ValueError, match=r"a/b\.attn: contains '/', which separates names in flax-linen"):
        convert_tensors(tensors, source="timm", target="flax-linen", config=CONFIG)


def test_bad_arguments():
    tensors = tensors_for("timm", CONFIG)
    given = {"source": "timm", "target": "flax-nnx", "config": CONFIG}
    with pytest.raises(
        ValueError,
        match=r"unknown layout 'tim': did you mean 'timm'\? Expected one of: canonical, maskattn-torch \(= timm\)",
    ):
        convert_tensors(tensors, **given | {"source": "tim"})
    with pytest.raises(ValueError, match="unknown layout 'auto'"):
        convert_tensors(tensors, **given | {"target": "auto"})
    with pytest.raises(TypeError, match="config must be an AttentionConfig, got dict"):
        convert_tensors(tensors, **given | {"config": {}})
    with pytest.raises(TypeError, match="tensors must be a mapping of names to arrays, got list"):
        convert_tensors([], **given)
    with pytest.raises(TypeError, match="names must be str"):
        convert_tensors(tensors | {3: np.ones(1)}, **given)
    with pytest.raises(ValueError, match="others must be one of"):
        convert_tensors(tensors, others="ignore", **given)
    with pytest.raises(ValueError, match=r"no layer found: expected names ending in qkv\.weight or .*, got no tensors"):
        convert_tensors({}, **given)


def test_detection_names_the_layout_and_says_why():
    for name in ("maskattn-torch", "flax-nnx", "flax-linen", "torch-mha", "hf-bert"):
        found = layouts.detect(tensors_for(name, CONFIG, prefix="x" + layouts.get(name).separator))
        assert found.layout == name and len(found) == 1
        assert found[0].layers == ("x" + layouts.get(name).separator,)
        assert "shapes agree with each other" in str(found[0])
        assert layouts.detect(tensors_for(name, CONFIG), CONFIG).layout == name
    assert layouts.detect(tensors_for("timm", GROUPED)).layout == "maskattn-torch"
    converted = convert_tensors(tensors_for("timm", GROUPED), source="auto", target="flax-linen", config=GROUPED)
    back = convert_tensors(converted, source="auto", target="timm", config=GROUPED)
    same_tensors(back, tensors_for("timm", GROUPED))
    assert layouts.detect(layouts.flatten(layouts.unflatten(converted))).layout == "flax-linen"


def test_detection_refuses_to_guess():
    both = tensors_for("timm", CONFIG, prefix="a.") | tensors_for("torch-mha", CONFIG, prefix="b.")
    found = layouts.detect(both)
    assert {candidate.layout for candidate in found} == {"maskattn-torch", "torch-mha"}
    with pytest.raises(ValueError, match="2 layouts fit these tensors: name the source layout"):
        _ = found.layout
    with pytest.raises(ValueError, match=r"(?s)2 layouts fit.*maskattn-torch: 1 layer.*torch-mha: 1 layer"):
        convert_tensors(both, source="auto", target="flax-nnx", config=CONFIG)
    with pytest.raises(ValueError, match="no attention layer of a known layout"):
        _ = layouts.detect({"x": np.ones(3)}).layout


def test_two_layouts_of_the_same_names_and_square_shapes_are_never_guessed():
    """What facts say of fused orders: at square sizes shapes cannot tell them apart."""
    for given in ((), (CONFIG,)):
        with pytest.raises(ValueError, match=r"(?s)2 layouts fit.*hf-neox.*megatron-v0"):
            _ = layouts.detect(tensors_for("hf-neox", CONFIG, prefix="h.0."), *given).layout
    multi_query = AttentionConfig(35, 5, num_kv_heads=1)
    found = layouts.detect(tensors_for("hf-neox", multi_query), multi_query)
    assert found.layout == "hf-neox" and "megatron-v0 is the same with this config" in str(found[0])
    same_tensors(
        *(
            convert_tensors(tensors_for(name, multi_query), source=name, target="canonical", config=multi_query)
            for name in ("hf-neox", "megatron-v0")
        )
    )


def test_detection_says_what_speaks_against_a_near_miss():
    tensors = tensors_for("timm", CONFIG)
    with pytest.raises(ValueError, match=r"(?s)no layout fits.*maskattn-torch: .*proj\.weight is missing"):
        _ = layouts.detect({"qkv.weight": tensors["qkv.weight"]}).layout
    other = AttentionConfig(35, 7, head_dim=3)
    with pytest.raises(ValueError, match=r"expected shape \[63, 35\], got \[105, 35\]"):
        _ = layouts.detect(tensors, other).layout
    assert len(layouts.detect(tensors | {"k_norm.scale": np.ones(7)})) == 0


def test_flatten_and_unflatten():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert layouts.flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert layouts.unflatten(layouts.flatten(tree)) == tree
    with pytest.raises(ValueError, match="both named 'a/b'"):
        layouts.flatten({"a": {"b": 1}, "a/b": 2})
    with pytest.raises(ValueError, match="both an array and a module"):
        layouts.unflatten({"a/b": 1, "a": 2})
    with pytest.raises(ValueError, match="which is an array"):
        layouts.unflatten({"a": 2, "a/b": 1})
    with pytest.raises(TypeError, match="names must be str, got 0"):
        layouts.flatten({"a": {0: 1}})
