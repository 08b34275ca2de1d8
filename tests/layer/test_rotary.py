"""Frequencies of rotary embeddings against the published code's, and what is refused."""

import numpy as np
import pytest

from maskattn import standards
from maskattn.layer import DynamicNTK, LinearScaling, Llama3, LongRope, Rotary, Yarn

#: (rope_parameters of transformers, ours), for heads of 16 of which 12 are turned
SCALINGS = {
    "default": ({"rope_type": "default"}, None),
    "linear": ({"rope_type": "linear", "factor": 3.0}, LinearScaling(3.0)),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.5}, DynamicNTK(2.5, trained=20)),
    "yarn": (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 8.0,
            "beta_slow": 1.5,
        },
        Yarn(4.0, trained=32, fast=8.0, slow=1.5),
    ),
    "yarn-ramp": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "truncate": False},
        Yarn(4.0, trained=32, whole=False),
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        Llama3(8.0, low=1.0, high=4.0, trained=32),
    ),
    "longrope": (
        {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [2.0, 2.2, 2.4, 2.6, 2.8, 3.0],
            "original_max_position_embeddings": 5,
        },
        LongRope((1.0, 1.1, 1.2, 1.3, 1.4, 1.5), (2.0, 2.2, 2.4, 2.6, 2.8, 3.0), trained=5, by=4.0),
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("length", [4, 41])
def test_frequencies_are_those_of_transformers(name, length):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given, scaling = SCALINGS[name]
    given = {**given, "rope_theta": 500.0, "partial_rotary_factor": 0.75}
    config = transformers.LlamaConfig(
        hidden_size=48, num_attention_heads=3, head_dim=16, max_position_embeddings=20, rope_parameters=given
    )
    if given["rope_type"] == "default":
        theirs, factor = 500.0 ** (-np.arange(6) / 6), 1.0
    else:
        made, factor = ROPE_INIT_FUNCTIONS[given["rope_type"]](config, "cpu", seq_len=length)
        theirs = made.double().numpy()
    rotary = Rotary(theta=500.0, width=12, scaling=scaling)
    ours = rotary.frequencies(16, length)
    assert ours.dtype == np.float32 and ours.shape == (6,)
    assert np.max(np.abs(ours / theirs - 1)) <= standards.value("published.float32")
    assert abs(rotary.factor / factor - 1) <= standards.eps("float32")
    if name == "longrope":
        assert not np.array_equal(rotary.frequencies(16, 5), rotary.frequencies(16, 6))


def test_what_is_rounded_once_is_the_nearest_float32():
    ours = Rotary(theta=10000.0).frequencies(128)
    right = np.longdouble(10000.0) ** (-np.arange(64, dtype=np.longdouble) / 64)
    assert np.array_equal(ours, right.astype(np.float32))


def test_axes_share_the_pairs():
    rotary = Rotary(theta=100.0, axes=(2, 4))
    again = Rotary(theta=100.0, axes=(2, 4), restart=False)
    parts = [100.0 ** (-np.arange(n) / n) for n in (2, 4)]
    assert np.array_equal(rotary.frequencies(12), np.concatenate(parts).astype(np.float32))
    assert np.array_equal(again.frequencies(12), Rotary(theta=100.0).frequencies(12))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Rotary(width=5), "width must be even, pairs are turned, got 5"),
        (lambda: Rotary(pairs="thirds"), "pairs must be one of half, interleaved, got 'thirds'"),
        (lambda: Rotary(scaling=2.0), "scaling .* must be a Scaling, got 2.0"),
        (lambda: Llama3(8.0, low=4.0, high=4.0, trained=32), "low must be below high, got 4.0 and 4.0"),
        (lambda: LongRope((1.0,), (1.0, 2.0), trained=4), "short and long must be one per pair each, got 1 and 2"),
        (lambda: LongRope((1.0, -1.0), (1.0, 2.0), trained=4), r"short\[1\] must be positive and finite, got -1.0"),
    ],
)
def test_wrong_fields_are_named(made, words):
    with pytest.raises((TypeError, ValueError), match=words):
        made()


def test_what_heads_cannot_be_turned_is_named():
    assert Rotary().misfits(8) == [] == Rotary(width=6).misfits(8)
    assert "at most head_dim 8, got 10" in Rotary(width=10).misfits(8)[0]
    assert "width must be even" in Rotary().misfits(7)[0]
    assert "axes must have 4 pairs together, got (1, 2)" in Rotary(axes=(1, 2)).misfits(8)[0]
    assert "scaling must have 4 numbers" in Rotary(scaling=LongRope((1.0,), (2.0,), trained=4)).misfits(8)[0]
