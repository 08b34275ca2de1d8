"""Every family: a random model, saved by its own library, converted out and back: the same bytes, dtype included."""

import numpy as np
import pytest

from maskattn import checkpoints
from maskattn.convert import families, plan, run, verify
from maskattn.convert._match import matches
from tests.convert.saved_models import MODELS, build, saved
from tests.twin import same_tensors

# The same model as another library has it. A pair stands where every tensor has its place in both.
PAIRS = [
    ("bert", "flax-bert"),
    ("roberta", "flax-bert"),
    ("electra", "flax-bert"),
    ("vit", "hf-vit-memory"),
    ("vit", "timm-vit"),
    ("vit", "vit-npz"),
    ("vit", "big-vision"),
    ("vit-pooled", "vit-npz"),
    ("deit", "timm-vit"),
    ("deit", "hf-deit-memory"),
    ("mae", "mae"),
    ("mae", "hf-vit-mae"),
    ("dinov2", "dinov2"),
    ("dinov2", "hf-dinov2-memory"),
    ("dinov2-registers", "dinov2"),
    ("swin", "swin"),
    ("swin", "timm-swin"),
    ("swin", "hf-swin-memory"),
    ("swinv2", "swinv2"),
    ("swinv2", "timm-swinv2"),
    ("gpt2", "flax-gpt2"),
    ("mistral", "meta-llama"),
    ("mistral", "maxtext-qwen3"),
    ("qwen3", "maxtext-qwen3"),
    ("clip", "openai-clip"),
]


def there_and_back(source, target, folder, config, **options):
    """Converts the file, and the result with nothing but what it says of itself; gives both ends."""
    with checkpoints.open(source) as reader:
        first = plan(reader.infos, target=target, config=config, **options)
        there = run(first, reader, folder / "there.safetensors")
        original = dict(reader)
        with checkpoints.open(there) as middle:
            result = verify(first, reader, middle, attention=False)
            assert result.held and len(result.same) == len(original)
            undo = plan(
                middle.infos,
                source=target if "maxtext" in target else "auto",
                target=first.forms[0].family.name,
                provenance=middle.provenance,
            )
            back = run(undo, middle, folder / "back.safetensors")
    with checkpoints.open(back) as reader:
        same_tensors(original, dict(reader))
    return first, original


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_goes_to_flax_and_back(name, tmp_path):
    folder, config = saved(name, "bfloat16" if len(name) % 2 else "float32", tmp_path / "saved")
    planned, original = there_and_back(folder, "flax-nnx", tmp_path, config)
    assert planned.source == MODELS[name][0] and planned.exact and not planned.dropped
    assert {len(shape.shape) for shape in original.values()} >= {1, 2}
    leaves = {name.rpartition(".")[2] for name in planned.outputs}
    assert "weight" not in leaves and {"kernel", "bias"} & leaves


@pytest.mark.parametrize("name", ["bert", "swin", "t5", "qwen3", "clip", "gpt2", "falcon-40b"])
def test_layers_are_stacked_and_taken_apart(name, tmp_path):
    folder, config = saved(name, "bfloat16", tmp_path / "saved")
    planned, original = there_and_back(folder, "flax-linen", tmp_path, config, scan=True)
    assert planned.target.endswith("flax-linen, layers stacked") and len(planned.moves) < len(original)


@pytest.mark.parametrize(("name", "other"), PAIRS, ids=[f"{a} to {b}" for a, b in PAIRS])
def test_a_family_becomes_another_of_its_model_and_comes_back(name, other, tmp_path):
    folder, config = saved(name, "bfloat16", tmp_path / "saved")
    planned, _ = there_and_back(folder, other, tmp_path, config)
    assert planned.target.startswith(other) and planned.exact


@pytest.mark.parametrize("name", ["vit", "swin", "dinov2"])
def test_what_transformers_holds_in_memory_is_the_family_of_that_name(name):
    state = {key: value.detach().numpy() for key, value in build(name, "float32").state_dict().items()}
    infos = {key: checkpoints.TensorInfo(array.shape, array.dtype) for key, array in state.items()}
    (found,) = matches(infos)
    assert found.form.family.name == f"hf-{name}-memory"


def test_every_family_is_tried():
    tried = {MODELS[name][0] for name in MODELS} | {other for _, other in PAIRS}
    elsewhere = {"maxtext-llama", "maxtext-mistral"}  # arithmetic: tests/convert/test_plan.py
    assert tried | elsewhere == {family.name for family in families.all_families()}  # of all others: test_rows.py


def test_sizes_tell_a_transpose():
    """A test on square matrices could not fail: most matrices here are not square."""
    shapes = [tuple(p.shape) for p in build("bert", "float32").parameters() if p.ndim == 2]
    assert sum(a != b for a, b in shapes) >= len(shapes) // 3
    assert all(np.prod(shape) > 0 for shape in shapes)
