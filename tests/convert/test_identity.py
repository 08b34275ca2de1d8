"""A checkpoint is the model that it says it is: look-alikes, what we wrote ourselves, prefixes, adapters, shards."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from maskattn import checkpoints
from maskattn.checkpoints import TensorInfo
from maskattn.cli.main import main
from maskattn.convert import convert_model, convert_tensors, families, open_model, plan, refuse_a_shard, run
from maskattn.convert._canonical import made
from maskattn.convert._identity import lookalikes, said
from tests.convert.test_plan import CONFIG, _bert_infos, infos, llama
from tests.twin import same_tensors

ALIKE = lookalikes(families.get("hf-llama"))
FLOAT = np.dtype(np.float32)


def drawn(given):
    draw = np.random.default_rng(7)
    return {name: draw.standard_normal(info.shape).astype(info.dtype) for name, info in given.items()}


def same(expected, found):
    """The same bytes under the same names; each format has an order of its own."""
    same_tensors(*({name: tensors[name] for name in sorted(tensors)} for tensors in (found, expected)))


def convert(*arguments, code=0):
    result = CliRunner().invoke(main, ["convert", *map(str, arguments), "--wide"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_every_type_of_another_library_s_family_is_one_of_hugging_face():
    assert all(families.of_type(name)[0].startswith("hf-") for name in families.types())
    assert len(ALIKE) > 12 and not set(ALIKE) & set(families.get("hf-llama").model_types)


@pytest.mark.parametrize("model_type", ALIKE)
def test_a_look_alike_is_no_llama(model_type):
    config = CONFIG | {"model_type": model_type}
    for target in ("meta-llama", "maxtext-llama"):
        with pytest.raises(ValueError, match=r"describes llama, but the source is |its names are those of hf-llama"):
            plan(infos(llama()), target=target, config=config)
    forced = plan(infos(llama()), source="hf-llama", target="meta-llama", config=config)
    assert forced.notes[0].startswith("warning: ") and model_type in forced.record["overridden"]


@pytest.mark.parametrize("target", ["flax-linen", "meta-llama"])
def test_a_type_that_no_table_describes_is_refused_with_the_nearest_and_the_page(target):
    config = CONFIG | {"model_type": "qwen9"}
    told = r"qwen9, and no table describes it; the nearest are .*qwen.*docs/models.md#a-type-that-is-not-here"
    with pytest.raises(ValueError, match=told):
        plan(infos(llama()), target=target, config=config)
    assert plan(infos(llama()), source="hf-llama", target=target, config=config).notes[0].startswith("warning: ")


def test_what_says_nothing_is_taken_for_its_names_with_a_note():
    planned = plan(infos(llama()), target="meta-llama", num_heads=4, num_kv_heads=2)
    assert "gemma" in planned.notes[0] and "taken for hf-llama" in planned.notes[0]
    assert plan(infos(llama()), target="meta-llama", config=CONFIG).notes == ()


def test_the_names_of_another_model_than_config_json_says_are_refused():
    with pytest.raises(ValueError, match="model_type bert, which is stored as hf-bert .* names are those of hf-llama"):
        plan(infos(llama()), target="flax-linen", config=CONFIG | {"model_type": "bert"})
    config = {"architectures": ["GemmaForCausalLM"], "num_attention_heads": 4, "num_key_value_heads": 2}
    assert said(config, {}).model_type == "gemma"
    with pytest.raises(ValueError, match="describes llama, but the source is gemma"):
        plan(infos(llama()), target="meta-llama", config=config)
    with pytest.raises(ValueError, match="contradicts itself"):
        plan(infos(llama()), target="meta-llama", config=CONFIG | {"architectures": ["GemmaForCausalLM"]})
    assert said({"dim": 8, "n_layers": 2, "n_heads": 2}, {}).by == "params.json"


@pytest.mark.parametrize(("classes", "model_type"), [
    ("BertForMaskedLM", "bert"), ("GPT2LMHeadModel", "gpt2"), ("Qwen2MoeForCausalLM", "qwen2_moe"), ("T5Model", "t5"),
    ("XLMRobertaForMaskedLM", "xlm-roberta"), ("Dinov2WithRegistersModel", "dinov2_with_registers"),
    ("YiForCausalLM", "yi"),
])  # fmt: skip
def test_a_class_of_transformers_says_the_type(classes, model_type):
    assert said({"architectures": [classes]}, {}).model_type == model_type


def test_the_way_back_needs_no_flag(tmp_path):
    tensors = llama(head_dim=16)
    checkpoints.save(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for form in ("flax-linen", "maxtext-mistral", "maxtext-llama", "meta-llama"):
        convert(tmp_path / "model.safetensors", tmp_path / "there.npz", "--to", form)
        (tmp_path / "config.json").rename(tmp_path / "config.hidden")
        convert(tmp_path / "there.npz", tmp_path / "back.npz")
        text = convert(tmp_path / "there.npz", tmp_path / "x.npz", "--from", "hf-bert", "--to", "flax-nnx", code=2)
        assert "--from hf-bert: the file says that it is " in text and "--force" in text
        (tmp_path / "config.hidden").rename(tmp_path / "config.json")
        with checkpoints.open(tmp_path / "back.npz") as back:
            same(tensors, back)


def test_a_look_alike_stays_one_on_its_way(tmp_path):
    checkpoints.save(tmp_path / "model.safetensors", llama())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gemma"}))
    assert "hf-gemma" in convert(tmp_path / "model.safetensors", tmp_path / "there.npz", "--to", "flax-linen")
    told = CliRunner().invoke(main, ["inspect", str(tmp_path / "model.safetensors"), "--no-read"]).output
    assert "form: hf-gemma" in told
    (tmp_path / "config.json").unlink()
    (tmp_path / "there.npz.config.json").unlink()
    text = convert(tmp_path / "there.npz", tmp_path / "x.npz", "--to", "meta-llama", code=2)
    assert "describes llama, but the source is gemma" in text
    convert(tmp_path / "there.npz", tmp_path / "x.npz", "--to", "meta-llama", "--from", "hf-llama", "--force")
    convert(tmp_path / "there.npz", tmp_path / "back.npz")
    with checkpoints.open(tmp_path / "back.npz") as back:
        same(llama(), back)


def test_what_was_forced_is_warned_of_and_remembered(tmp_path):
    checkpoints.save(tmp_path / "model.safetensors", llama(head_dim=4))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gemma"}))
    there, third = tmp_path / "there.npz", tmp_path / "third.npz"
    assert "warning: config.json says model_type gemma" in convert(
        tmp_path, there, "--to", "maxtext-llama", "--from", "hf-llama"
    )
    forced = convert(there, third, "--force", "--from", "maxtext-mistral")
    assert "warning: its provenance says that it is maxtext-llama, layers stacked: taken for maxtext-mistral" in forced
    last = convert(third, tmp_path / "last.npz", "--to", "flax-linen")
    assert "warning: config.json says model_type gemma" in last and "taken for maxtext-mistral" in last
    assert "its provenance says that it is" not in convert(there, third, "--force")  # which names no other form


def test_a_head_that_was_made_of_the_embedding_is_left_out_again(tmp_path):
    tensors = llama(tied=True)
    checkpoints.save(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": True}))
    convert(tmp_path / "model.safetensors", tmp_path / "there.safetensors", "--to", "meta-llama", "--verify")
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", "--to", "hf-llama", "--verify")
    with checkpoints.open(tmp_path / "back.safetensors") as back:
        same(tensors, back)
    untied = CONFIG | {"tie_word_embeddings": False}
    with pytest.raises(ValueError, match=r"output.weight: the source has none"):
        plan(infos(tensors), target="meta-llama", config=untied)
    with pytest.raises(ValueError, match=r"lm_head.weight: missing; a LlamaForCausalLM"):
        plan(infos(tensors), target="flax-nnx", config=untied | {"architectures": ["LlamaForCausalLM"]})


def test_norms_named_gamma_and_beta_go_and_come_back(tmp_path):
    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    tensors = drawn({old(name): info for name, info in _bert_infos().items()})
    checkpoints.save(tmp_path / "model.safetensors", tensors)
    convert(tmp_path / "model.safetensors", tmp_path / "there.npz", "--to", "flax-bert", "--heads", 2, "--verify")
    for how in ([], ["--to", "hf-bert"]):
        convert(tmp_path / "there.npz", tmp_path / "back.safetensors", *how)
        with checkpoints.open(tmp_path / "back.safetensors") as back:
            same(tensors, back)


def test_a_tied_head_may_store_its_bias_alone():
    given = {f"electra.{name}": info for name, info in _bert_infos().items()}
    given |= {"generator_lm_head.bias": TensorInfo((11,), FLOAT)}
    given |= {
        f"generator_predictions.dense.{part}": TensorInfo((6,) * n, FLOAT) for part, n in (("weight", 2), ("bias", 1))
    }
    given |= {f"generator_predictions.LayerNorm.{part}": TensorInfo((6,), FLOAT) for part in ("weight", "bias")}
    assert "generator_lm_head/bias" in plan(given, target="flax-bert", num_heads=2).outputs


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "net.backbone."])
def test_a_prefix_is_seen_and_taken_off_when_asked(prefix, tmp_path):
    tensors = {prefix + name: array for name, array in llama().items()}
    with pytest.raises(
        ValueError,
        match=rf"^all 31 names begin with '{prefix}'.* hf-llama .*--strip-prefix {prefix}".replace("31", "30"),
    ):
        plan(infos(tensors), target="flax-linen", config=CONFIG)
    for asked in (prefix, "auto"):
        planned = plan(infos(tensors), target="flax-linen", config=CONFIG, strip_prefix=asked)
        assert "model/norm/scale" in planned.outputs
    checkpoints.save(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    convert(tmp_path / "model.safetensors", tmp_path / "there.npz", "--to", "meta-llama", "--verify", "--strip-prefix")
    convert(tmp_path / "there.npz", tmp_path / "back.npz")
    with checkpoints.open(tmp_path / "back.npz") as back:
        same(tensors, back)


def test_a_model_is_read_without_the_prefix_that_was_taken_off(tmp_path):
    tensors = {f"module.{name}": array for name, array in llama().items()}
    checkpoints.save(tmp_path / "wrapped.pt", tensors)
    sizes = {"vocab_size": 13, "hidden_size": 20, "intermediate_size": 31, "head_dim": 6}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | sizes | {"architectures": ["LlamaForCausalLM"]}))
    for target, more in {"flax-nnx": ["--verify"], "hf-llama": []}.items():
        there = tmp_path / target / "model.safetensors"
        output = convert(tmp_path / "wrapped.pt", there, "--to", target, "--strip-prefix", "module.", *more)
        assert not more or "the whole model, PyTorch on the source's weights" in output, output
        with open_model(there.parent) as source:
            same(llama(), {name: source[name] for name in source.infos})


def test_what_stands_beside_the_model_behind_a_prefix_is_named():
    tensors = {f"net.{name}": array for name, array in llama().items()} | {"log_sigma": np.ones(3)}
    with pytest.raises(ValueError, match=r"30 of 31 names begin with 'net.'.*beside it log_sigma: --rest"):
        plan(infos(tensors), target="flax-linen", config=CONFIG)
    kept = plan(infos(tensors), target="flax-linen", config=CONFIG, strip_prefix="net.", rest="keep")
    assert kept.kept == ("log_sigma",)
    with pytest.raises(ValueError, match=r"no name begins with 'nut.'; most begin with 'net.'"):
        plan(infos(tensors), target="flax-linen", config=CONFIG, strip_prefix="nut.")


def test_what_wrappers_put_within_names_is_named():
    tensors = {name.replace(".self_attn.", "._orig_mod.self_attn."): array for name, array in llama().items()}
    for asked in ("", "auto"):
        with pytest.raises(ValueError, match=r"^12 of 30 names have '_orig_mod.' within.*replace\('_orig_mod.', ''\)"):
            plan(infos(tensors), target="meta-llama", config=CONFIG, strip_prefix=asked)


def test_a_flax_tree_joined_by_dots_is_named():
    flax = plan(_bert_infos(), target="flax-bert", num_heads=2).outputs
    dotted = {name.replace("/", "."): info for name, info in flax.items()}
    with pytest.raises(ValueError, match=r"^all \d+ names are those of flax-bert, joined by dots"):
        plan(dotted, target="hf-bert", num_heads=2)


def test_heads_that_are_asked_for_may_not_contradict_the_configuration():
    for asked in ({"num_heads": 2}, {"num_kv_heads": 4}):
        with pytest.raises(ValueError, match=r"as asked for \(--heads, --kv-heads\), and [24] by the configuration"):
            plan(infos(llama()), target="meta-llama", config=CONFIG, **asked)
    plan(infos(llama()), target="meta-llama", config=CONFIG, num_heads=4, num_kv_heads=2)


def test_a_model_in_memory_that_says_nothing_is_warned_of():
    with pytest.warns(UserWarning, match="^nothing says which model it is, and .*gemma.* are named alike"):
        convert_model(llama(), target="meta-llama", num_heads=4, num_kv_heads=2)
    with pytest.warns(UserWarning, match="^config.json says model_type gemma: taken for hf-llama"):
        convert_model(llama(), target="meta-llama", source="hf-llama", config=CONFIG | {"model_type": "gemma"})


@pytest.mark.parametrize("others", [("ema.",), ("teacher.backbone.", "momentum.")])
def test_several_models_in_one_file_are_named_and_one_is_taken(others):
    tensors = {prefix + name: array for prefix in ("model.", *others) for name, array in llama().items()}
    with pytest.raises(
        ValueError, match=rf"^{1 + len(others)} models in one file, .*'model.' \(hf-llama\).* --rest drop"
    ):
        plan(infos(tensors), target="meta-llama", config=CONFIG)
    taken = plan(infos(tensors), target="meta-llama", config=CONFIG, strip_prefix=others[0], rest="drop")
    assert taken.outputs == plan(infos(llama()), target="meta-llama", config=CONFIG).outputs
    assert all(name.startswith(others[0]) for move in taken.moves for name in move.array.sources)


def test_names_of_a_known_model_behind_a_long_prefix_and_of_none():
    tensors = {f"a.b.c.d.e.{name}": array for name, array in llama().items()}
    with pytest.raises(ValueError, match=r"^all 30 names begin with 'a.b.c.d.e.'"):
        plan(infos(tensors), target="meta-llama", config=CONFIG)
    strange = {name.replace("mlp", "ffn"): array for name, array in llama().items() if "norm" not in name}
    with pytest.raises(ValueError, match=r"model_type llama, which is stored as hf-llama or .*neither") as error:
        plan(infos(strange | {f"x.{name}": array for name, array in strange.items()}), config=CONFIG)
    assert "no family here describes it" not in str(error.value)


def test_heads_of_a_converted_file_bind(tmp_path):
    checkpoints.save(tmp_path / "model.safetensors", llama())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    there, beside = tmp_path / "there.npz", tmp_path / "there.npz.config.json"
    convert(tmp_path, there, "--to", "meta-llama")
    beside.write_text(json.dumps(CONFIG | {"num_attention_heads": 2, "num_key_value_heads": 1}))
    wrong = convert(there, tmp_path / "back.npz", code=2)
    assert "2 heads and 1 key/value heads, but it was converted with 4 and 2" in wrong and "--force" in wrong
    convert(there, tmp_path / "forced.npz", "--force")
    assert "another file's" in convert(
        tmp_path, there, "--to", "meta-llama"
    )  # a new file has a configuration of its own
    assert json.loads(beside.read_text()) == CONFIG
    convert(there, tmp_path / "back.npz")
    with checkpoints.open(tmp_path / "back.npz") as back:
        same(llama(), back)


@pytest.mark.parametrize("target", ["maxtext-llama", "maxtext-qwen3", "meta-llama", "flax-linen", "maskattn-torch"])
def test_a_configuration_as_transformers_writes_it_lets_a_model_come_back(target):
    config = CONFIG | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "head_dim": 4}
    given = infos(llama(head_dim=4))
    there = plan(given, target=target, config=config)
    provenance = {"source": {"form": "hf-llama", "whole": True}, "target": {"form": there.target, "whole": True}}
    back = plan(there.outputs, config=config, provenance=provenance | dict(there.record))
    assert back.outputs == given


def test_key_value_heads_that_only_the_file_remembers():
    """Falcon's configuration does not say them for all of its kinds; three in one matrix do not show them."""
    names = {"word_embeddings.weight": (11, 24), "ln_f.weight": (24,), "ln_f.bias": (24,)}
    names |= {f"h.0.{norm}.{part}": (24,) for norm in ("ln_attn", "ln_mlp") for part in ("weight", "bias")}
    names |= {"h.0.self_attention.query_key_value.weight": (40, 24), "h.0.self_attention.dense.weight": (24, 24)}
    names |= {"h.0.mlp.dense_h_to_4h.weight": (96, 24), "h.0.mlp.dense_4h_to_h.weight": (24, 96)}
    given = {f"transformer.{name}": TensorInfo(shape, FLOAT) for name, shape in names.items()}
    config = {"model_type": "falcon", "num_attention_heads": 6}
    there = plan(given, target="maskattn-torch", config=config)
    remembered = {name: [layer.config.num_heads, layer.config.num_kv_heads] for name, layer in there.layers.items()}
    assert remembered == {"h.0.self_attention": [6, 2]}
    back = plan(there.outputs, target="hf-falcon", config=config, provenance={"heads": remembered})
    assert back.outputs == given


