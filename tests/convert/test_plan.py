"""What a plan refuses, what it says, and what it leaves to the person."""

import math
import tomllib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from maskattn import checkpoints, standards
from maskattn.checkpoints import TensorInfo
from maskattn.convert import families, plan, run, verify
from maskattn.convert._plan import in_order
from maskattn.convert._run import Source

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CONFIG = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}


def llama(head_dim=6, tied=False, dtype=np.float32):
    """A Llama of three layers: 13 tokens, 20 wide, 4 query and 2 key/value heads."""
    draw = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (13, 20), "model.norm.weight": (20,)}
    if not tied:
        shapes["lm_head.weight"] = (13, 20)
    for i in range(3):
        shapes |= {
            f"model.layers.{i}.self_attn.{n}_proj.weight": (h * head_dim, 20) for n, h in (("q", 4), ("k", 2), ("v", 2))
        }
        shapes |= {f"model.layers.{i}.{n}.weight": (20,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"model.layers.{i}.mlp.{n}_proj.weight": (31, 20) for n in ("gate", "up")}
        shapes[f"model.layers.{i}.self_attn.o_proj.weight"] = (20, 4 * head_dim)
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (20, 31)
    return {name: draw.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def infos(tensors):
    return {name: TensorInfo(array.shape, array.dtype) for name, array in tensors.items()}


def carried(tensors, planned):
    """What carrying out ``planned`` would write, without a file."""
    for check in planned.checks:
        check(tensors.__getitem__)
    return {move.target: move.array.evaluate(tensors.__getitem__) for move in planned.moves}


def refused(tensors, match, **options):
    with pytest.raises(ValueError, match=match):
        plan(infos(tensors), **({"target": "flax-nnx", "config": CONFIG} | options))


def test_a_tensor_missing_or_left_over_is_named_and_all_at_once():
    tensors = llama()
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.layers.2.self_attn.k_proj.weight"]
    tensors["model.layers.0.adapter.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError) as error:
        plan(infos(tensors), target="flax-nnx", config=CONFIG)
    assert "model.layers.1.mlp.up_proj.weight: missing" in str(error.value)
    assert "model.layers.0.adapter.weight: left over" in str(error.value)
    del tensors["model.layers.0.adapter.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((31, 20), np.float32)
    refused(tensors, r"layers.2.self_attn.*k_proj.weight")


@pytest.mark.parametrize("lost", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.2."])
def test_what_a_model_needs_is_missed(lost):
    tensors = {name: array for name, array in llama().items() if not name.startswith(lost)}
    refused(tensors, "num_hidden_layers is 3, found 2" if lost.endswith(".") else f"{lost}: missing")


def test_a_gap_in_the_layers_is_seen_without_a_config():
    tensors = {name: array for name, array in llama().items() if ".1." not in name}
    refused(tensors, r"layers\.\*: the indices\s+1 of 3", config={}, num_heads=4, num_kv_heads=2)


def test_the_rest_is_kept_or_dropped_when_asked():
    tensors = llama() | {"extra.table": np.arange(5.0)}
    kept = plan(infos(tensors), target="flax-nnx", config=CONFIG, rest="keep")
    assert kept.kept == ("extra.table",) and "extra.table" in kept.outputs
    dropped = plan(infos(tensors), target="flax-nnx", config=CONFIG, rest="drop")
    assert dropped.dropped == {"extra.table": "no rule knows it"} and "extra.table" not in dropped.outputs
    assert kept.exact and not dropped.exact
    refused(tensors, "rest must be one of error, keep, drop", rest="ignore")


def test_a_wild_number_of_layers_is_refused_at_once():
    stacked = plan(infos(llama()), target="flax-linen", config=CONFIG, scan=True).outputs
    for name, shape in (("model/layers/mlp/up_proj/kernel", (4, 20, 31)), ("model/norm/scale", (20,))):
        with pytest.raises(ValueError, match="fit|left over"):
            plan(
                stacked
                | {name: TensorInfo(shape, np.dtype("f4")), "model/layers/x/kernel": TensorInfo((2,), np.dtype("f4"))}
            )
    wild = {
        name: TensorInfo((2**40, *info.shape[1:]), info.dtype) for name, info in stacked.items() if "layers" in name
    }
    with pytest.raises(ValueError, match="left over|no attention|no layout|missing"):
        plan(stacked | wild, target="hf-llama")


def test_a_wrong_shape_is_refused_by_the_layout():
    tensors = llama()
    tensors["model.layers.1.self_attn.o_proj.weight"] = np.zeros((20, 25), np.float32)
    refused(tensors, "layers.1.self_attn")


def test_heads_are_needed_where_nothing_says_them():
    said = (
        r"(?s)converted: what its tensors do not show must be given:.*num_heads is needed.*all \d+ names are accounted"
    )
    refused(llama(), said, config={"model_type": "llama"}, target="hf-llama")


def test_names_that_fit_several_families_are_refused_with_the_candidates():
    maxtext = carried(llama(head_dim=16), plan(infos(llama(head_dim=16)), target="maxtext-llama", config=CONFIG))
    with pytest.raises(ValueError, match="(?s)families fit these names.*maxtext-llama.*maxtext-mistral"):
        plan(infos(maxtext), target="hf-llama")
    settled = plan(infos(maxtext), source="maxtext-llama", target="hf-llama")
    assert settled.source == "maxtext-llama, layers stacked"


def test_a_folded_scale_is_a_named_step_and_undone_exactly_where_it_can_be(tmp_path):
    for head_dim, exact in ((16, True), (6, False)):
        tensors = llama(head_dim)
        planned = plan(infos(tensors), target="maxtext-llama", config=CONFIG)
        (step,) = planned.steps
        assert step.name == "fold the scale in" and planned.exact is exact
        assert ("cannot be undone exactly" in str(step)) is not exact
        there = carried(tensors, planned)
        query = tensors["model.layers.0.self_attn.q_proj.weight"].reshape(4, 2, head_dim // 2, 20)
        paired = query.swapaxes(1, 2).reshape(4, head_dim, 20) * np.float32(1 / math.sqrt(head_dim))
        assert np.array_equal(
            there["params/params/decoder/layers/self_attention/query/kernel"][:, 0], paired.transpose(2, 0, 1)
        )
        checkpoints.save(tmp_path / f"{head_dim}.safetensors", tensors)
        with checkpoints.open(tmp_path / f"{head_dim}.safetensors") as source:
            run(planned, source, tmp_path / f"{head_dim}.npz")
            with checkpoints.open(tmp_path / f"{head_dim}.npz") as written:
                result = verify(planned, source, written, attention=False)
        assert result.held and len(result.same) + len(result.near) == len(tensors)
        assert bool(result.near) is not exact and all(
            0 < error < standards.value("convert.near") for error in result.near.values()
        )


def test_a_tied_tensor_is_made_where_the_target_needs_it():
    tensors = llama(tied=True)
    refused(tensors, "output.weight: the source has none, and no configuration says", target="meta-llama")
    planned = plan(infos(tensors), target="meta-llama", config=CONFIG | {"tie_word_embeddings": True})
    assert [step.name for step in planned.steps] == ["tie lm_head.kernel"]
    there = carried(tensors, planned)
    assert np.array_equal(there["output.weight"], tensors["model.embed_tokens.weight"])
    assert "lm_head.kernel" not in plan(infos(tensors), target="flax-nnx", config=CONFIG).outputs


def test_a_cast_casts_floats_and_refuses_what_overflows(tmp_path):
    tensors = llama() | {"model.rotary_emb.inv_freq": np.arange(3.0)}
    planned = plan(infos(tensors), target="flax-nnx", config=CONFIG, dtype=BFLOAT16)
    assert {info.dtype for info in planned.outputs.values()} == {BFLOAT16} and not planned.exact
    checkpoints.save(tmp_path / "source.safetensors", tensors)
    with checkpoints.open(tmp_path / "source.safetensors") as source:
        run(planned, source, tmp_path / "target.safetensors")
        with checkpoints.open(tmp_path / "target.safetensors") as written:
            result = verify(planned, source, written, attention=False)
    assert result.held and len(result.same) == len(tensors) - 1
    tensors["model.norm.weight"][3] = 1e6
    checkpoints.save(tmp_path / "source.safetensors", tensors)
    with checkpoints.open(tmp_path / "source.safetensors") as source:
        half = plan(source.infos, target="flax-nnx", config=CONFIG, dtype=np.float16)
        with pytest.raises(ValueError, match="model.norm.scale: 1 finite numbers are too large for float16"):
            run(half, source, tmp_path / "half.safetensors")
    assert not (tmp_path / "half.safetensors").exists()


def test_a_buffer_is_checked_left_out_and_made_again(tmp_path):
    tensors = {"embeddings.position_ids": np.arange(23)[None]}
    draw = np.random.default_rng(1)
    for name, info in _bert_infos().items():
        tensors[name] = draw.standard_normal(info.shape).astype(np.float32)
    checkpoints.save(tmp_path / "source.safetensors", tensors)
    with checkpoints.open(tmp_path / "source.safetensors") as source:
        planned = plan(source.infos, target="flax-linen", num_heads=2)
        assert list(planned.dropped) == ["embeddings.position_ids"] and planned.exact
        run(planned, source, tmp_path / "there.npz")
    with checkpoints.open(tmp_path / "there.npz") as there:
        back = plan(there.infos, target="hf-bert", provenance=there.provenance)
        assert carried(there, back)["embeddings.position_ids"].tobytes() == tensors["embeddings.position_ids"].tobytes()
    tensors["embeddings.position_ids"] += 1
    checkpoints.save(tmp_path / "source.safetensors", tensors)
    with checkpoints.open(tmp_path / "source.safetensors") as source:
        with pytest.raises(ValueError, match="position_ids: expected 0, 1, 2"):
            run(plan(source.infos, target="flax-linen", num_heads=2), source, tmp_path / "wrong.npz")
    assert not (tmp_path / "wrong.npz").exists()


def _bert_infos():
    shapes = {
        f"embeddings.{name}_embeddings.weight": (size, 6)
        for name, size in (("word", 11), ("position", 23), ("token_type", 2))
    }
    norms = ["embeddings.LayerNorm", "encoder.layer.0.attention.output.LayerNorm", "encoder.layer.0.output.LayerNorm"]
    layers = {
        f"encoder.layer.0.attention.{n}": (6, 6) for n in ("self.query", "self.key", "self.value", "output.dense")
    }
    layers |= {"encoder.layer.0.intermediate.dense": (7, 6), "encoder.layer.0.output.dense": (6, 7)}
    for name in norms:
        shapes |= {f"{name}.weight": (6,), f"{name}.bias": (6,)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: TensorInfo(shape, np.dtype(np.float32)) for name, shape in shapes.items()}


@pytest.mark.parametrize("damage", [
    {"buffers": {"family": "hf-bert", "tensors": {"x": {"made": "arange", "shape": [10**12], "dtype": "int64"}}}},
    {"buffers": {"family": "hf-bert", "tensors": {"x": {"made": "exec", "shape": [1], "dtype": "int64"}}}},
    {"buffers": {"tensors": {}}},
    {"heads": {"encoder.layer.0.attention": [0, 2]}},
    {"heads": 3},
    {"prefixes": {"hf-bert": 3}},
])  # fmt: skip
def test_a_provenance_that_cannot_be_meant_is_refused(damage):
    with pytest.raises(ValueError, match="provenance"):
        plan(_bert_infos(), target="hf-bert", num_heads=2, provenance=damage)


def test_attention_alone_needs_no_family():
    draw = np.random.default_rng(2)
    tensors = {"in_proj_weight": (30, 10), "in_proj_bias": (30,), "out_proj.weight": (10, 10), "out_proj.bias": (10,)}
    tensors = {f"deep.{name}": draw.standard_normal(shape) for name, shape in tensors.items()}
    planned = plan(infos(tensors), target="hf-bert", num_heads=5)
    assert (planned.source, planned.target) == ("torch-mha", "hf-bert")
    assert sorted(planned.outputs)[:2] == ["deep.output.dense.bias", "deep.output.dense.weight"]
    whole = {name.removeprefix("deep."): array for name, array in tensors.items()}
    assert "query.kernel" in plan(infos(whole), target="flax-nnx", num_heads=5).outputs
    with pytest.raises(ValueError, match="head.weight: left over"):
        plan(infos(tensors | {"head.weight": np.ones(3)}), target="flax-nnx", num_heads=5)


FAMILY = """
name = "mine"
style = "torch"
layout = "torch-mha"
heads = "heads"

[body]
"stem" = "conv"
"blocks.*.mix" = "attention"
"blocks.*.norm" = "norm"
"blocks.*.gate" = { kind = "dense", transposed = true, bias = "no" }
"table" = "raw"
"""


def _mine():
    shapes = {"stem.weight": (5, 3, 2, 4), "stem.bias": (5,), "table": (7, 2)}
    for i in range(2):
        shapes |= {f"blocks.{i}.mix.in_proj_weight": (18, 6), f"blocks.{i}.mix.in_proj_bias": (18,)}
        shapes |= {f"blocks.{i}.mix.out_proj.weight": (6, 6), f"blocks.{i}.mix.out_proj.bias": (6,)}
        shapes |= {f"blocks.{i}.norm.weight": (6,), f"blocks.{i}.norm.bias": (6,), f"blocks.{i}.gate.weight": (6, 11)}
    draw = np.random.default_rng(3)
    return {name: draw.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def test_a_family_of_ones_own_is_one_file(tmp_path):
    (tmp_path / "mine.toml").write_text(FAMILY)
    tensors = _mine()
    planned = plan(infos(tensors), target="flax-linen", family=tmp_path / "mine.toml", config={"heads": 3}, scan=True)
    there = carried(tensors, planned)
    assert there["stem/kernel"].shape == (2, 4, 3, 5) and there["blocks/gate/kernel"].shape == (2, 6, 11)
    assert there["blocks/mix/query/kernel"].shape == (2, 6, 3, 2) and there["table"].shape == (7, 2)
    assert there["blocks/norm/scale"].shape == (2, 6)
    undo = plan(infos(there), target="mine", family=tmp_path / "mine.toml")
    back = carried(there, undo)
    assert {name: array.tobytes() for name, array in back.items()} == {n: a.tobytes() for n, a in tensors.items()}


def test_the_page_on_converting_names_every_family_and_its_example_is_one():
    page = (Path(__file__).parents[2] / "docs" / "converting.md").read_text()
    assert [family.name for family in families.all_families() if f"`{family.name}`" not in page] == []
    example = page.split("```toml")[1].split("```")[0]
    mine = families.parse(tomllib.loads(example), "docs/converting.md")
    assert mine.name == "mine" and [rule.kind for rule in mine.rules][:2] == ["conv", "attention"]


@pytest.mark.parametrize(("change", "said"), [
    (('"conv"', '"convolution"'), r"'stem': kind must be one of attention, .*got 'convolution'"),
    (('"conv"', '"conv, no bias"'), r"'stem': kind must be one of attention, .*got 'conv, no bias'"),
    (('"conv"', "3"), "'stem' must be a kind or a table, got 3"),
    (("transposed", "sideways"), "'blocks.*.gate': 'sideways' is not known; expected kind, canonical, "),
    (("transposed = true", 'transposed = "true"'), "transposed must be true or false, got 'true'"),
    (('bias = "no"', 'bias = "perhaps"'), "bias must be one of yes, no, maybe, got 'perhaps'"),
    (('kind = "dense", ', ""), "'blocks.*.gate': kind is missing"),
    (('bias = "no"', 'heads = "a"'), "heads is of attention only, got dense"),
    (('"conv"', '{ kind = "buffer", maker = "ones" }'), "maker must be one of arange, shifted-windows, got 'ones'"),
    (('"conv"', '{ kind = "dense", tied = "norm" }'), "'stem' is tied to 'norm', which is no name here"),
    (('"torch"', '"pascal"'), "style must be one of torch, flax"),
    (('"torch-mha"', '"nothing"'), "unknown layout 'nothing'"),
    (('"raw"', '{ kind = "raw", canonical = "stem" }'), "both stand for 'stem'"),
    (('"raw"', '{ kind = "raw", canonical = "table.*" }'), "the same number of"),
    (('name = "mine"', ""), "name is missing"),
    (('heads = "heads"', "exec = 'import os'"), "'exec' is not known"),
    (('"table"', '"../table"'), "no pattern of a name"),
    (("[body]", "[body"), "not valid TOML"),
    (("[body]", "[head]"), "body is missing"),
    (("[body]", "scan = 1\n[body]"), "scan must be true or false, got 1"),
    (("[body]", 'prefixes = ["", 1]\n[body]'), "prefixes must be a list of text"),
])  # fmt: skip
def test_a_faulty_family_file_says_what_is_wrong(change, said, tmp_path):
    assert change[0] in FAMILY
    (tmp_path / "mine.toml").write_text(FAMILY.replace(*change))
    with pytest.raises(ValueError, match=said):
        families.get(tmp_path / "mine.toml")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="unknown family 'hf-brt': did you mean 'hf-bert'"):
        families.get("hf-brt")
    with pytest.raises(FileNotFoundError, match="no file nowhere.toml"):
        families.get("nowhere.toml")
    refused(llama(), "describes bert, but the source is llama; expected one of hf-llama", target="hf-bert")
    refused(llama(), "unknown form 'hf-lama': did you mean 'hf-llama'", target="hf-lama")
    refused(llama(), "a whole llama is not stored with that layout", target="equinox")
    refused(llama(), "dtype must be one of", dtype=np.int8)


def test_each_tensor_is_read_once_and_forgotten():
    class Counting(dict):
        reads: list[str] = []

        def __getitem__(self, name):
            self.reads.append(name)
            return super().__getitem__(name)

    tensors = llama()
    planned = plan(infos(tensors), target="maskattn-torch", config=CONFIG)
    reader = Counting(tensors)
    moves = list(in_order(planned, tuple(sorted(planned.outputs, reverse=True))))
    assert sorted(move.target for move in moves) == sorted(planned.outputs)
    source = Source(moves, infos(tensors), reader)
    for move in iter(source.begin, None):
        move.array.evaluate(source.read)
        source.end(move)
    assert not source.held
    assert sorted(reader.reads) == sorted(tensors)
