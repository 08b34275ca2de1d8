"""Inputs of a call that do not fit are refused by name, in both twins, or show in what is given."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from maskattn import masks, models
from maskattn.models.part import find
from tests.models.test_files import BERT, LLAMA
from tests.twin import twin

pytestmark = pytest.mark.hurried

__all__ = ["twin"]

IDS = np.arange(10).reshape(2, 5)
ONES = np.ones((2, 5), np.int32)
SMALL: dict[str, Any] = {**BERT, "num_hidden_layers": 1, "max_position_embeddings": 6}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 37,
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 1,
    "n_positions": 6,
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "float ids": ({"tokens": IDS / 2}, "tokens must be integers, got float"),
    "one text": ({"tokens": IDS[0]}, r"tokens must be \[B, L\] and not empty, got \[5\]"),
    "no tokens": ({"tokens": IDS[:, :0]}, r"tokens must be \[B, L\] and not empty, got \[2, 0\]"),
    "too long": ({"tokens": np.tile(IDS, 2)}, "table of positions is for 6 tokens, got 10"),
    "additive": ({"attention_mask": ONES * -1e9}, "attention_mask must be bool or integers, 1 = keep, got float"),
    "short mask": ({"attention_mask": ONES[:, :4]}, r"attention_mask must be \[2, 5\], as the rest is, got \[2, 4\]"),
    "four axes": ({"attention_mask": ONES[:, None, None]}, r"attention_mask must be .* got \[2, 1, 1, 5\]"),
    "types": ({"token_types": ONES[:, :1]}, r"token_types must be \[2, 5\]"),
    "places": ({"logits_at": np.array([1, 2, 3])}, r"logits_at must be \[B\], here \[2\], got \[3\]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_named(twin: Any, kind: str) -> None:
    model = twin.models.Model(models.describe(SMALL))
    model.eval()
    given, words = BAD[kind]
    with pytest.raises((TypeError, ValueError), match=words):
        model(**{name: twin.array(x) for name, x in ({"tokens": IDS} | given).items()})


def test_all_that_is_wrong_is_said_at_once(twin: Any) -> None:
    model = twin.models.Model(models.describe({**LLAMA, "num_hidden_layers": 1}))
    with pytest.raises(TypeError, match="2 problems"):
        model(twin.array(IDS / 2), twin.array(ONES[:, :4]))
    with pytest.raises(TypeError, match="tokens must be an array, got .*"):
        model([[1, 2]])
    with pytest.raises(TypeError, match=r"attention_mask must be .* got Causal\(\): a model has its mask from its"):
        model(twin.array(IDS), masks.Causal())


@pytest.mark.parametrize("number", [-1, 37])
def test_ids_that_no_row_has(twin: Any, number: int) -> None:
    """PyTorch raises; in JAX, which cannot, their logits are NaN, as are exact rows in both."""
    model = twin.models.Model(models.describe({**LLAMA, "num_hidden_layers": 1}))
    tokens = twin.array(np.array([[1, 2, number, 3]]))
    if twin.name == "torch":
        with pytest.raises(IndexError):
            model(tokens)
    else:
        assert np.isnan(twin.to_numpy(model(tokens).logits)[0, 2]).all()
    if twin.name == "jax" or number < 0:
        table = model.table.tokens.table
        rows = (
            importlib.import_module(f"maskattn_{twin.name}.models.exact")
            .Exact()
            .embed(table, find(model, table.name), tokens)
        )
        assert np.isnan(twin.to_numpy(rows)).all(-1).tolist() == [[False, False, True, False]]


def test_texts_that_outgrow_the_table_of_positions(twin: Any) -> None:
    model = twin.models.Model(models.describe(GPT2), config=GPT2)
    steps: list[Any] = []
    found = twin.to_numpy(model.generate(twin.array(IDS), max_new_tokens=2, end_ids=(), progress=steps.append))
    assert found.shape == (2, 2) and (np.stack(steps, 1) == found).all()
    with pytest.raises(
        ValueError, match="table of positions is for 6 tokens, got prompts and max_new_tokens that need 7"
    ):
        model.generate(twin.array(IDS), max_new_tokens=3)