@pytest.mark.parametrize(("name", "what"), [
    ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "an adapter"),
    ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
    ("model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
    ("model.layers.0.self_attn.q_proj.SCB", "bitsandbytes"),
    ("model.layers.0.self_attn.q_proj.scales", "MLX"), ("model.layers.0.mlp.experts.down_proj_blocks", "MXFP4"),
    ("model.layers.0.self_attn.q_proj.weight_scale_inv", "FP8"),
])  # fmt: skip
def test_what_is_no_model_is_refused_as_what_it_is(name, what):
    tensors = llama() | {name: np.ones((2, 2), np.float32)}
    with pytest.raises(ValueError, match=f"^this is .*{what}.*1 of 31"):
        plan(infos(tensors), target="flax-linen", config=CONFIG)
    with pytest.raises(ValueError, match=f"^this is .*{what}"):
        convert_model(tensors, target="flax-linen", config=CONFIG)


def test_one_shard_of_several_is_refused(tmp_path):
    for number in (0, 1):
        (tmp_path / f"consolidated.0{number}.pth").touch()
    with pytest.raises(ValueError, match="shard 2 of 2 of one model"):
        refuse_a_shard(tmp_path / "consolidated.01.pth")
    with pytest.raises(ValueError, match="2 shards of one model"):
        refuse_a_shard(tmp_path)
    (tmp_path / "consolidated.01.pth").unlink()
    refuse_a_shard(tmp_path / "consolidated.00.pth")
    whole = tmp_path / "model-00001-of-00002.safetensors"  # of that name, whatever it holds
    checkpoints.save(whole, llama())
    with checkpoints.open(whole) as reader:
        planned = plan(reader.infos, target="meta-llama", config=CONFIG)
        with pytest.raises(ValueError, match="shard 1 of 2 of one model"):
            run(planned, reader, tmp_path / "x.npz")
        run(planned, reader, tmp_path / "x.npz", force=True)
    assert "shard 2 of 5" in convert(tmp_path / "model-00002-of-00005.safetensors", tmp_path / "x.npz", code=2)


