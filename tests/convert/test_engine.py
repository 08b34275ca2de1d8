"""One engine for whole checkpoints and for attention alone, on planned arrays that have no numbers."""

import json

import numpy as np
import pytest

from maskattn import checkpoints, convert_tensors
from maskattn.checkpoints import TensorInfo
from maskattn.config import AttentionConfig
from maskattn.convert import config_json, layouts, plan
from maskattn.convert.layouts.maskattn_torch import MaskattnTorch
from maskattn.convert.lazy import Lazy, NeedsNumbers

CONFIG = AttentionConfig(35, 5)


def tensors(prefix="a.0.attn.", layout="timm"):
    draw = np.random.default_rng(0)
    return {prefix + name: draw.standard_normal(shape) for name, shape in layouts.get(layout).shapes(CONFIG).items()}


def infos(given):
    return {name: TensorInfo(array.shape, array.dtype) for name, array in given.items()}


def planted(monkeypatch, to_canonical):
    """A layout called "timm" that does this on its way to the canonical form."""
    broken = type("Broken", (MaskattnTorch,), {"to_canonical": to_canonical})()
    monkeypatch.setattr(layouts, "_LAYOUTS", (broken, *layouts._LAYOUTS))


def test_a_broken_layout_is_no_slow_one(monkeypatch):
    def broken(self, given, config):
        return super(type(self), self).to_canonical(given, config) | {"query.kernel": None + 1}

    planted(monkeypatch, broken)
    with pytest.raises(TypeError, match="unsupported operand"):
        convert_tensors(tensors(), source="timm", target="flax-nnx", config=CONFIG)


@pytest.mark.parametrize("look", [np.asarray, lambda x: x.any(), lambda x: np.array_equal(x, x), bool, float])
def test_a_layout_that_looks_at_numbers_is_converted_when_they_are_there(monkeypatch, look):
    expected = convert_tensors(tensors(), source="timm", target="flax-nnx", config=CONFIG)

    def looking(self, given, config):
        if "proj.bias" in given:
            look(given["proj.bias"][0] if look in (bool, float) else given["proj.bias"])
        return super(type(self), self).to_canonical(given, config)

    planted(monkeypatch, looking)
    assert "as maskattn-torch does" in plan(infos(tensors()), source="timm", num_heads=5).moves[0].operation
    found = convert_tensors(tensors(), source="timm", target="flax-nnx", config=CONFIG)
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in expected.items()}


def test_a_planned_array_says_that_it_has_no_numbers():
    lazy = Lazy.read("x", (2, 3), np.dtype("f4"))
    for look in (np.asarray, bool, lambda x: x.max(), lambda x: np.allclose(x, 0), lambda x: x.view(np.uint8)):
        with pytest.raises(NeedsNumbers):
            look(lazy)
    with pytest.raises(AttributeError, match="'Lazy' object has no attribute 'detach'"):
        lazy.detach()


def test_what_a_layer_does_not_know_is_refused_by_a_plan_as_by_convert_tensors():
    given = tensors() | {"a.0.attn.adapter.weight": np.ones(3)}
    message = r"a\.0\.attn\.adapter\.weight: left over: no part of layout maskattn-torch"
    with pytest.raises(ValueError, match=message):
        plan(infos(given), source="timm", target="flax-nnx", num_heads=5, rest="keep")
    with pytest.raises(ValueError, match=message):
        convert_tensors(given, source="timm", target="flax-nnx", config=CONFIG, others="keep")


def test_separators_become_the_target_s_in_a_plan_as_in_convert_tensors():
    given = convert_tensors(tensors(), source="timm", target="flax-nnx", config=CONFIG)
    planned = plan(infos(given), source="flax-nnx", target="flax-linen")
    assert "a/0/attn/query/kernel" in planned.outputs
    there = planned.evaluate(given)
    expected = convert_tensors(given, source="flax-nnx", target="flax-linen", config=CONFIG)
    assert {name: array.tobytes() for name, array in there.items()} == {n: a.tobytes() for n, a in expected.items()}


def test_every_value_that_is_not_as_planned_is_named():
    given = {}
    for i in range(3):
        given |= tensors(f"{i}.", "hf-gpt2") | {f"{i}.bias": np.ones((1, 1, 4, 4)) if i else np.tri(4)[None, None]}
    planned = plan(infos(given), source="gpt2", target="flax-nnx", num_heads=5)
    with pytest.raises(ValueError, match=r":\n  1\.bias: not the causal mask\n  2\.bias: not the") as error:
        planned.evaluate(given)
    assert "0.bias" not in str(error.value)


def test_heads_are_found_under_every_name_and_in_params_json(tmp_path):
    assert config_json.heads({"n_heads": 32, "n_kv_heads": 8}) == (32, 8)
    assert config_json.heads({"num_attention_heads": 12}) == (12, None)
    assert config_json.heads({"num_heads": 0, "n_kv_heads": "8"}) == (None, None)
    checkpoints.save(tmp_path / "a.safetensors", tensors())
    (tmp_path / "params.json").write_text(json.dumps({"n_heads": 5}))
    told = config_json.beside(tmp_path / "a.safetensors")
    assert plan(infos(tensors()), target="flax-nnx", config=told).layers["a.0.attn"].config.num_heads == 5
