"""What --verify runs can fail: at real widths, in bfloat16, for each way that weights go wrong."""

import ml_dtypes
import numpy as np
import pytest

from maskattn import checkpoints
from maskattn.config import AttentionConfig
from maskattn.convert import plan, run, verify
from maskattn.convert._verify import _run
from maskattn.convert.layouts import CANONICAL
from tests.convert.test_plan import CONFIG, llama
from tests.frameworks import in_both

pytestmark = pytest.mark.hurried

WIDE = AttentionConfig(2048, 16, qkv_bias=False, out_bias=False)


@pytest.fixture(scope="module")
def weights():
    """Those of one layer, of a size that gives logits and outputs near 1."""
    draw = np.random.default_rng(5)
    shapes = CANONICAL.shapes(WIDE)
    made = {name: draw.standard_normal(shape, np.float32) * 2048**-0.5 for name, shape in shapes.items()}
    return {name: array.astype(ml_dtypes.bfloat16) for name, array in made.items()}


def transposed(kernel):
    return kernel.reshape(2048, 2048).T.reshape(kernel.shape)


def shuffled(kernel):
    return np.random.default_rng(6).permutation(kernel.reshape(-1)).reshape(kernel.shape)


FAULTS = {
    "none": lambda w: {},
    "zeros": lambda w: {"query.kernel": np.zeros_like(w["query.kernel"])},
    "query and key swapped": lambda w: {"query.kernel": w["key.kernel"], "value.kernel": w["query.kernel"]},
    "key and value swapped": lambda w: {"key.kernel": w["value.kernel"], "value.kernel": w["key.kernel"]},
    "transposed": lambda w: {"query.kernel": transposed(w["query.kernel"])},
    "query and key shuffled": lambda w: {name: shuffled(w[name]) for name in ("query.kernel", "key.kernel")},
    "one row off": lambda w: {"key.kernel": np.roll(w["key.kernel"], 1, axis=-1)},
    "output transposed": lambda w: {"out.kernel": transposed(w["out.kernel"])},
}


@in_both
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_width_2048_in_bfloat16_are_caught(fault, weights):
    wrong = weights | FAULTS[fault](weights)
    ran = list(_run("layer", WIDE, weights, wrong))
    assert "float32, stored in bfloat16" in ran[0].sizes
    assert all(one.held for one in ran if one.twin == "torch")
    jax = [one.held for one in ran if one.twin == "jax"]
    assert all(jax) if fault == "none" else not any(jax)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("fault", ["none", "zeros", "shuffled", "swapped", "nan"])
def test_a_tensor_that_a_step_changes_is_held_to_what_the_step_may_change(fault, dtype, tmp_path):
    """Of one layer among three, so that no run of attention sees it."""
    checkpoints.save(tmp_path / "a.safetensors", llama(dtype=dtype))
    name = "params/params/decoder/layers/self_attention/query/kernel"
    with checkpoints.open(tmp_path / "a.safetensors") as source:
        planned = plan(source.infos, target="maxtext-llama", config=CONFIG)
        assert not planned.exact
        with checkpoints.open(run(planned, source, tmp_path / "b.npz")) as written:
            tensors = dict(written)
        query = tensors[name][:, 1]
        query[...] = {
            "none": lambda: query,
            "zeros": lambda: np.zeros_like(query),
            "shuffled": lambda: np.random.default_rng(1).permutation(query.reshape(-1)).reshape(query.shape),
            "swapped": lambda: query[:, ::-1].copy(),
            "nan": lambda: np.full_like(query, np.nan),
        }[fault]()
        checkpoints.save(tmp_path / "c.npz", tensors)
        with checkpoints.open(tmp_path / "c.npz") as written:
            result = verify(planned, source, written, attention=False)
    assert result.held is (fault == "none") and len(result.near) == 3 - len(result.different)
    assert list(result.different) == ([] if fault == "none" else ["model.layers.1.self_attn.q_proj.weight"])


def test_a_head_that_was_made_of_the_embedding_is_compared_too(tmp_path):
    checkpoints.save(tmp_path / "a.safetensors", llama(tied=True))
    with checkpoints.open(tmp_path / "a.safetensors") as source:
        planned = plan(source.infos, target="meta-llama", config=CONFIG | {"tie_word_embeddings": True})
        with checkpoints.open(run(planned, source, tmp_path / "b.npz")) as written:
            tensors = dict(written)
            result = verify(planned, source, written, attention=False)
            assert result.held and len(result.same) == len(source)
        checkpoints.save(tmp_path / "c.npz", tensors | {"output.weight": tensors["output.weight"] * 0})
        with checkpoints.open(tmp_path / "c.npz") as written:
            assert list(verify(planned, source, written, attention=False).different) == ["output.weight"]


@in_both
def test_both_run_the_file_where_a_step_changes_numbers(tmp_path):
    checkpoints.save(tmp_path / "a.safetensors", llama(dtype=ml_dtypes.bfloat16))
    config = CONFIG | {"vocab_size": 13, "hidden_size": 20, "intermediate_size": 31, "head_dim": 6}
    with checkpoints.open(tmp_path / "a.safetensors") as source:
        planned = plan(source.infos, target="maxtext-llama", config=config)
        with checkpoints.open(run(planned, source, tmp_path / "b.npz")) as written:
            result = verify(planned, source, written, config=config)
    assert result.held and result.layers and len(result.near) == 3 and not result.ran
    assert any("both frameworks run those of the file" in note for note in result.notes)