def test_a_refusal_says_what_was_looked_for_in_20_lines():
    layers = [f"distilbert.transformer.layer.{i}.ffn.lin{j}.weight" for i in range(9) for j in (1, 2)]
    distil = dict.fromkeys(layers, TensorInfo((4, 4), FLOAT))
    with pytest.raises(ValueError, match="^config.json says model_type distilnet") as error:
        plan(distil, target="flax-linen", config={"model_type": "distilnet"})
    assert "docs/converting.md#a-family-of-your-own" in str(error.value)
    tensors = llama() | {f"extra.{i}": np.ones(2) for i in range(12)} | {f"more.{i}": np.ones(2) for i in range(14)}
    with pytest.raises(
        ValueError, match="^config.json says model_type llama, and no family has exactly these"
    ) as error:
        plan(infos(tensors), target="flax-linen", config=CONFIG)
    assert len(str(error.value).splitlines()) <= 20 and "... and 12 more" in str(error.value)


def test_the_errors_of_tensors_say_what_to_do():
    from maskattn.config import AttentionConfig

    tensors = drawn(_bert_infos())
    with pytest.raises(ValueError, match='others="keep".*convert_model'):
        convert_tensors(tensors, source="hf-bert", target="flax-nnx", config=AttentionConfig(6, 2))
    whole = convert_model(tensors, target="flax-linen", num_heads=2)
    assert whole["encoder/layer/0/attention/query/kernel"].shape == (6, 2, 3)
    attention = {f"module.{n}": x for n, x in tensors.items() if ".attention." in n and "LayerNorm" not in n}
    options = {"source": "hf-bert", "target": "flax-nnx", "config": AttentionConfig(6, 2)}
    assert "encoder.layer.0.attention.query.kernel" in convert_tensors(attention, strip_prefix="module.", **options)


