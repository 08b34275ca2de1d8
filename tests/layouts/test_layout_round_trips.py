import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_cases import CONFIGS, DTYPES, assert_same, tensors_for

from maskattn import convert_tensors, layouts
from maskattn.config import AttentionConfig

PAIRS = list(itertools.product(layouts.names(), repeat=2))


def holds(layout, config):
    return not layouts.get(layout).unsupported(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("source", "target"), PAIRS, ids=[f"{a} to {b}" for a, b in PAIRS])
def test_there_and_back_every_byte_is_the_same(source, target, config):
    if not holds(source, config):
        with pytest.raises(ValueError, match=f"layout {source} cannot hold this config"):
            convert_tensors({}, source=source, target=target, config=config)
        return
    for dtype in DTYPES:
        tensors = tensors_for(source, config, dtype, prefix="")
        before = {name: array.tobytes() for name, array in tensors.items()}
        if not holds(target, config):
            with pytest.raises(ValueError, match=f"layout {target} cannot hold this config"):
                convert_tensors(tensors, source=source, target=target, config=config)
            return
        there = convert_tensors(tensors, source=source, target=target, config=config)
        back = convert_tensors(there, source=target, target=source, config=config)
        assert_same(back, tensors)
        assert {name: array.tobytes() for name, array in tensors.items()} == before
        assert {n: a.shape for n, a in there.items()} == layouts.get(target).shapes(config)
        for array in there.values():
            assert array.dtype == dtype and array.flags.c_contiguous and array.flags.owndata and array.flags.writeable
            assert not any(np.shares_memory(array, given) for given in tensors.values())
        same_numbers = np.sort(np.concatenate([a.reshape(-1).view(f"u{dtype.itemsize}") for a in tensors.values()]))
        moved = np.sort(np.concatenate([a.reshape(-1).view(f"u{dtype.itemsize}") for a in there.values()]))
        assert (same_numbers == moved).all()


@pytest.mark.parametrize("layout", layouts.names())
def test_every_config_is_held_or_refused_with_reasons(layout):
    reasons = {name: layouts.get(layout).unsupported(config) for name, config in CONFIGS.items()}
    flexible = layout in ("canonical", "flax-nnx", "flax-linen", "maskattn-torch")
    expected = {
        "torch-mha": {
            "input biases only",
            "output bias only",
            "own head size",
            "grouped",
            "multi-query",
            "cross, all differ",
        },
        "hf-bert": set(CONFIGS) - {"square heads"},
    }
    assert {name for name, found in reasons.items() if found} == (set() if flexible else expected[layout])


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
    assert_same(moved, tensors)
