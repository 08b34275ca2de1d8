"""Models write: as transformers does, the same in both twins, each row as if it were alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskattn import models
from maskattn.models.generate import Choice, Plan
from maskattn.numerics import rng
from maskattn.parity.models.peer import Peer
from maskattn.parity.models.tiny import TINY

pytestmark = pytest.mark.hurried

NEW = 7
#: One for each way in which positions are counted.
WRITERS = ("llama", "mistral", "gpt2", "opt", "bloom")


class Both:
    """A tiny model in transformers and in both twins."""

    def __init__(self, name: str) -> None:
        torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
        pytest.importorskip("transformers")
        import maskattn_jax.models as in_jax
        import maskattn_torch.models as in_torch

        self.tiny = TINY[name]
        self.peer = peer = Peer.of(name, self.tiny)
        table = models.describe(peer.config, peer.tensors)
        self.torch = in_torch.Model(table, lambda name, _: torch.tensor(peer.tensors[name])).eval()
        self.jax = in_jax.Model(table, lambda name, x: jnp.asarray(peer.tensors[name].transpose(x.order)))

    def theirs(self, ids: Any, mask: Any) -> Any:
        import torch

        settings = self.peer.model.generation_config
        settings.eos_token_id, settings.pad_token_id = None, 0
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return self.peer.model.generate(**given, max_new_tokens=NEW, do_sample=False)[:, ids.shape[1] :].numpy()

    def ours(self, ids: Any, mask: Any, **options: Any) -> tuple[Any, Any]:
        import torch

        one = self.torch.generate(torch.tensor(ids), torch.tensor(mask), max_new_tokens=NEW, **options)
        other = self.jax.generate(ids, mask, max_new_tokens=NEW, **options)
        return one.numpy(), np.asarray(other)


@pytest.fixture(
    scope="module", params=[x if x in ("llama", "opt") else pytest.param(x, marks=pytest.mark.slow) for x in WRITERS]
)
def both(request: Any) -> Both:
    return Both(request.param)


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy(both: Both, side: str) -> None:
    batch = both.peer.batch(both.tiny, side)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    one, other = both.ours(ids, mask)
    assert (one == other).all()
    left = both.peer.batch(both.tiny, "left") if side == "left" else None
    if left is not None:  # transformers writes behind the last column
        assert (one == both.theirs(ids, mask)).all()
    kept = ids[1][mask[1] == 1][None]  # a padded row writes what it writes alone
    assert (both.ours(kept, np.ones_like(kept))[0] == one[1:]).all()


def test_drawn_tokens_are_the_same(both: Both) -> None:
    batch = both.peer.batch(both.tiny, "left")
    one, other = both.ours(batch["input_ids"], batch["attention_mask"], temperature=0.8, key=3, top_k=40, top_p=0.9)
    assert (one == other).all()
    again, _ = both.ours(batch["input_ids"], batch["attention_mask"], temperature=0.8, key=4, top_k=40, top_p=0.9)
    assert (one != again).any()


def test_rows_end_and_are_padded() -> None:
    both = Both("llama")
    batch = both.peer.batch(both.tiny, "left")
    whole, _ = both.ours(batch["input_ids"], batch["attention_mask"])
    end = int(whole[0, 2])
    one, other = both.ours(batch["input_ids"], batch["attention_mask"], end_ids=end)
    assert (one == other).all()
    stop = int((whole[0] == end).argmax())
    assert (one[0, : stop + 1] == whole[0, : stop + 1]).all() and (one[0, stop + 1 :] == 0).all()


def test_draws_follow_the_probabilities() -> None:
    chances = np.array([0.5, 0.25, 0.125, 0.125])
    logits = np.tile(np.log(chances).astype(np.float32), (20000, 1))
    drawn = Choice(1.0, key=rng.key(5)).tokens(logits, 0)
    assert np.abs(np.bincount(drawn, minlength=4) / 20000 - chances).max() < np.sqrt(0.25 / 20000) * 4.5
    assert set(Choice(1.0, top_k=2, key=rng.key(5)).tokens(logits, 1)) == {0, 1}
    assert set(Choice(1.0, top_p=0.74, key=rng.key(5)).tokens(logits, 1)) == {0, 1}
    assert set(Choice(1.0, top_p=0.5, key=rng.key(5)).tokens(logits, 1)) == {0}
    assert set(Choice().tokens(np.array([[1.0, 3.0, 3.0]], np.float32), 0)) == {1}


def test_a_prompt_of_any_length_is_read_once() -> None:
    class Steps:
        multiple = 32
        seen: list[tuple[int, ...]] = []

        def start(self, batch: int, size: int) -> int:
            self.seen.append((batch, size))
            return 0

        def step(self, tokens: Any, valid: Any, last: Any, caches: int) -> tuple[Any, int]:
            self.seen.append(tokens.shape)
            made = np.zeros((len(tokens), 5), np.float32)
            made[np.arange(len(tokens)), (tokens[np.arange(len(tokens)), last] + 1) % 5] = 1
            return made, caches + 1

    steps = Steps()
    written = Plan(steps, Choice(), 3, ends=(4,), pad=9).write(
        np.array([[7, 1], [7, 2]]), np.array([[False, True]] * 2)
    )
    assert written.tolist() == [[2, 3, 4], [3, 4, 9]]
    assert steps.seen == [(2, 32), (2, 32), (2, 1), (2, 1)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tokens": np.zeros((1, 2))}, "tokens must be integers"),
        ({"attention_mask": np.ones((1, 3))}, "attention_mask must be"),
        ({"attention_mask": np.zeros((1, 2))}, "attention_mask must be bool or integers, 1 = keep, got float64"),
        ({"attention_mask": np.zeros((1, 2), int)}, "keep a token of every row"),
        ({"tokens": np.zeros((0, 2), int)}, "tokens must be integers .* not empty"),
        ({"temperature": 1.0}, "key must be given"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"top_k": -1}, "top_k must be"),
        ({"max_new_tokens": -1}, "max_new_tokens must be"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, Any], says: str) -> None:
    from maskattn.models.generate import checked

    usual: dict[str, Any] = {"tokens": np.zeros((1, 2), int), "attention_mask": None, "max_new_tokens": 3}
    usual |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, **given}
    tokens, mask, new = usual.pop("tokens"), usual.pop("attention_mask"), usual.pop("max_new_tokens")
    with pytest.raises((TypeError, ValueError), match=says):
        checked("Model.generate", tokens, mask, new=new, key=None, ends=None, **usual)
