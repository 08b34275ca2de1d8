"""Tables that a model computes are left out of other forms, and come back with their very bytes."""

import base64
import zlib

import numpy as np
import pytest

from maskattn import checkpoints
from maskattn.convert import _tables, plan, run
from tests.convert.test_plan import CONFIG, infos, llama
from tests.twin import same_tensors

FREQUENCIES = (1 / 10000 ** (np.arange(0, 6, 2) / 6)).astype(np.float32)


def with_frequencies(tensors, **other):
    names = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": FREQUENCIES for i in range(3)}
    return tensors | names | other


def there(tensors, path, target):
    checkpoints.save(path / "model.safetensors", tensors)
    with checkpoints.open(path / "model.safetensors") as reader:
        planned = plan(reader.infos, target=target, config=CONFIG, provenance=reader.provenance)
        return planned, run(planned, reader, path / "there.npz")


def test_they_come_back_from_any_form(tmp_path):
    tensors = with_frequencies(llama(head_dim=4))
    for target in ("meta-llama", "flax-nnx", "maxtext-llama", "hf-llama"):
        planned, written = there(tensors, tmp_path, target)
        assert planned.exact and bool(planned.tables) is (target != "hf-llama")
        assert all("kept for the way back" in planned.dropped[name] for name in planned.tables)
        with checkpoints.open(written) as middle:
            undo = plan(middle.infos, provenance=middle.provenance)
            back = run(undo, middle, tmp_path / "back.npz")
        with checkpoints.open(back) as reader:
            same_tensors({name: tensors[name] for name in reader}, dict(reader))
            assert set(reader) == set(tensors)


def test_they_come_back_over_a_third_form(tmp_path):
    tensors = with_frequencies(llama(head_dim=4))
    _, first = there(tensors, tmp_path, "meta-llama")
    with checkpoints.open(first) as reader:
        second = run(plan(reader.infos, target="flax-linen", provenance=reader.provenance), reader, tmp_path / "b.npz")
    with checkpoints.open(second) as reader:
        assert plan(reader.infos, provenance=reader.provenance).outputs == infos(tensors)


def test_what_is_no_such_table_is_refused(tmp_path):
    noise = np.random.default_rng(0).standard_normal(2**14).astype(np.float32)
    tensors = with_frequencies(llama(head_dim=4), **{"model.layers.1.self_attn.rotary_emb.inv_freq": noise})
    with pytest.raises(ValueError, match=r"layers.1.self_attn.rotary_emb.inv_freq: .* no table that a model computes"):
        there(tensors, tmp_path, "meta-llama")
    assert not (tmp_path / "there.npz").exists()


def test_equal_ones_are_kept_once_and_a_mask_takes_little_room():
    tables = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 512, 512), np.float32)) for i in range(4)}
    tables |= {"masked_bias": np.float32(-1e4), "index": np.arange(9, dtype=np.int64).reshape(3, 3), "no": np.ones(0)}
    packed = _tables.pack(tables, tables.__getitem__)
    assert len(packed["contents"]) == 4 and len(packed["contents"][0]["zlib"]) < 8000
    found = _tables.unpack({"tables": {"hf-gpt2": packed}})["hf-gpt2"]
    same_tensors({name: np.asarray(array) for name, array in tables.items()}, found)


def content(**changed):
    data = base64.b64encode(zlib.compress(bytes(12))).decode()
    return {"dtype": "float32", "shape": [3], "zlib": data} | changed


@pytest.mark.parametrize("wrong", [
    content(shape=[4]), content(shape=[2]), content(shape=[-3]), content(shape=[2**40]), content(dtype="object"),
    content(dtype="x"), content(zlib="????"), content(zlib="aaaa"), {"dtype": "float32"}, 7,
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValueError, match="provenance: tables cannot be read"):
        _tables.unpack({"tables": {"f": {"contents": [wrong], "tensors": {"a": 0}}}})
    with pytest.raises(ValueError, match="provenance: tables cannot be read"):
        _tables.unpack({"tables": {"f": {"contents": [content()], "tensors": {"a": 1}}}})
