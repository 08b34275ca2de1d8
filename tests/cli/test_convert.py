"""maskattn convert and maskattn inspect, from the command line; what --verify must find."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from maskattn import checkpoints
from maskattn.cli.main import main
from maskattn.convert import plan, run as carry_out, verify
from maskattn.parity.checkpoint import minilm
from tests.convert.saved_models import saved


def run(*arguments, code=0):
    """What is printed, its lines joined: none is longer than 80, but for a name that stays whole."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    assert code == 2 or all(len(line) <= 80 or " " not in line.strip() for line in result.output.splitlines())
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return saved("qwen2", "bfloat16", tmp_path_factory.mktemp("qwen") / "model")[0]


def test_a_dry_run_says_everything_and_writes_nothing(qwen, tmp_path):
    text = run("convert", qwen, tmp_path / "out.safetensors", "--to", "flax-linen", "--scan", "--dry-run")
    assert "hf-llama -> hf-llama as flax-linen, layers stacked" in text
    assert "all 27 names are accounted for" in text and "config.json says model_type qwen2" in text
    assert "q_proj.weight -> model/layers/self_attn/query/kernel" in text.replace("model.layers.1.self_attn.", "")
    assert "transpose · stack 2 on axis 0; [2, 48, 44] bfloat16" in text
    assert re.search(r"15 tensors, [\d.]+ kB read, [\d.]+ kB written; peak memory about \d+ MB", text)
    assert "byte for byte" in text and not list(tmp_path.iterdir())


def test_converting_verifies_and_says_where_it_came_from(qwen, tmp_path):
    text = run("convert", qwen, tmp_path / "out.safetensors", "--to", "flax-nnx", "--verify")
    assert "verified: 27 tensors came back byte for byte, 0 did not" in text
    rows = re.findall(r"([a-z.\d ]+?) +error (\S+) +limit (\S+) +held", text.partition("on the file's:")[2])
    layers = [f"model.layers.{number}" for number in range(2)]
    assert [name.strip() for name, *_ in rows] == [f"before {layers[0]}", *layers, "model.norm", "hidden", "logits"]
    assert all(0 <= float(error) < float(limit) for _, error, limit in rows)
    told = run("inspect", tmp_path / "out.safetensors")
    wide = CliRunner().invoke(main, ["inspect", str(tmp_path / "out.safetensors"), "--wide"])
    assert any(len(line) > 80 for line in wide.output.splitlines()) and " ".join(wide.output.split()) == told
    assert "form: hf-llama as flax-nnx" in told and "all finite, all equal to their SHA-256" in told
    assert "2 layers: 48 wide, 6 heads, 2 key/value heads of 8" in told
    import hashlib

    digest = hashlib.sha256((qwen / "model.safetensors").read_bytes()).hexdigest()
    assert f"model.safetensors (SHA-256 {digest[:12]}...)" in told


def test_several_files_say_it_too(qwen, tmp_path):
    run("convert", qwen, tmp_path / "out.safetensors", "--to", "flax-nnx", "--max-shard-size", "10kB", "--verify")
    parts = sorted(tmp_path.glob("out-*.safetensors"))
    assert len(parts) > 2
    for part in parts:
        with checkpoints.open(part) as reader:
            (file,) = reader.provenance["source"]["files"].values()
            assert file["sha256"] != "0" * 64 and file["bytes"] == (qwen / "model.safetensors").stat().st_size
    run("convert", tmp_path, tmp_path / "back.npz", "--to", "hf-llama", "--heads", 6)


def test_refusals_leave_nothing_and_say_why(qwen, tmp_path):
    out = tmp_path / "out.safetensors"
    assert "unknown form 'flax-lnen': did you mean 'flax-linen'?" in run(
        "convert", qwen, out, "--to", "flax-lnen", code=2
    )
    assert "no suffix of a known format" in run("convert", qwen, tmp_path / "out.xyz", "--to", "flax-nnx", code=2)
    assert "no checkpoint" in run("convert", tmp_path, out, code=2)
    assert "expected a size such as 5GB" in run("convert", qwen, out, "--max-shard-size", "lots", code=2)
    (tmp_path / "broken.json").write_text("{")
    assert "not valid JSON" in run("convert", qwen, out, "--config", tmp_path / "broken.json", code=2)
    (tmp_path / "wrong.json").write_text(json.dumps({"num_hidden_layers": 3, "num_attention_heads": 6}))
    text = run("convert", qwen, out, "--to", "flax-nnx", "--config", tmp_path / "wrong.json", code=2)
    assert "num_hidden_layers is 3, found 2" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json", "wrong.json"]


def test_a_cast_is_verified_against_the_source_so_cast(qwen, tmp_path):
    text = run("convert", qwen, tmp_path / "out.npz", "--to", "flax-nnx", "--dtype", "f32", "--verify")
    assert "cast to float32" in text and "27 tensors came back byte for byte" in text


def test_values_that_are_not_finite_are_found(tmp_path):
    tensors = {"in_proj_weight": np.ones((6, 2)), "in_proj_bias": np.array([1, np.nan, 3, np.inf, 5, -np.inf])}
    tensors |= {"out_proj.weight": np.ones((2, 2)), "out_proj.bias": np.ones(2)}
    checkpoints.save(tmp_path / "a.npz", tensors)
    text = run("inspect", tmp_path / "a.npz", "--heads", 2, code=1)
    assert "in_proj_bias: 1 NaN, 2 infinite of 6" in text and "torch-mha: 1 attention layers" in text


