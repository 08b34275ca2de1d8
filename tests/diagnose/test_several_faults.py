"""Several faults at once, faults within loops, and faults of ports of which one product gives several tensors."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax import Array

pytest.importorskip("transformers")
pytest.importorskip("equinox")

from tests.diagnose.ports import fused, plain
from tests.diagnose.ports.kinds import Port, compared
from tests.diagnose.ports.plain import DECODER, Weights, below
from tests.diagnose.ports.torches import weights


def scanned(weights: Weights, ids: Array, padding: Array, *, bad: str) -> Array:
    """The decoder, its layers in a loop, all with one fault."""
    each = [below(weights, f"model.layers.{number}") for number in range(DECODER.layers)]

    def step(x: Array, p: Weights) -> tuple[Array, None]:
        return plain.layer(p, x, padding, DECODER, bad), None

    stacked = jax.tree.map(lambda *one: jnp.stack(one), *each)
    x = jax.lax.scan(jax.checkpoint(step), jnp.asarray(weights["model.embed_tokens.weight"])[ids], stacked)[0]
    return plain.rms(x, weights["model.norm.weight"], DECODER.eps) @ jnp.asarray(weights["lm_head.weight"]).T


def decoder(bad: str) -> Port:
    return functools.partial(scanned, weights("decoder"), bad=bad)


def gpt(*bad: str) -> Port:
    return functools.partial(fused.model, weights("fused"), bad=frozenset(bad))


#: The kind of model, its port, and what has to be said, a place each.
CASES = {
    "nothing": ("fused", lambda: gpt(), ()),
    "scale and mask": ("fused", lambda: gpt("no scale", "one ahead"), ("factor is 1, not", "one key more behind")),
    "norm and activation": (
        "fused",
        lambda: gpt("unbiased variance", "exact gelu"),
        ("divided by n - 1", r"gelu, not gelu \(tanh\)"),
    ),
    "keys first": ("fused", lambda: gpt("keys first"), ("parts 1 and 2 of 3 are exchanged",)),
    "head by head": ("fused", lambda: gpt("head by head"), ("head by head, not one behind the other",)),
    "in parallel": ("fused", lambda: gpt("in parallel"), ("in the place of|is left out",)),
    "log_softmax": ("fused", lambda: gpt("log_softmax"), ("the output logits has log_softmax behind it",)),
    "eps in a loop": ("decoder", lambda: decoder("eps"), ("eps of the norm is 0.001",)),
    "pairs in a loop": ("decoder", lambda: decoder("rotary pairs"), ("pairs are neighbours",)),
}
QUICK = ("keys first",)


@pytest.mark.jax
@pytest.mark.torch
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_each_fault_is_said_and_no_difference_is_left(case: str) -> None:
    kind, made, says = CASES[case]
    report = compared(kind, made())
    said = [place.diagnosis for place in report.places]
    assert len(said) == len(says) and all(map(re.search, says, said)), str(report)
    assert report.ok == (not says)
    assert not report.places or report.places[-1].share * report.error <= report.tolerance
