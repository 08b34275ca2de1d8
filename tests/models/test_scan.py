"""Blocks in one loop, or computed again for their gradients, give what blocks one after the other give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maskattn import models, standards
from maskattn.parity.models.peer import Peer
from maskattn.parity.models.tiny import TINY

pytest.importorskip("transformers")

pytestmark = pytest.mark.hurried


def deep(name: str) -> tuple[Peer, models.TokenModel, dict[str, Any]]:
    """A model of five layers, with dropout."""
    tiny = TINY[name]
    count = "n_layer" if "n_layer" in tiny.config else "num_hidden_layers"
    tiny = replace(tiny, config={**tiny.config, count: 5, "attention_dropout": 0.1})
    peer = Peer.of(name, tiny)
    return peer, models.describe(peer.config, peer.tensors), peer.batch(tiny, "left")


@pytest.mark.parametrize(
    ("name", "period"),
    [
        pytest.param("llama", (0, 1, 5), marks=pytest.mark.slow),
        ("gemma2", (0, 2, 2)),
        pytest.param("gpt2", (0, 1, 5), marks=pytest.mark.slow),
    ],
)
def test_scan(name: str, period: tuple[int, int, int]) -> None:
    jax, nnx = pytest.importorskip("jax"), pytest.importorskip("flax.nnx")
    from maskattn.parity.against.hurry import HURRY
    from maskattn_jax.models import Model

    peer, table, batch = deep(name)
    assert table.stack.period() == period and table.drops

    def built(**options: bool) -> Any:
        return Model(table, lambda key, x: jax.numpy.asarray(peer.tensors[key].transpose(x.order)), **options)

    def answered(model: Any) -> tuple[Any, ...]:
        graph, state = nnx.split(model)

        def loss(state: Any) -> tuple[Any, Any]:
            given = {"attention_mask": batch["attention_mask"], "hidden_states": True, "dropout_key": 3}
            out = nnx.merge(graph, state)(batch["input_ids"], **given)
            return (out.logits**2).mean(), out

        run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=HURRY)
        (_, out), gradient = run(state)
        norm = sum((x.astype(float) ** 2).sum() for x in jax.tree.leaves(gradient)) ** 0.5
        return out.logits, *out.hidden_states, norm

    plain = answered(built())
    for options in ({"remat": True}, {"scan_layers": True, "remat": True}):
        for ours, right in zip(answered(built(**options)), plain, strict=True):
            limit = standards.value("tier4.float32") * np.abs(right).max()
            assert np.abs(np.asarray(ours) - right).max() <= limit, options
    if name == "gemma2":
        given = (batch["input_ids"], batch["attention_mask"])
        written = [built(scan_layers=on).generate(*given, max_new_tokens=4) for on in (False, True)]
        assert (written[0] == written[1]).all()


def test_remat_in_torch() -> None:
    torch = pytest.importorskip("torch")
    from maskattn_torch.models import Model

    peer, table, batch = deep("gpt2")
    found = []
    for remat in (False, True):
        model = Model(table, lambda key, _: torch.tensor(peer.tensors[key]), remat=remat).train()
        out = model(torch.tensor(batch["input_ids"]), batch["attention_mask"], dropout_key=3)
        out.logits.square().mean().backward()
        found.append([x.grad for x in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_encoders_do_not_write() -> None:
    torch = pytest.importorskip("torch")
    from maskattn_torch.models import Model

    peer, table, _ = deep("modernbert")
    model = Model(table, lambda key, _: torch.tensor(peer.tensors[key]))
    with pytest.raises(ValueError, match="attends to later tokens"):
        model.generate(torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="has no logits"):
        Model(models.describe(peer.config, {"embeddings.tok_embeddings.weight"})).generate(torch.ones(1, 3).long())
