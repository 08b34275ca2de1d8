"""The attention layers of any checkpoint of a known layout; what must be found wrong."""

import dataclasses
import io
import json

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from maskattn import checkpoints, convert_tensors
from maskattn.cli.parity import command
from maskattn.config import AttentionConfig
from maskattn.convert import layouts, twins
from maskattn.parity.checkpoint import verify
from maskattn.parity.checkpoint.against import compare
from maskattn.parity.checkpoint.result import CheckpointResult
from maskattn.parity.checkpoint.verify import verify_checkpoint
from maskattn.parity.report import checkpoint as report
from tests.frameworks import in_both

pytestmark = pytest.mark.hurried

PREFIX = "encoder.layer.{}.attention."
GROUPED = AttentionConfig(30, 6, num_kv_heads=2, head_dim=7, v_head_dim=3, out_dim=11)
PLAIN = AttentionConfig(35, 5)


def printed(result):
    out = io.StringIO()
    report.render(result, Console(file=out, width=80))
    return out.getvalue()


def write(path, layout, config, layers=("0", "1"), dtype=np.float32, seed=0, change=None):
    draw = np.random.default_rng(seed)
    separator = layouts.get(layout).separator
    tensors = {}
    canonical = {
        f"{PREFIX.format(i)}{name}": (draw.standard_normal(shape) / 4).astype(dtype)
        for i in layers
        for name, shape in layouts.get("canonical").shapes(config).items()
    }
    if change is not None:
        canonical[change].reshape(-1)[3] *= np.float32(1 + 2**-5)
    tensors = convert_tensors(canonical, source="canonical", target=layout, config=config)
    assert all(separator in name for name in tensors)
    checkpoints.save(path, tensors)
    return tensors


@in_both
def test_any_checkpoint_of_a_known_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "LENGTHS", (5,))  # JAX compiles one shape
    write(tmp_path / "a.safetensors", "timm", GROUPED, layers=("2", "10"))
    write(tmp_path / "b.npz", "flax-linen", GROUPED, layers=("2", "10"))
    seen = []
    given = {"num_heads": 6, "num_kv_heads": 2}
    result = verify_checkpoint(tmp_path / "a.safetensors", against=tmp_path / "b.npz", progress=seen.append, **given)
    assert result.exit_code == 0, result.first_difference
    assert seen == [layer.name for layer in result.layers] == [PREFIX.format(i) for i in ("2", "10")]
    assert all(layer.twins.keys() == {"torch", "jax"} and layer.differing == 0 for layer in result.layers)
    assert "the same tensors, byte for byte" in printed(result).replace("\n", " ")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 6, "num_key_value_heads": 2}))
    arguments = ["checkpoint", str(tmp_path / "a.safetensors"), "--json", str(tmp_path / "out.json")]
    found = CliRunner().invoke(command, arguments)
    assert found.exit_code == 0 and "2 layers and heads: all held" in found.output
    assert json.loads((tmp_path / "out.json").read_text())["judge"] == "float64 oracle"


@in_both
def test_cross_attention_in_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "LENGTHS", (3,))
    config = AttentionConfig(35, 5, kdim=11, vdim=13)
    write(tmp_path / "a.safetensors", "torch-mha", config, layers=("0",), dtype=ml_dtypes.bfloat16)
    result = verify_checkpoint(tmp_path / "a.safetensors", num_heads=5)
    assert result.exit_code == 0, result.first_difference
    assert result.kind == "torch-mha" and len(result.layers) == 1


