"""What two programs are given, which of it counts, and what it could not show."""

import types

import numpy as np
import pytest

from maskattn.diagnose.inputs import called, differing, kept, named, sides, unseen
from maskattn.diagnose.matching import Kept
from maskattn.diagnose.trace import Node, Trace

TOKENS = np.arange(24).reshape(2, 12)


def forward(tokens, attention_mask=None, **other):
    return tokens


def said(function=forward, **given):
    return "\n".join(unseen(function, given))


def test_inputs_are_for_both_sides_or_a_pair():
    assert sides({"a": 1}) == ({"a": 1}, {"a": 1})
    assert sides(({"a": 1}, [2])) == ({"a": 1}, [2])
    assert sides((TOKENS, TOKENS)) == ((TOKENS, TOKENS),) * 2
    with pytest.raises(TypeError, match="inputs: expected a mapping .* got ndarray"):
        sides(TOKENS)


def test_names_that_a_function_does_not_know_go_by_their_order():
    assert called(forward, {"tokens": 1}) == ((), {"tokens": 1})
    assert called(lambda x, mask: x, {"tokens": 1, "attention_mask": 2}) == ((1, 2), {})
    with pytest.raises(TypeError, match="takes tokens, mask neither by name nor in order"):
        called(lambda x: x, {"tokens": 1, "mask": 2})
    assert named(forward, [1, 2]) == {"tokens": 1, "attention_mask": 2}
    assert named(forward, {"tokens": 1, "more": 3}) == {"tokens": 1, "more": 3}


def test_padded_tokens_do_not_count():
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    assert kept({"attention_mask": np.ones((2, 3))}) is None
    assert kept({"token_types": mask}) is None
    for given in ({"attention_mask": mask}, {"key_padding_mask": mask == 0}, {"attention_mask": mask.astype(float)}):
        found = kept(given)
        assert found.of(np.arange(6).reshape(2, 3)).tolist() == [0, 1, 3, 4, 5]
        assert found.of(np.arange(12).reshape(2, 2, 3)).shape == (5, 2)
        assert found.of(np.arange(8).reshape(2, 4)).shape == (2, 4)
    assert found.of(np.arange(36).reshape(2, 2, 3, 3)).shape == (4 + 9, 2)  # of queries and of keys
    both = Kept((mask.astype(bool), np.array([[True] * 4, [False] + [True] * 3])))
    assert both.of(np.zeros((2, 4, 8))).shape == (7, 8)


def side(**inputs):
    return Trace([Node("input", name, np.asarray(one)) for name, one in inputs.items()])


def test_inputs_that_differ_are_named():
    other = TOKENS.copy()
    other[1, 2] = 99
    assert list(differing(side(tokens=TOKENS), side(x=TOKENS.astype(np.int32)))) == []
    (text,) = differing(side(tokens=TOKENS), side(x=other))
    assert text == "the inputs differ: tokens and JAX's x is 14 in PyTorch and 99 in JAX at [1, 2]"
    image = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    assert list(differing(side(image=image), side(image=image.transpose(0, 2, 3, 1)))) == []
    assert "does not hold the same numbers" in next(differing(side(image=image), side(image=image + 1e-3)))


def test_what_inputs_could_not_show_is_said():
    ones, half = np.ones((2, 12), int), np.ones((2, 12), int)
    half[0, :4] = 0
    assert "no padding: no mask is given" in said(tokens=TOKENS)
    assert "attention_mask leaves no token out" in said(tokens=TOKENS, attention_mask=ones)
    assert "padding" not in said(tokens=TOKENS, attention_mask=half)
    assert "attention_mask pads at the end alone" in said(tokens=TOKENS, attention_mask=half[:, ::-1])
    assert "one row only" in said(tokens=TOKENS[:1])
    assert "5 tokens only" in said(tokens=TOKENS[:, :5])
    positions = np.tile(np.arange(12), (2, 1))
    assert "one document only: position_ids" in said(tokens=TOKENS, position_ids=positions)
    assert "one document" not in said(tokens=TOKENS, position_ids=positions % 6)
    assert "one document only: segment_ids" in said(tokens=TOKENS, segment_ids=ones)
    assert "pixels is square" in said(pixels=np.zeros((2, 3, 8, 8)))
    assert "token_type_ids is all 0" in said(tokens=TOKENS, token_type_ids=ones * 0)


def test_windows_of_a_configuration_are_beside_the_length():
    def model(**config):
        def function(tokens):
            return tokens

        function.config = types.SimpleNamespace(**config)
        return function

    assert "12 tokens, and sliding_window is 4096" in said(model(sliding_window=4096), tokens=TOKENS)
    assert "window" not in said(model(sliding_window=8), tokens=TOKENS)
    assert "window" not in said(model(sliding_window=None), tokens=TOKENS)
    assert "window" not in said(model(sliding_window=64, use_sliding_window=False), tokens=TOKENS)
    assert "attention_window is 64" in said(model(attention_window=[64, 32]), tokens=TOKENS)
    assert "sliding_window is 99" in said(model(text_config=types.SimpleNamespace(sliding_window=99)), tokens=TOKENS)
    assert "no input of the decoder" in said(model(is_encoder_decoder=True), tokens=TOKENS)
