"""What models draw in training: as transformers has it, the same in both twins, or refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maskattn import models, standards
from maskattn.models.part import Run
from maskattn.parity.against.hurry import HURRY
from maskattn.parity.models.peer import WORDS, Peer
from maskattn.parity.models.tiny import TINY
from tests.frameworks import in_both

pytestmark = pytest.mark.hurried

TOKENS = np.arange(1, 13).reshape(2, 6)
SMALL = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "dropout": 0.0}
OPT = SMALL | {"model_type": "opt", "ffn_dim": 20, "word_embed_proj_dim": 16, "max_position_embeddings": 12}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "intermediate_size": 20}
MIXTRAL = SMALL | EXPERTS | {"model_type": "mixtral", "num_hidden_layers": 1}
#: What is drawn beside dropout: whole layers, and what multiplies what experts read.
BESIDE = [OPT | {"layerdrop": 0.5}, MIXTRAL | {"router_jitter_noise": 0.3}]


@in_both
@pytest.mark.parametrize("config", BESIDE, ids=["layerdrop", "router_jitter_noise"])
def test_both_twins_draw_the_same(config: dict[str, Any]) -> None:
    import jax
    import torch

    from maskattn_jax.models import Model as InJax
    from maskattn_torch.models import Model as InTorch

    table = models.describe(config)
    ours, other = InTorch(table), InJax(table)
    call = jax.jit(lambda key: other(TOKENS, dropout_key=key).logits, compiler_options=HURRY)
    made = [ours(torch.tensor(TOKENS), dropout_key=key).logits.detach().numpy() for key in range(4)]
    for key, found in enumerate(made):
        right = np.asarray(call(np.array([0, key], np.uint32)))
        assert np.abs(found - right).max() <= standards.value("tier4.float32") * np.abs(right).max()
    assert any(np.abs(made[0] - x).max() > 1e-3 * np.abs(x).max() for x in made[1:])
    off = InTorch(models.describe({**config, "layerdrop": 0.0, "router_jitter_noise": 0.0}))
    still = [model.eval()(torch.tensor(TOKENS)).logits for model in (ours, off)]
    assert torch.equal(*still)


@pytest.mark.torch
def test_a_layer_that_is_left_out_gives_what_it_read() -> None:
    import torch

    from maskattn_torch.models import Model

    model = Model(models.describe(OPT | {"layerdrop": 0.999999}))
    states = model(torch.tensor(TOKENS), dropout_key=1, hidden_states=True).hidden_states
    assert all(torch.equal(states[0], x) for x in states[1:-1])


#: Type -> what is done in training, and here not.
UNTRAINED = {
    "whisper": ({"apply_spec_augment": True}, "apply_spec_augment=True hides"),
    "wav2vec2": ({}, "apply_spec_augment=True hides"),
    "big_bird": ({}, "num_random_blocks=2 are drawn"),
    "dinov3_vit": ({}, "pos_embed_rescale=2.0 moves patches"),
    "falcon": ({"hidden_dropout": 0.1}, "hidden_dropout=0.1 drops sums"),
}
OFF = {"apply_spec_augment": False, "attention_type": "original_full", "pos_embed_rescale": None, "hidden_dropout": 0.0}


@pytest.mark.torch
@pytest.mark.parametrize("name", UNTRAINED)
def test_what_is_not_trained_as_it_should_be_is_refused(name: str) -> None:
    import torch
    import transformers

    from maskattn_torch.models import Model

    said, says = UNTRAINED[name]
    tiny = replace(TINY[name], config=TINY[name].config | said)
    peer = Peer.of(name, tiny)
    given = {WORDS[key]: torch.tensor(x) for key, x in peer.batch(tiny).items()}
    model = Model(models.describe(peer.config))
    with pytest.raises(ValueError, match=f"a dropout_key is refused: in training '{name}' with .*{says}"):
        model(**given, dropout_key=1)
    model(**given, deterministic=True)
    config = transformers.AutoConfig.for_model(name, **{**tiny.config, **OFF})
    Model(models.describe(config))(**given, dropout_key=1)


def test_a_key_is_asked_for(twin: Any) -> None:
    model = twin.models.Model(models.describe(OPT | {"dropout": 0.1}))
    for options in ({"deterministic": False}, *([{}] if twin.name == "torch" else [])):
        with pytest.raises(ValueError, match="dropout_key must be given, since 'opt' is trained with dropout"):
            model(twin.array(TOKENS), **options)
    twin.models.Model(models.describe(OPT))(twin.array(TOKENS), deterministic=False)


@pytest.mark.slow
@pytest.mark.torch
def test_models_drop_in_as_many_places_as_those_of_transformers(monkeypatch: Any) -> None:
    import torch
    import transformers

    from maskattn_torch.models import Model

    counts = {"theirs": 0, "ours": 0}
    draw, rand, key = torch.nn.functional.dropout, torch.rand, Run.next_key

    def dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        counts["theirs"] += training and p > 0
        return draw(x, p, training, inplace)

    def depth(*size: Any, **options: Any) -> Any:
        counts["theirs"] += 1
        return rand(*size, **options)

    def next_key(run: Run[Any]) -> Any:
        counts["ours"] += run.key is not None
        return key(run)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    monkeypatch.setattr(Run, "next_key", next_key)
    seen = 0
    for name, tiny in TINY.items():
        known = transformers.AutoConfig.for_model(name, **tiny.config).to_dict() if "+" not in name else {}
        rates = {k: 0.3 for k, x in known.items() if re.search("drop", k) and type(x) in (int, float)}
        rates |= {k: 0.0 for k in rates if "layerdrop" in k}
        if name in UNTRAINED or not any(rates.values()):
            continue
        options = rates | ({"apply_spec_augment": False} if "apply_spec_augment" in known else {})
        peer = Peer.of(name, replace(tiny, config=tiny.config | options))
        given = {k: torch.tensor(x) for k, x in peer.batch(tiny, "").items()}
        model = Model(models.describe(peer.config, peer.tensors), lambda at, _, p=peer: torch.tensor(p.tensors[at]))
        counts.update(theirs=0, ours=0)
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(torch, "rand", depth)
            peer.model.train()(**given)
            patch.undo()
            model(**{WORDS[k]: x for k, x in given.items() if k in WORDS}, dropout_key=1)
        assert counts["theirs"] == counts["ours"], (name, counts)
        seen += counts["ours"] > 0
    assert seen > 40
