import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn import convert_tensors
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from tests.convert.layouts.layout_cases import CONFIGS, DTYPES, tensors_for
from tests.twin import same_tensors

# Layouts that do arithmetic, which random bits do not survive: test_maxtext.py.
MOVING = [name for name in layouts.names() if name not in ("maxtext-scaled", "maxtext-llama")]


def holds(layout, config):
    return not layouts.get(layout).unsupported(config)


@pytest.mark.parametrize("layout", MOVING)
def test_to_the_canonical_form_and_back_every_byte_is_the_same(layout):
    held = [config for config in CONFIGS.values() if holds(layout, config)]
    assert held
    for config, dtype, every in itertools.product(held, DTYPES, (True, False)):
        tensors = tensors_for(layout, config, dtype, every=every)
        before = {name: array.tobytes() for name, array in tensors.items()}
        there = convert_tensors(tensors, source=layout, target="canonical", config=config)
        back = convert_tensors(there, source="canonical", target=layout, config=config)
        same_tensors(back, tensors)
        assert {name: array.tobytes() for name, array in tensors.items()} == before
        extras = layouts.get(layout).extras_of(tensors, config)
        assert {n: a.shape for n, a in there.items()} == layouts.get("canonical").shapes(config, extras)
        for array in there.values():
            assert array.dtype == dtype and array.flags.c_contiguous and array.flags.owndata and array.flags.writeable
            assert not any(np.shares_memory(array, given) for given in tensors.values())
        if not layouts.steps(layout, "canonical", config, tensors):
            given, moved = (
                np.sort(np.concatenate([a.reshape(-1).view(f"u{dtype.itemsize}") for a in part.values()]))
                for part in (tensors, there)
            )
            assert (given == moved).all()


@pytest.mark.parametrize("source", MOVING)
def test_there_and_back_through_every_other_layout(source):
    for config, target in itertools.product(CONFIGS.values(), MOVING):
        given = {"source": source, "target": target, "config": config}
        if not holds(source, config):
            with pytest.raises(ValueError, match=f"layout {source} cannot hold this config"):
                convert_tensors({}, **given)
            continue
        tensors = tensors_for(source, config)
        if not holds(target, config):
            with pytest.raises(ValueError, match=f"layout {target} cannot hold this config"):
                convert_tensors(tensors, **given)
            continue
        extras = layouts.get(source).extras_of(tensors, config)
        if layouts.get(target).misfits(extras, config):
            with pytest.raises(ValueError, match=r"has no place for it|cannot do without it"):
                convert_tensors(tensors, **given)
            continue
        if config.qkv_bias and not layouts.get(target).key_bias and layouts.get(source).key_bias:
            with pytest.raises(ValueError, match=r"key\.bias: .* is not \+0 everywhere"):
                convert_tensors(tensors, **given)
            continue
        there = convert_tensors(tensors, **given)
        same_tensors(convert_tensors(there, source=target, target=source, config=config), tensors)


ANY = set(CONFIGS)
SQUARE = {"square heads", "no biases", "input biases only", "output bias only"}
HEADS = SQUARE | {"multi-query", "grouped, one head size", "grouped, pairs", "scale one"}
HELD = {
    "canonical": ANY,
    "maskattn-torch": ANY,
    "flax-nnx": ANY,
    "flax-linen": ANY,
    "torch-mha": {"square heads", "no biases", "cross"},
    "hf-bert": {"square heads"},
    "hf-vit": {"square heads", "output bias only"},
    "hf-swin": {"square heads", "output bias only"},
    "hf-swin-memory": {"square heads", "output bias only"},
    "hf-swin-v2": {"square heads", "output bias only"},
    "swin": SQUARE | {"scale one"},
    "timm-swin": SQUARE | {"scale one"},
    "swin-v2": SQUARE,
    "hf-gpt2": {"square heads"},
    "hf-gpt2-cross": {"square heads"},
    "hf-llama": HEADS,
    "meta-llama": {"grouped, pairs"},
    "hf-neox": SQUARE | {"grouped, pairs"},
    "megatron-v0": SQUARE | {"grouped, pairs"},
    "hf-phi3": {"no biases", "grouped, pairs", "scale one"},
    "hf-t5": {"scale one"},
    "hf-clip": {"square heads"},
    "hf-whisper": {"square heads"},
    "hf-beit-memory": {"square heads"},
    "hf-deberta": {"square heads"},
    "hf-longformer": {"square heads"},
    "flax-bert": {"square heads"},
    "flax-gpt2": {"square heads"},
    "flax-gpt2-cross": {"square heads"},
    "alpa": {"square heads"},
    "maxtext": {"square heads", "no biases", "multi-query", "grouped, pairs", "grouped, one head size", "scale one"}
    | {"cross"},
    "maxtext-scaled": {"square heads", "no biases", "multi-query", "grouped, pairs", "grouped, one head size", "cross"},
    "maxtext-llama": {"grouped, pairs"},
    "haliax": ANY,
    "levanter": ANY,
    "keras": {"square heads", "no biases", "own head size", "multi-query", "grouped, one head size", "grouped, pairs"}
    | {"cross"},
    "equinox": SQUARE | {"own head size", "cross"},
}


@pytest.mark.parametrize("layout", layouts.names())
def test_every_config_is_held_or_refused_with_reasons(layout):
    assert {name for name, config in CONFIGS.items() if holds(layout, config)} == HELD[layout]


def test_a_scale_of_ones_own_is_refused_where_the_module_has_none():
    config = AttentionConfig(35, 5, scale=0.5)
    assert "scale is 0.5" in layouts.get("torch-mha").unsupported(config)[0]
    assert "scale is 0.5" in layouts.get("hf-bert").unsupported(config)[0]
    assert not layouts.get("torch-mha").unsupported(AttentionConfig(20, 5, scale=0.5))


def test_a_module_without_projections_has_nothing_to_convert():
    config = AttentionConfig(35, 5, project=False)
    assert convert_tensors({}, source="timm", target="flax-nnx", config=config) == {}
    with pytest.raises(ValueError, match="project is False"):
        convert_tensors({}, source="timm", target="torch-mha", config=config)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_round_trips_of_drawn_configs(data):
    kv_heads, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    size = st.integers(1, 7)
    config = AttentionConfig(
        data.draw(size),
        kv_heads * groups,
        num_kv_heads=kv_heads,
        head_dim=data.draw(size),
        v_head_dim=data.draw(size),
        kdim=data.draw(st.none() | size),
        vdim=data.draw(st.none() | size),
        out_dim=data.draw(size),
        qkv_bias=data.draw(st.booleans()),
        out_bias=data.draw(st.booleans()),
    )
    able = st.sampled_from(["canonical", "maskattn-torch", "flax-nnx", "flax-linen"])
    names = [data.draw(able) for _ in range(3)]
    prefixes = ["", "blocks.0.attn.", "blocks.1.attn."]
    separator = layouts.get(names[0]).separator
    tensors = {}
    for prefix in prefixes:
        tensors |= tensors_for(names[0], config, data.draw(st.sampled_from(DTYPES)), prefix.replace(".", separator))
    moved = tensors
    for source, target in zip(names, [*names[1:], names[0]], strict=True):
        moved = convert_tensors(moved, source=source, target=target, config=config)
    same_tensors(moved, tensors)