def test_scale_and_tables_that_flax_does_not_apply_are_said():
    at = "encoder.block.0.layer"
    shapes = {"shared.weight": (11, 6), "encoder.final_layer_norm.weight": (6,)}
    shapes |= {f"{at}.0.SelfAttention.{name}.weight": (6, 6) for name in "qkvo"}
    shapes |= {f"{at}.{i}.layer_norm.weight": (6,) for i in (0, 1)}
    shapes |= {f"{at}.0.SelfAttention.relative_attention_bias.weight": (32, 2)}
    shapes |= {f"{at}.1.DenseReluDense.wi.weight": (7, 6), f"{at}.1.DenseReluDense.wo.weight": (6, 7)}
    given = {name: TensorInfo(shape, FLOAT) for name, shape in shapes.items()}
    notes = plan(given, target="flax-linen", config={"model_type": "t5", "num_heads": 2}).notes
    assert any(
        "scale 1: Flax's own module takes 1 / sqrt(3), and needs query kernels times 1.73205" in n for n in notes
    )
    assert plan(infos(llama()), target="flax-linen", config=CONFIG).notes == ()


def swin_mask(across, side):
    """As Swin's authors compute it: regions counted on the image, then cut into windows."""
    size, shift = across * side, side // 2
    image, count = np.zeros((size, size)), 0
    cuts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for rows in cuts:
        for columns in cuts:
            image[rows, columns] = count
            count += 1
    windows = image.reshape(across, side, across, side).transpose(0, 2, 1, 3).reshape(across**2, side**2)
    return np.where(windows[:, None] != windows[:, :, None], -100.0, 0.0).astype(np.float32)