@pytest.mark.parametrize("fault", ["weights", "output", "alone", "nan"])
@in_both
def test_what_differs_is_named_by_layer_and_tensor(tmp_path, monkeypatch, fault):
    """The faults are planted in one twin's second layer."""
    monkeypatch.setattr(verify, "LENGTHS", (3, 2))
    write(tmp_path / "a.safetensors", "hf-bert", PLAIN)
    built = []

    class Faulty(twins.TorchTwin):
        name = "jax"

        def __init__(self, *given):
            built.append(self)
            self.faulty = len(built) == 2
            super().__init__(*given)

        def dump(self):
            held = super().dump()
            if self.faulty and fault == "weights":
                held["value.kernel"][2, 1, 3] = -held["value.kernel"][2, 1, 3]
            return held

        def __call__(self, inputs, lengths, kernel):
            output = super().__call__(inputs, lengths, kernel)
            if self.faulty and kernel == "exact" and (lengths is None if fault == "alone" else fault == "output"):
                output.reshape(-1)[7:8].view(np.uint32)[0] ^= 1  # the last bit of one number
            if self.faulty and kernel == "reference" and fault == "nan":
                output[0, 1, 2] = np.nan
            return output

    monkeypatch.setattr(twins, "JaxTwin", Faulty)
    result = verify_checkpoint(tmp_path / "a.safetensors", num_heads=5)
    assert result.exit_code == 1
    assert result.layers[0].first_difference is None
    expected = {
        "weights": ": value.kernel: 1 of 1225 differ, first at [2, 1, 3]",
        "output": ": output: 1 of 210 differ, first at [0, 0, 7]",
        "alone": ": output: 2 of 175 differ, first at [7]",
        "nan": ": jax is off by nan",
    }
    assert result.first_difference.startswith(PREFIX.format(1)[:-1] + expected[fault])
    text = " ".join(printed(result).split())
    assert "FAILED, first at " + PREFIX.format(1)[:-1] in text
    assert json.loads(report.as_json(result))["exit_code"] == 1


def test_no_layer_is_a_failure(tmp_path):
    with pytest.raises(ValueError, match="no attention layer of a known layout"):
        checkpoints.save(tmp_path / "a.npz", {"x": np.ones(3)})
        verify_checkpoint(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"no attention layer of layout hf-bert found among 1 tensors"):
        verify_checkpoint(tmp_path / "a.npz", layout="hf-bert")
    empty = CheckpointResult("a.npz", "hf-bert", "nobody", "nothing", ())
    assert empty.exit_code == 1 and "nothing was compared" in printed(empty)


def test_unknown_heads_and_broken_layers_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = write(path, "hf-bert", PLAIN)
    with pytest.raises(ValueError, match=r"layer 'encoder\.layer\.0\.attention\.': num_heads is needed"):
        verify_checkpoint(path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        verify_checkpoint(path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    with pytest.raises(ValueError, match="35 is not a multiple of 4"):
        verify_checkpoint(path)
    del tensors[PREFIX.format(1) + "self.key.bias"]
    checkpoints.save(path, tensors)
    tensors[PREFIX.format(0) + "self.key.bias"] = np.ones(3)
    checkpoints.save(path, tensors)
    with pytest.raises(
        ValueError, match=r"(?s)0\.attention\.self\.key\.bias: expected.*1\.attention\.self\.key\.bias: missing"
    ):
        verify_checkpoint(path, num_heads=5, layout="hf-bert")
    found = CliRunner().invoke(command, ["checkpoint", str(tmp_path / "b.npz")])
    assert found.exit_code == 2 and "nothing was proven: path: no checkpoint at" in found.output


def moves(layout):
    """Whether it holds a plain layer, with no extra that it cannot do without and no step but moving numbers."""
    return not (layout.unsupported(PLAIN) or layout.misfits({}, PLAIN) or layout.writing(PLAIN))


def test_checkpoints_compared_through_the_canonical_form(tmp_path):
    able = [name for name in layouts.names() if moves(layouts.get(name))]
    paths = {layout: tmp_path / f"{layout}.safetensors" for layout in able}
    for layout, path in paths.items():
        write(path, layout, PLAIN)
    for layout, path in paths.items():
        assert compare(path, paths["hf-bert"], layout=layout, num_heads=5) is None
    for tensor in ("key.kernel", "out.bias"):
        write(tmp_path / "changed.npz", "timm", PLAIN, change=PREFIX.format(1) + tensor)
        difference = compare(paths["torch-mha"], tmp_path / "changed.npz", num_heads=5)
        assert difference.startswith(f"{PREFIX.format(1)}{tensor}: 1 of")
    write(tmp_path / "fewer.npz", "timm", PLAIN, layers=("0",))
    assert "no such layer in" in compare(paths["maskattn-torch"], tmp_path / "fewer.npz", num_heads=5)
    assert "no such layer in" in compare(tmp_path / "fewer.npz", paths["torch-mha"], num_heads=5)
    write(tmp_path / "half.npz", "flax-nnx", PLAIN, dtype=np.float16)
    assert "float32[35, 5, 7] against float16[35, 5, 7]" in compare(
        paths["hf-bert"], tmp_path / "half.npz", num_heads=5
    )
    without = dataclasses.replace(PLAIN, out_bias=False)
    write(tmp_path / "without.npz", "flax-nnx", without, seed=0)
    assert compare(tmp_path / "without.npz", paths["hf-bert"], num_heads=5) is not None
