"""Models with an encoder and a decoder: decoding by steps, and what a call may be given."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from maskattn import models, standards
from maskattn.parity.against.hurry import HURRY
from maskattn.parity.models.peer import WORDS, Peer
from maskattn.parity.models.tiny import TINY

pytestmark = pytest.mark.hurried

DRAWS = np.random.default_rng(3)
TOKENS, DECODED = DRAWS.integers(7, 90, (2, 14)), DRAWS.integers(7, 90, (2, 6))
KEEP = np.arange(14) < np.array([[14], [11]])


def described(name: str, **changed: Any) -> Any:
    kind, config = name.partition("+")[0], TINY[name].config
    return models.describe({"model_type": kind, **config, **changed})


def made(twin: Any, table: Any) -> Any:
    """The model in a twin, its numbers drawn."""

    def start(name: str, tensor: Any) -> Any:
        draws = np.random.default_rng(zlib.crc32(name.encode()))
        numbers = (0.2 * draws.standard_normal(tensor.shape) + (tensor.begins == 1.0)).astype(np.float32)
        return twin.array(numbers.transpose(tensor.order) if twin.name == "jax" else numbers)

    model = twin.models.Model(table, start)
    return model.eval() if twin.name == "torch" else model


def inputs(twin: Any, name: str) -> dict[str, Any]:
    if name == "whisper":
        spectrum = np.random.default_rng(5).standard_normal((2, 12, 40)).astype(np.float32)
        return {"features": twin.array(spectrum)}
    return {"tokens": twin.array(TOKENS), "attention_mask": twin.array(KEEP)}


def compiled(twin: Any, model: Any) -> Any:
    """A call of the model; in JAX one program."""
    if twin.name == "torch":
        return model
    nnx = pytest.importorskip("flax.nnx")
    graph, state = nnx.split(model)
    run = twin.framework.jit(lambda state, given: nnx.merge(graph, state)(**given), compiler_options=HURRY)
    return lambda **given: run(state, given)


@pytest.mark.parametrize("name", ["m2m_100", "t5", "whisper"])
def test_steps_of_a_cache_are_the_whole_pass(twin: Any, name: str) -> None:
    layers = ("num_layers", "num_decoder_layers") if name == "t5" else ("encoder_layers", "decoder_layers")
    table = described(name, **dict.fromkeys(layers, 1))
    model, given = made(twin, table), inputs(twin, name)
    caches, run = model.new_cache(2, 6), compiled(twin, model)
    whole = run(**given, decoder_tokens=twin.array(DECODED))
    first = run(**given, decoder_tokens=twin.array(DECODED[:, :3]), cache=caches)
    keep = {"attention_mask": given["attention_mask"]} if "attention_mask" in given else {}
    found, cache = [first.logits], first.cache
    for place in range(3, 6):
        step = run(decoder_tokens=twin.array(DECODED[:, place : place + 1]), cache=cache, **keep)
        assert step.encoder_hidden is None
        for old, new in zip(cache, step.cache, strict=True):
            assert np.array_equal(twin.to_numpy(old[1][0]), twin.to_numpy(new[1][0]))
        found, cache = [*found, step.logits], step.cache
    steps, logits = np.concatenate([twin.to_numpy(x) for x in found], 1), twin.to_numpy(whole.logits)
    assert np.abs(steps - logits).max() <= standards.value("tier4.float32") * np.abs(logits).max()


def test_what_the_encoder_gave_is_read_again(twin: Any) -> None:
    model, given = made(twin, described("bart", encoder_layers=1, decoder_layers=1)), inputs(twin, "bart")
    run = compiled(twin, model)
    whole = run(**given, decoder_tokens=twin.array(DECODED))
    again = run(memory=whole.encoder_hidden, attention_mask=given["attention_mask"], decoder_tokens=twin.array(DECODED))
    assert np.array_equal(twin.to_numpy(whole.logits), twin.to_numpy(again.logits))


def test_what_is_given_is_enough_and_not_too_much(twin: Any) -> None:
    tokens, decoded = twin.array(TOKENS), twin.array(DECODED)
    model = made(twin, described("t5", num_layers=1, num_decoder_layers=1))
    with pytest.raises(ValueError, match="t5: decoder_tokens must be given, got None"):
        model(tokens)
    with pytest.raises(ValueError, match="one of the three, got none"):
        model(decoder_tokens=decoded)
    with pytest.raises(ValueError, match="one of the three, got tokens and memory"):
        model(tokens, memory=twin.array(np.ones((2, 3, 48), np.float32)), decoder_tokens=decoded)
    with pytest.raises(ValueError, match="global_tokens are given, but the model has no global attention"):
        model(tokens, decoder_tokens=decoded, global_tokens=tokens > 50)
    model = made(twin, described("whisper", encoder_layers=1, decoder_layers=1))
    with pytest.raises(ValueError, match=r"features must be .* = \[B, 12, 40\], got \(2, 12, 39\)"):
        model(features=twin.array(np.ones((2, 12, 39), np.float32)), decoder_tokens=decoded)


def test_tables_that_are_not_learned_begin_as_sinusoids() -> None:
    table = described("pegasus")
    leaf = table.tokens.positions.table
    numbers = models.first_numbers(leaf.name, leaf.tensors()[""])
    assert not leaf.tensors()[""].trained and numbers.shape == (64, 48)
    angle = 5 * 10000 ** (-2 * 3 / 48)
    assert np.allclose(numbers[5, [3, 27]], [np.sin(angle), np.cos(angle)], atol=standards.value("tier4.float32"))


def test_a_head_with_other_numbers_is_its_own() -> None:
    config = {"model_type": "t5", **TINY["t5"].config}
    names = dict.fromkeys(("shared.weight", "decoder.final_layer_norm.weight", "lm_head.weight"), np.ones((97, 48)))
    assert models.describe(config, names).head.tied is not None
    names["lm_head.weight"] = np.zeros((97, 48))
    head = models.describe(config, names).head
    assert head.tied is None and head.project.name == "lm_head"


def test_only_an_encoder_is_a_model_of_tokens() -> None:
    names = {"shared.weight", "encoder.final_layer_norm.weight"}
    table = models.describe({"model_type": "t5", **TINY["t5"].config}, names)
    assert isinstance(table, models.TokenModel) and table.head is None


def test_what_is_not_built_is_refused() -> None:
    with pytest.raises(ValueError, match="conv_pos_batch_norm=True is refused: there is no part"):
        described("hubert", conv_pos_batch_norm=True)
    with pytest.raises(ValueError, match="add_adapter=True is refused: there is no part"):
        described("wav2vec2", add_adapter=True)
    with pytest.raises(ValueError, match="feat_extract_norm must be group or layer, got 'batch'"):
        described("wav2vec2", feat_extract_norm="batch")
    with pytest.raises(ValueError, match="encoder_attention_type must be local, of layers, got 'full'"):
        described("longt5", encoder_attention_type="full")


def test_dropout_follows_its_key(twin: Any) -> None:
    model = made(twin, described("bart", dropout=0.5, encoder_layers=1, decoder_layers=1))
    given = {"tokens": twin.array(TOKENS), "decoder_tokens": twin.array(TOKENS)}
    run = compiled(twin, model.train() if twin.name == "torch" else model)
    outs = [run(**given, dropout_key=twin.array(np.array([0, key], np.uint32))) for key in (1, 1, 2)]
    one, again, other = (twin.to_numpy(out.logits) for out in outs)
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_writes_what_transformers_writes(name: str) -> None:
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    pytest.importorskip("transformers")
    import maskattn_jax.models as in_jax
    import maskattn_torch.models as in_torch

    tiny = TINY[name]
    peer = Peer.of(name, tiny)
    settings, batch = peer.model.generation_config, peer.batch(tiny)
    settings.eos_token_id = settings.forced_eos_token_id = None
    settings.decoder_start_token_id, settings.pad_token_id = 3, 0
    ids, mask = (torch.tensor(batch[key]) for key in ("input_ids", "attention_mask"))
    given = {"input_ids": ids, "attention_mask": mask}
    theirs = peer.model.generate(**given, max_new_tokens=7, do_sample=False)[:, 1:].numpy()
    table, begin = models.describe(peer.config, peer.tensors), np.full((2, 1), 3)
    options: dict[str, Any] = {"decoder_tokens": begin, "max_new_tokens": 7, "end_ids": ()}
    one = in_torch.Model(table, lambda name, _: torch.tensor(peer.tensors[name])).eval()
    assert (one.generate(ids, mask, **options).numpy() == theirs).all()
    if name == "t5":  # one is enough to compile
        other = in_jax.Model(table, lambda name, x: jnp.asarray(peer.tensors[name].transpose(x.order)))
        written = other.generate(batch["input_ids"], batch["attention_mask"], **options)
        assert (np.asarray(written) == theirs).all()


def test_sound_is_written_down(twin: Any) -> None:
    model = made(twin, described("whisper", encoder_layers=1, decoder_layers=1))
    given = inputs(twin, "whisper")
    written = twin.to_numpy(model.generate(**given, max_new_tokens=3, end_ids=()))
    begin = np.concatenate([np.full((2, 1), 3), written], 1)
    logits = twin.to_numpy(compiled(twin, model)(**given, decoder_tokens=twin.array(begin)).logits)
    assert (written == logits[:, :-1].argmax(-1)).all()
    with pytest.raises(ValueError, match="features must be given, a whisper model reads them"):
        model.generate(twin.array(TOKENS))


def test_gradients_of_sums_of_blocks_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from maskattn_torch.models import Model

    tiny = TINY["longt5+global"]
    peer = Peer.of("longt5", tiny)
    batch = {name: torch.tensor(x) for name, x in peer.batch(tiny).items()}
    model = Model(models.describe(peer.config, peer.tensors), lambda name, _: torch.tensor(peer.tensors[name])).eval()
    outs = peer.model(**batch), model(**{WORDS[name]: x for name, x in batch.items()})
    keep = batch["decoder_attention_mask"][..., None]
    for out in outs:
        (out.logits * keep).sin().sum().backward()
    theirs = {name: x.grad for name, x in peer.model.named_parameters()}
    most = max(float(x.abs().max()) for x in theirs.values())
    for name, x in model.named_parameters():
        assert x.grad is not None and x.grad.abs().max() > 0, name
        assert (x.grad - theirs[name]).abs().max() <= standards.value("tier4.float32") * most, name
