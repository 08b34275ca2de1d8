"""Several faults at once, faults within loops, and faults of ports of which one product gives several tensors."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import Array

import maskattn

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


class Recipe(torch.nn.Module):
    """Attention of a vision transformer: one product, viewed as three parts of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(20, 60), torch.nn.Linear(20, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).reshape(2, 7, 3, 5, 4).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-2, -1) * 4**-0.5).softmax(-1)
        return self.proj((weights @ qkv[2]).transpose(1, 2).reshape(2, 7, 20))


@pytest.mark.jax
@pytest.mark.torch
@pytest.mark.parametrize("bad", [False, True])
def test_parts_of_a_view_are_taken_head_by_head(bad: bool) -> None:
    torch.manual_seed(0)
    original = Recipe().eval()
    p = {name: jnp.asarray(one.numpy()) for name, one in original.state_dict().items()}

    def port(x: Array) -> Array:
        qkv = (x @ p["qkv.weight"].T + p["qkv.bias"]).reshape((2, 7, 5, 3, 4) if bad else (2, 7, 3, 5, 4))
        q, k, v = jnp.moveaxis(qkv, 3 if bad else 2, 0)
        weights = jax.nn.softmax(jnp.einsum("blhd,bshd->bhls", q, k) / 2)
        return jnp.einsum("bhls,bshd->blhd", weights, v).reshape(2, 7, 20) @ p["proj.weight"].T + p["proj.bias"]

    report = maskattn.compare(original, port, {"x": np.random.default_rng(0).standard_normal((2, 7, 20))})
    assert report.ok != bad, str(report)
    assert not bad or re.search("3 parts of .* are taken head by head, not one behind the other", report.diagnosis[0])


class Apart(torch.nn.Module):
    """Attention with a product each for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(20, 20) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (one(x).view(2, 7, 5, 4).transpose(1, 2) for one in (self.q, self.k, self.v))
        return ((q @ k.transpose(-2, -1) * 4**-0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 7, 20)


@pytest.mark.jax
@pytest.mark.torch
def test_what_is_done_to_queries_keys_and_values_alike_is_one_fault() -> None:
    torch.manual_seed(0)
    original = Apart().eval()
    p = {name: jnp.asarray(one.numpy()) for name, one in original.state_dict().items()}

    def port(x: Array) -> Array:
        made = [x @ p[f"{name}.weight"].T + p[f"{name}.bias"] for name in "qkv"]
        q, k, v = (one.reshape(2, 7, 4, 5).swapaxes(2, 3) for one in made)
        weights = jax.nn.softmax(jnp.einsum("blhd,bshd->bhls", q, k) / 2)
        return jnp.einsum("bhls,bshd->blhd", weights, v).reshape(2, 7, 20)

    report = maskattn.compare(original, port, {"x": np.random.default_rng(0).standard_normal((2, 7, 20))})
    assert report.diagnosis == ("20 numbers are split into 4 x 5, not 5 x 4 (order of heads)",), str(report)
    assert report.places[-1].share * report.error <= report.tolerance


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
