"""Wrong calls of public entries, each met by an error that names the argument."""

import numpy as np
import pytest
from click.testing import CliRunner

from maskattn import checkpoints, masks
from maskattn.cli.main import main
from maskattn.convert import layouts
from maskattn.parity.attention import adapters
from tests.frameworks import jax, maskattn_jax, maskattn_torch

FAR = 2**31 - 1
CALLS = {
    "lint": (lambda: masks.lint(3, 1, 1), TypeError, "lint: mask must be a Mask, got 3"),
    "draw": (lambda: masks.draw("causal", 1, 1), TypeError, "draw: mask must be a Mask"),
    "draw batch": (
        lambda: masks.draw(masks.KeyPadding([1, 2]), 2, 2, batch=7),
        ValueError,
        "batch must be less than 2",
    ),
    "to_dense jax": (lambda: maskattn_jax.lower.to_dense(3, 1, 3), TypeError, "to_dense: mask must be a Mask"),
    "to_dense torch": (lambda: maskattn_torch.lower.to_dense(3, 1, 3), TypeError, "to_dense: mask must be a Mask"),
    "why row": (lambda: masks.KeyPadding([2]).why(0, 0, -1, 0), ValueError, "q must be at least 0, got -1"),
    "why batch": (lambda: masks.KeyPadding([2, 2]).why(5, 0, 0, 0), ValueError, "b must be less than batch 2, got 5"),
    "why float": (lambda: masks.Causal().why(0, 0, 1.5, 0), TypeError, "q must be an int"),
    "and array": (lambda: masks.Causal() & np.ones((2, 2), bool), TypeError, "masks.Dense"),
    "array and": (lambda: np.ones((2, 2), bool) & masks.Causal(), TypeError, "masks.Dense"),
    "or tensor": (lambda: jax.numpy.ones((2, 2), bool) | masks.Causal(), TypeError, "masks.Dense"),
    "detect": (lambda: layouts.detect([1]), TypeError, "tensors: expected a mapping"),
    "open": (lambda: checkpoints.open(None), TypeError, "path: expected a str or a path, got NoneType"),
    "load variables": (
        lambda: maskattn_jax.params.load({"params": {}}, {}),
        TypeError,
        "load takes the module or an AttentionConfig",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), CALLS.values(), ids=CALLS)
def test_a_wrong_call_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


FAR_MASKS = [
    masks.Causal(FAR),
    masks.Causal().at(FAR - 1, FAR - 1),
    masks.Causal().at(np.array([FAR - 1]), 0),
    masks.SlidingWindow(2**40, 0),
    masks.PerHead([masks.Causal(FAR)]),
]


@pytest.mark.parametrize("mask", FAR_MASKS, ids=repr)
def test_what_would_overflow_int32_in_jax_is_refused_there_and_right_elsewhere(mask):
    with pytest.raises(ValueError, match="2\\*\\*30: positions are int32"):
        maskattn_jax.lower.to_dense(mask, 4, 4)
    assert np.array_equal(maskattn_torch.lower.to_dense(mask, 4, 4).numpy(), mask.dense(4, 4))


def test_far_dilation_does_not_overflow_and_seeds_are_not_positions():
    for mask in (masks.Dilated(2**20, 2**12), masks.RandomBlocks(FAR, 2, 1, 2)):
        assert np.array_equal(maskattn_jax.lower.to_dense(mask, 4, 4), mask.dense(4, 4))


class Nameless:
    conventions: dict[str, str] = {}

    def unsupported(self, case):
        return ["everything"]

    def run(self, case, inputs, weights=None, cotangent=None):
        raise AssertionError


def test_an_adapter_needs_no_name():
    adapter = adapters.load(f"{__name__}:Nameless")
    assert adapter.name == f"{__name__}:Nameless" and adapter.unsupported(None) == ["everything"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "foo"], "--kernel must be one of reference, exact"),
        (["real", "--impl", "a:b"], "No such option"),
        (["checkpoint"], "Missing argument 'PATH'"),
        (["--cases", "Full/one*", "--json", "/no/such/folder/x.json"], "cannot write"),
    ],
)
def test_the_command_refuses_before_it_runs(arguments, message):
    result = CliRunner().invoke(main, ["parity", *arguments])
    assert result.exit_code == 2 and message in " ".join(result.output.split())
