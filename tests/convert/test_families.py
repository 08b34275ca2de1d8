"""Every family of other libraries, and every form: a saved model is converted there and back, to the same bytes."""

import pytest

from maskattn import checkpoints
from maskattn.convert import families, plan, run, verify
from maskattn.convert._match import matches
from tests.convert.saved_models import build, saved
from tests.twin import same_tensors

# The same model as another library has it. A pair stands where every tensor has its place in both.
PAIRS = [
    ("bert+pretrained", "hf-bert", "flax-bert"),
    ("roberta", "hf-bert", "flax-bert"),
    ("electra+replaced", "hf-bert", "flax-bert"),
    ("vit", "hf-vit", "hf-vit-memory"),
    ("vit", "hf-vit", "timm-vit"),
    ("vit", "hf-vit", "vit-npz"),
    ("vit", "hf-vit", "big-vision"),
    ("vit+pooled", "hf-vit", "vit-npz"),
    ("deit", "hf-vit", "timm-vit"),
    ("deit+teacher", "hf-deit", "timm-vit"),
    ("deit+teacher", "hf-deit", "hf-deit-memory"),
    ("vit_mae", "hf-vit-mae-v5", "mae"),
    ("vit_mae", "hf-vit-mae-v5", "hf-vit-mae"),
    ("dinov2+base", "hf-dinov2", "dinov2"),
    ("dinov2", "hf-dinov2", "hf-dinov2-memory"),
    ("dinov2+gated", "hf-dinov2", "dinov2"),
    ("swin", "hf-swin", "swin"),
    ("swin", "hf-swin", "timm-swin"),
    ("swin", "hf-swin", "hf-swin-memory"),
    ("swinv2", "hf-swinv2", "swinv2"),
    ("swinv2", "hf-swinv2", "timm-swinv2"),
    ("gpt2+cross", "hf-gpt2", "flax-gpt2"),
    ("mistral+full", "hf-llama", "meta-llama"),
    ("mistral+full", "hf-llama", "maxtext-qwen3"),
    ("qwen3", "hf-llama", "maxtext-qwen3"),
    ("clip", "hf-clip", "openai-clip"),
    ("bloom", "hf-bloom", "flax-nnx"),
    ("falcon+groups", "hf-falcon", "flax-nnx"),
    ("gpt_neox", "hf-gpt-neox", "maskattn-torch"),
    ("phi3", "hf-phi3", "flax-linen"),
    ("t5+encoder", "hf-t5-encoder", "flax-nnx"),
    ("clip_text_model", "hf-clip-text", "flax-nnx"),
    ("clip_vision_model+embeds", "hf-clip-vision", "torch-mha"),
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


@pytest.mark.parametrize("name", ["bert", "swin", "t5", "qwen3", "clip", "gpt2+cross", "falcon+groups"])
def test_layers_are_stacked_and_taken_apart(name, tmp_path):
    folder, config = saved(name, "bfloat16", tmp_path / "saved")
    planned, original = there_and_back(folder, "flax-linen", tmp_path, config, scan=True)
    assert planned.target.endswith("flax-linen, layers stacked") and len(planned.moves) < len(original)


@pytest.mark.parametrize(("name", "source", "other"), PAIRS, ids=[f"{a} to {b}" for a, _, b in PAIRS])
def test_a_family_becomes_another_of_its_model_and_comes_back(name, source, other, tmp_path):
    folder, config = saved(name, "bfloat16", tmp_path / "saved")
    planned, _ = there_and_back(folder, other, tmp_path, config)
    assert planned.source == source and other in planned.target and planned.exact and not planned.dropped


@pytest.mark.parametrize("name", ["vit", "swin", "dinov2"])
def test_what_transformers_holds_in_memory_is_the_family_of_that_name(name):
    state = {key: value.detach().numpy() for key, value in build(name, "float32").state_dict().items()}
    infos = {key: checkpoints.TensorInfo(array.shape, array.dtype) for key, array in state.items()}
    (found,) = matches(infos)
    assert found.form.family.name == f"hf-{name}-memory"


def test_every_family_is_tried():
    tried = {name for _, *both in PAIRS for name in both} | {"hf-t5", "hf-llama"}
    elsewhere = {"maxtext-llama", "maxtext-mistral"}  # arithmetic: tests/convert/test_plan.py
    assert tried | elsewhere >= {family.name for family in families.all_families()}  # of all others: test_rows.py
