"""Logits of tasks: every class of transformers for one gives what transformers' own gives, or is refused."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import maskattn_jax.models
import maskattn_torch.models
from maskattn import standards
from maskattn.arrays import to_numpy
from maskattn.models import ROWS, describe
from maskattn.parity.models.peer import GIVEN, WORDS, Peer, given_by
from maskattn.parity.models.run import examine
from maskattn.parity.models.tiny import TINY
from maskattn.parity.models.tiny.tasks import TASKS as ROWS_OF_TASKS, of
from maskattn.parity.models.twins import Torch

pytest.importorskip("transformers")

pytestmark = pytest.mark.hurried

REFUSED = {"BigBirdForQuestionAnswering"}
TASKS = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING")
KINDS = [kind for kind in ROWS if kind in TINY and ROWS[kind].get("kind", "two") == "two"]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_class_of_a_task(kind, task, tmp_path):
    from transformers.models.auto import modeling_auto

    model = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").get(kind)
    if model is None:
        pytest.skip("transformers has no such class")
    ends = model.endswith("SequenceClassification") and ROWS[kind].get("kind") == "two"
    start = {"decoder_start_token_id": 3} if ROWS[kind].get("kind") == "two" else {}
    tiny = of(kind, model, given=ends or model.startswith("Longformer"), **start)
    if model in REFUSED:
        with pytest.raises(ValueError, match=f"{model} is refused"):
            examine(kind, ("logits",), tiny=tiny)
        return
    row = examine(kind, ("logits",), twins=(Torch,), sides=1, tiny=tiny)
    assert row.held and row.cells["logits"] is not None, row
    peer = Peer.of(kind, tiny)
    peer.model.save_pretrained(tmp_path)
    assert maskattn_torch.models.load(tmp_path).table.task == describe(peer.config, peer.tensors).task


def classes(kind):
    """Of transformers, for a model type."""
    from transformers import CONFIG_MAPPING, PreTrainedModel

    config = CONFIG_MAPPING[kind]
    module = importlib.import_module(config.__module__.replace("configuration_", "modeling_"))
    for name, made in vars(module).items():
        if isinstance(made, type) and issubclass(made, PreTrainedModel) and made.config_class is config:
            if made.__module__ == module.__name__ and not name.lower().endswith("pretrainedmodel"):
                yield name


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ROWS if kind in TINY])
def test_every_class_is_right_or_refused(kind, tmp_path):
    """A file of each: what is given is what transformers gives, or an error names the class."""
    import transformers

    for name in filter(partial(hasattr, transformers), classes(kind)):
        tiny = replace(TINY[kind], model=name)
        try:
            peer = Peer.of(kind, tiny)
            peer.model.save_pretrained(tmp_path / name)
            peer.model = type(peer.model).from_pretrained(tmp_path / name, attn_implementation=tiny.attention)
            known = inspect.signature(peer.model.forward).parameters
            batch = {key: x for key, x in peer.batch(tiny, *tiny.padding[:1] or ("",)).items() if key in known}
            theirs = peer.run(batch)[0]
        except Exception:  # no model of its own, or it reads something else
            continue
        try:
            model = maskattn_torch.models.load(tmp_path / name)
        except ValueError as error:
            assert name in str(error)
            continue
        given = {WORDS[key]: torch.tensor(x) for key, x in batch.items() if key in WORDS}
        ours = given_by(model(**given, hidden_states=True), {name: name for name in GIVEN.values()})
        for what, x in theirs.items():
            keep = peer.kept(batch, what, x.shape)
            assert standards.model_share(to_numpy(ours[what].detach())[keep], x[keep]) <= 1, (name, what)


def test_without_a_class_the_names_say_what_the_head_is():
    for row, tiny in ROWS_OF_TASKS.items():
        peer = Peer.of(row, tiny)
        known = describe(peer.config, peer.tensors).task
        peer.config.architectures = None
        assert known is not None and describe(peer.config, peer.tensors).task == known, row


def test_a_base_checkpoint_has_no_logits_whatever_its_class_is():
    for name, tiny in (("gemma2", TINY["gemma2"]), ("bert", TINY["bert"])):
        peer = Peer.of(name, tiny)
        base = {key: x for key, x in peer.tensors.items() if not key.startswith(("lm_head", "cls"))}
        peer.config.architectures = [f"{name}ForSequenceClassification"]
        table = describe(peer.config, base)
        assert table.head is None and table.task is None


@pytest.mark.parametrize(
    "name", ["BertForMultipleChoice", "BertForNextSentencePrediction", "JinaBertForMaskedLM", "BertBackbone", "Rerank"]
)
def test_a_class_that_is_not_known_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} is refused: it is no class of 'bert', or what its head computes"):
        describe({**TINY["bert"].config, "model_type": "bert", "architectures": [name]})


PLACES = (["mean"], ["cls"], ["lasttoken"], ["max"], ["mean", "cls"])


def folder(path, modes, *more):
    peer = Peer.of("bert", TINY["bert+pooled"])
    peer.model.save_pretrained(path)
    places = ("", "Transformer"), ("1_Pooling", "Pooling"), *more
    kind = "sentence_transformers.models.{}"
    modules = [{"idx": n, "path": at, "type": kind.format(name)} for n, (at, name) in enumerate(places)]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": modes}))


def vectors(hidden, keep, modes):
    """As sentence-transformers makes them, in float64."""
    made = []
    for x, kept in zip(hidden.astype(np.float64), keep.astype(bool), strict=True):
        there = x[kept]
        known = {"mean": there.mean(0), "max": there.max(0), "cls": there[0], "lasttoken": there[-1]}
        made.append(np.concatenate([known[mode] for mode in modes]))
    return np.stack(made)


#: To compile a whole model in exact mode takes JAX a while; tests/models/test_exact.py does so for one.
EXACT = pytest.param(["mean"], "exact", marks=pytest.mark.slow, id="mean-exact")


@pytest.mark.parametrize(
    ("modes", "kernel"), [*(pytest.param(modes, "auto", id="+".join(modes)) for modes in PLACES), EXACT]
)
def test_vectors_of_texts(tmp_path, modes, kernel):
    normed = modes == ["mean"]
    folder(tmp_path / "in", modes, *([("2_Normalize", "Normalize")] if normed else []))
    tokens = np.arange(16).reshape(2, 8) + 8
    keep = np.array([[1] * 5 + [0] * 3, [0] * 2 + [1] * 6])
    ours = maskattn_torch.models.load(tmp_path / "in")
    maskattn_torch.models.save(ours, tmp_path / "out")
    bits = []
    for load in (maskattn_torch.models.load, maskattn_jax.models.load):
        model = load(tmp_path / "out")
        given = [x if load is maskattn_jax.models.load else torch.tensor(x) for x in (tokens, keep)]
        out = model(*given, kernel=kernel)
        right = vectors(to_numpy(out.hidden), keep, modes)
        right = right / np.linalg.norm(right, axis=-1, keepdims=True) if normed else right
        error = np.abs(to_numpy(out.pooled) - right).max()
        assert error <= standards.value("tier4.float32") * np.abs(right).max()
        bits.append(to_numpy(out.pooled))
    assert kernel != "exact" or np.array_equal(*bits)


def test_a_module_that_is_not_known_is_refused(tmp_path):
    folder(tmp_path, ["mean"], ("2_Dense", "Dense"))
    with pytest.raises(ValueError, match="modules.json has a Dense"):
        maskattn_torch.models.load(tmp_path)
    for modes in ("weightedmean", ["mean", "mean_sqrt_len_tokens"]):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": modes}))
        with pytest.raises(ValueError, match="pooling_mode"):
            maskattn_torch.models.load(tmp_path)
