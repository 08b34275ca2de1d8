"""Every row makes a model that gives what transformers' own gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskattn import models, standards
from maskattn.parity.models.peer import WORDS, Peer, given_by
from maskattn.parity.models.tiny import TINY

pytest.importorskip("transformers")


def made_by_torch(peer: Peer, batch: dict[str, Any]) -> dict[str, Any]:
    import torch

    from maskattn_torch.models import Model

    table = models.describe(peer.config, peer.tensors)
    model = Model(table, lambda name, tensor: torch.tensor(peer.tensors[name])).eval()
    with torch.no_grad():
        out = model(**{WORDS[name]: torch.tensor(x) for name, x in batch.items() if name in WORDS}, hidden_states=True)
    return as_numpy(out)


def made_by_jax(peer: Peer, batch: dict[str, Any]) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from maskattn.parity.against.hurry import HURRY
    from maskattn_jax.models import Model

    table = models.describe(peer.config, peer.tensors)
    model = Model(table, lambda name, tensor: jnp.asarray(peer.tensors[name].transpose(tensor.order)))
    graph, state = nnx.split(model)
    given = {WORDS[name]: jnp.asarray(x) for name, x in batch.items() if name in WORDS}
    run = jax.jit(lambda state, given: nnx.merge(graph, state)(**given, hidden_states=True), compiler_options=HURRY)
    return as_numpy(run(state, given))


def as_numpy(out: Any) -> dict[str, Any]:
    names = ("logits", "hidden", "pooled", "encoder_hidden")
    names += ("text_embeds", "image_embeds", "masked", "texts", "images")
    return {name: np.asarray(x) for name, x in given_by(out, {name: name for name in names}).items()}


#: What our models give also where the class of transformers keeps it for itself.
MORE = {"hidden", "pooled"}


@pytest.mark.parametrize("twin", [made_by_torch, made_by_jax])
@pytest.mark.parametrize("name", TINY)
def test_row(name: str, twin: Any) -> None:
    tiny = TINY[name]
    peer = Peer.of(name, tiny)
    sides = tiny.padding or ("",)
    for side in sides[:1] if twin is made_by_jax else sides:
        batch = peer.batch(tiny, side)
        theirs, ours = peer.run(batch), twin(peer, batch)
        assert theirs.keys() <= ours.keys() <= theirs.keys() | MORE
        for what, x in theirs.items():
            y = ours[what]
            assert x.shape == y.shape, what
            keep = peer.kept(batch, what, x.shape)
            x, y = x[keep], y[keep]
            assert np.abs(x - y).max() <= standards.value("tier4.float32") * np.abs(x).max(), (what, side)
