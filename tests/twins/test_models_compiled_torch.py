"""Whole models of the torch twin in its compiler's hands: one graph, that gives what the model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskattn import models, standards
from maskattn.convert.twins import named
from maskattn.parity.models.peer import WORDS, Peer
from maskattn.parity.models.tiny import TINY
from maskattn_torch.models import Model
from maskattn_torch.testing.adapter import from_numpy

pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

#: One of each kind that is traced otherwise: encoders, rotary embeddings, experts, encoders and decoders, ...
KINDS = (
    *("bert", "gemma3_text", "mixtral", "deepseek_v3", "bart", "whisper", "wav2vec2", "clip", "llama+dynamic"),
    *("big_bird+sparse", "m2m_100"),  # tables and patterns that NumPy works out
)


def slow(*quick: str) -> list[Any]:
    return [*quick, *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS if name not in quick)]


def made(name: str) -> tuple[Model, dict[str, Any]]:
    """A model, and what it is given."""
    peer = Peer.of(name, TINY[name])
    table = models.describe(peer.config, peer.tensors)
    batch = peer.batch(TINY[name], (TINY[name].padding or ("",))[-1])
    given = {WORDS[key]: from_numpy(x) for key, x in batch.items()}
    return Model(table, lambda key, _: from_numpy(peer.tensors[key])).eval(), {**given, "hidden_states": True}


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double().numpy(force=True) for name, x in found.items()}


def near(found: Any, expected: Any) -> None:
    found, expected = numbers(found), numbers(expected)
    assert max(standards.model_share(found[name], x) for name, x in expected.items()) <= 1


def results(model: Any, given: dict[str, Any], trained: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a model gives, and gradients of a sum of it all."""
    found = named(model(**given))
    whole = sum(x.cos().sum() for x in found.values() if x.is_floating_point())
    made = torch.autograd.grad(whole, list(trained.values()), allow_unused=True, materialize_grads=True)
    return found, numbers(dict(zip(trained, made, strict=True)))


@pytest.mark.parametrize("name", slow("vit"))
def test_it_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    model, given = made(name)
    trained = {key: x for key, x in model.named_parameters() if x.requires_grad}
    found, slopes = results(torch.compile(model, fullgraph=True, backend="aot_eager"), given, trained)
    expected, right = results(model, given, trained)
    near(found, expected)
    largest = max(float(abs(x).max()) for x in right.values())
    assert max(standards.gradient_share(slopes[key], x, x, largest, largest) for key, x in right.items()) <= 1


@pytest.mark.parametrize("name", slow("mixtral"))
def test_it_is_exported(name: str) -> None:
    model, given = made(name)
    exported = torch.export.export(model, (), given)
    with torch.no_grad():
        near(named(exported.module()(**given)), named(model(**given)))