def damaged(path, name, change):
    """The same file with one tensor changed, whose hashes are those of what it holds now."""
    with checkpoints.open(path) as reader:
        tensors, provenance, infos = dict(reader), reader.provenance, reader.infos
    tensors[name] = change(tensors[name])
    with checkpoints.create(path, infos, provenance=provenance) as writer:
        writer.write_each(tensors.__getitem__)


@pytest.mark.parametrize(("name", "change", "layer"), [
    ("model.layers.1.self_attn.query.kernel", lambda x: x[:, ::-1], None),
    ("model.layers.0.self_attn.key.kernel", lambda x: np.roll(x, 1, axis=-1), None),
    ("model.layers.1.mlp.down_proj.kernel", lambda x: np.where(x == x[3, 5], -x, x), "model.layers.1"),
    ("model.norm.scale", lambda x: -x, None),
])  # fmt: skip
def test_verify_sees_what_was_planted(name, change, layer, qwen, tmp_path):
    config = json.loads((qwen / "config.json").read_text())
    with checkpoints.open(qwen) as source:
        planned = plan(source.infos, target="flax-nnx", config=config)
        written = carry_out(planned, source, tmp_path / "out.safetensors")
        damaged(written, name, change)
        with checkpoints.open(written) as reader:
            result = verify(planned, source, reader, attention=layer is not None)
    assert not result.held and len(result.different) == 1 and not result.ran
    assert next((each.name for each in result.layers if not each.held), None) == layer


def test_attention_alone_is_verified_where_nothing_says_what_the_model_is(qwen, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((qwen / "model.safetensors").read_bytes())
    options = ("--to", "flax-nnx", "--heads", "6", "--kv-heads", "2", "--verify")
    text = run("convert", tmp_path / "model.safetensors", tmp_path / "out.safetensors", *options)
    assert "attention alone was run, since the whole model is not known" in text and "there is no config.json" in text
    rows = re.findall(
        r"(padding|causal) +(torch|jax) +(?:the source's|the file's) +weights +error (\S+) +limit (\S+) +held",
        text,
    )
    assert [row[:2] for row in rows] == [(m, t) for m in ("padding", "causal") for t in ("torch", "jax")]
    assert all(0 <= float(error) < float(limit) for *_, error, limit in rows)


def test_a_probe_settles_what_names_leave_open(tmp_path):
    """Blocks or heads: GPT-NeoX and Megatron's first checkpoints have the same names and shapes."""
    from maskattn import convert_tensors, standards
    from maskattn.config import AttentionConfig
    from maskattn.convert import layouts

    config, draw = AttentionConfig(15, 5), np.random.default_rng(4)
    shapes = layouts.get("megatron-v0").shapes(config)
    tensors = {f"attention.{name}": draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    checkpoints.save(tmp_path / "a.safetensors", tensors)
    out = tmp_path / "out.safetensors"
    text = run("convert", tmp_path / "a.safetensors", out, "--to", "flax-nnx", "--heads", 5, code=2)
    assert "megatron-v0" in text and "hf-neox" in text
    canonical = layouts.get("megatron-v0").to_canonical({n[10:]: a for n, a in tensors.items()}, config)
    query = draw.standard_normal((2, 3, 15)).astype(np.float32)
    output = standards.module_oracle(query, canonical, np.ones((2, 1, 3, 3), bool), "float32").astype(np.float32)
    checkpoints.save(tmp_path / "probe.npz", {"query": query, "output": output})
    arguments = ["convert", tmp_path / "a.safetensors", out, "--to", "flax-nnx", "--heads", 5]
    run(*arguments, "--probe", tmp_path / "probe.npz")
    expected = convert_tensors(tensors, source="megatron-v0", target="flax-nnx", config=config)
    with checkpoints.open(out) as reader:
        assert {name: reader[name].tobytes() for name in reader} == {n: a.tobytes() for n, a in expected.items()}
    checkpoints.save(tmp_path / "probe.npz", {"query": query, "output": output + 1})
    assert "no layout fits" in run(*arguments, "--probe", tmp_path / "probe.npz", code=2)


FORMATS = [
    ("flax-nnx", ".safetensors"),
    ("flax-linen", ".npz"),
    ("flax-linen", ".msgpack"),
    ("flax-linen", ".orbax"),
    ("maskattn-torch", ".pt"),
]


@pytest.mark.parametrize(("form", "suffix"), FORMATS, ids=[f"{form}{suffix}" for form, suffix in FORMATS])
def test_minilm_goes_everywhere_and_comes_back(form, suffix, tmp_path):
    folder = minilm.checkpoint_folder()
    run("convert", folder, tmp_path / f"there{suffix}", "--to", form)
    run("convert", tmp_path / f"there{suffix}", tmp_path / "back.safetensors", "--to", "hf-bert")
    with checkpoints.open(folder) as original, checkpoints.open(tmp_path / "back.safetensors") as back:
        assert set(original) == set(back) and len(original) == 104
        for name in original:
            assert original.infos[name] == back.infos[name] and original[name].tobytes() == back[name].tobytes(), name