@pytest.mark.parametrize(("across", "side"), [(2, 2), (3, 4), (2, 7), (1, 4)])
def test_the_mask_of_swin_is_checked_and_made_again(across, side):
    mask = swin_mask(across, side)
    assert np.array_equal(made("shifted-windows", mask.shape, mask.dtype), mask)
    with pytest.raises(ValueError, match="square"):
        made("shifted-windows", (3, 4, 4), mask.dtype)


def test_experts_within_stacked_layers_are_not_stacked():
    lines = {"layers.*.norm": "norm", "layers.*.experts.*.w1": {"kind": "dense", "bias": "no"}}
    layers = {"layers.*.experts.*": "num_local_experts", "layers.*": "n"}
    data = {"name": "mine", "style": "torch", "layout": "hf-llama", "body": lines, "layers": layers}
    mine = families.parse(data, "here")
    given = {f"layers.{i}.norm.{part}": TensorInfo((4,), FLOAT) for i in range(2) for part in ("weight", "bias")}
    given |= {f"layers.{i}.experts.{j}.w1.weight": TensorInfo((3, 4), FLOAT) for i in range(2) for j in range(5)}
    config = {"num_local_experts": 5, "n": 2}
    assert len(plan(given, target="flax-linen", family=mine, config=config).moves) == 14
    with pytest.raises(ValueError, match=r"layers.\*.experts.\*: lies within layers that are stacked"):
        plan(given, target="flax-linen", family=mine, config=config, scan=True)
    with pytest.raises(ValueError, match=r"layers of layers.0.experts.\*: num_local_experts is 4, found 5"):
        plan(given, target="flax-linen", family=mine, config=config | {"num_local_experts": 4})
