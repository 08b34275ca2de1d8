"""attn_implementation="maskattn" against transformers' own attention, over real models, small and random."""

import itertools
import warnings

import numpy as np
import pytest
import torch

import maskattn_torch
from maskattn import masks, standards
from tests.twins import tiny_models
from tests.twins.tiny_models import MODELS, ROWS, TOKENS, WORDS, inputs, make, padding, result

transformers = pytest.importorskip("transformers")
maskattn_torch.register()

#: What runs each time; the others are marked slow.
FEW = ("llama", "mistral", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "llama4_text", "gpt2", "opt", "cohere2")
FEW += ("qwen2", "bert", "modernbert", "bart", "t5", "whisper", "vit", "beit", "clip", "phi3", "starcoder2", "olmo2")
SIDES = (None, "left", "right")
ONE = {"num_hidden_layers": 1}
EXPERTS = ("mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3", "llama4_text")


@pytest.mark.parametrize("kind", [x if x in FEW else pytest.param(x, marks=pytest.mark.slow) for x in MODELS])
def test_models_give_what_they_give_with_eager_attention(kind):
    eager, ours = make(kind), make(kind, "maskattn")
    # in float64 eager attention gives NaN where there is padding; experts are not computed in it
    own = 0.0 if kind in EXPERTS else np.abs(result(eager) - result(make(kind).double())).max()
    for side in SIDES:
        found, expected = result(ours, side), result(eager, side)
        assert standards.model_share(found, expected, own) <= 1, side
        if "pixel_values" in inputs(ours):
            break


@pytest.mark.parametrize("kind", ["llama", "gemma2", "bert"])
def test_in_bfloat16_the_error_is_no_larger(kind):
    right = result(make(kind).double(), "right")
    theirs, ours = (np.abs(result(make(kind, x).bfloat16(), "right") - right).max() for x in ("eager", "maskattn"))
    assert ours <= standards.value("tier4.bfloat16") * theirs


def test_the_comparison_sees_a_mask_that_is_off_by_one(monkeypatch):
    from maskattn_torch.hugging_face import _attention

    ours, expected = make("mistral", "maskattn"), result(make("mistral"))
    given = _attention._of_model
    wrong = masks.Causal() & masks.SlidingWindow(5, None)
    monkeypatch.setattr(_attention, "_of_model", lambda *args: given(*args) if args[0] is None else wrong)
    assert standards.model_share(result(ours), expected) > 1


TEXT = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None, output_logits=True)
CACHES = {
    "dynamic": {},
    "beams": {"num_beams": 2},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "static, beams": {"cache_implementation": "static", "disable_compile": True, "num_beams": 2},
    "none": {"use_cache": False},
    "prompts in parts": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize(
    ("kind", "cache"),
    [(kind, cache) for kind in ("mistral", "gemma3_text", "gpt_oss") for cache in CACHES]
    + [("llama", "dynamic"), ("llama", "static"), ("llama4_text", "dynamic"), ("gpt2", "beams")]
    + [("bart", "static"), ("t5", "dynamic"), ("t5", "static"), ("whisper", "dynamic")],
)
def test_greedy_text_is_the_same_with_every_cache(kind, cache):
    """Left padding; and logits, not only words: those may agree where a mask is wrong."""
    options = TEXT | CACHES[cache] | {"return_dict_in_generate": True}
    eager, ours = make(kind), make(kind, "maskattn")
    given = {name: x for name, x in inputs(ours, "left").items() if not name.startswith("decoder")}
    expected, found = eager.generate(**given, **options), ours.generate(**given, **options)
    assert torch.equal(found.sequences, expected.sequences)
    share = [
        standards.model_share(*(x.numpy() for x in (mine, his)))
        for mine, his in zip(found.logits, expected.logits, strict=True)
    ]
    assert max(share) <= 1


class TestMasks:
    """Which Mask a model's attention is handed."""

    @pytest.fixture
    def handed(self, monkeypatch):
        """The masks that attention was called with, one for each layer."""
        from maskattn_torch.hugging_face import _attention

        found, original = [], _attention._of_model
        monkeypatch.setattr(
            _attention, "_of_model", lambda mask, *rest: found.append(mask.part) or original(mask, *rest)
        )
        return found

    @pytest.mark.parametrize(
        ("kind", "side", "expected"),
        [
            ("llama", None, [masks.Causal()] * 2),
            ("mistral", None, [masks.SlidingWindow(4, None) & masks.Causal()] * 2),
            ("qwen2", None, [masks.Causal(), masks.SlidingWindow(4, None) & masks.Causal()]),
            ("llama4_text", None, [masks.Chunked(6) & masks.Causal()] * 3 + [masks.Causal()]),
            ("modernbert", None, [masks.SlidingWindow(4, 4)] * 2),
            ("llama", "left", [masks.Causal() & masks.KeyMask(padding("left").bool())] * 2),
            ("bert", "right", [masks.KeyMask(padding("right").bool())] * 2),
        ],
    )
    def test_is_what_transformers_means(self, handed, kind, side, expected):
        model = make(kind, "maskattn")
        model(**inputs(model, side))
        assert handed == expected

    def test_of_packed_documents(self, handed):
        """Documents as segments, and no position for each token where distances are what counts."""
        model, positions = make("mistral", "maskattn"), torch.tensor([[*range(5), *range(8)]] * ROWS)
        words = inputs(model)["input_ids"]
        found = model(words, position_ids=positions, use_cache=False).logits
        ids = torch.tensor([[0] * 5 + [1] * 8] * ROWS)
        assert handed == [masks.Segments(ids) & masks.SlidingWindow(4, None) & masks.Causal()] * 2
        expected = make("mistral")(words, position_ids=positions, use_cache=False).logits
        assert standards.model_share(found.numpy(), expected.numpy()) <= 1

    def test_of_one_token_is_all_of_the_cache(self, handed):
        model = make("llama", "maskattn")
        model.generate(inputs(model)["input_ids"], **TEXT)
        assert handed[-1] == masks.Full()

    def test_of_a_decoder_that_is_made_bidirectional(self, handed):
        model, eager = (make("llama", x, is_causal=False) for x in ("maskattn", "eager"))
        found, expected = result(model), result(eager)
        assert handed == [masks.Full()] * 2
        assert standards.model_share(found, expected) <= 1

    def test_of_a_function_that_is_not_transformers_own_is_dense(self):
        from transformers.masking_utils import causal_mask_function, or_masks

        from maskattn_torch.hugging_face._masks import mask

        def fifth(b, h, q, k):
            return k == 5

        with pytest.warns(UserWarning, match="fifth is none of transformers' own"):
            found = mask(2, 4, 6, q_offset=2, mask_function=or_masks(causal_mask_function, fifth))
        assert isinstance(found.part.parts[0], masks.Causal) and isinstance(found.part.parts[1], masks.Dense)
        expected = np.tri(4, 6, 2, dtype=bool) | (np.arange(6) == 5)
        np.testing.assert_array_equal(found.part.dense(4, 6), np.broadcast_to(expected, (2, 1, 4, 6)))

    def test_keeps_the_offset_of_a_static_cache_as_it_was(self):
        """The cache counts on in place before attention asks."""
        from maskattn_torch.hugging_face._masks import mask

        offset = torch.tensor(3)
        found = mask(1, 1, 8, q_offset=offset)
        offset += 1
        np.testing.assert_array_equal(found.tensor()[0, 0, 0], np.arange(8) <= 3)

    def test_may_be_given_by_the_caller(self):
        keep = torch.rand(ROWS, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0)) < 0.5
        keep |= torch.eye(TOKENS, dtype=torch.bool)
        model, eager = make("llama", "maskattn"), make("llama", "sdpa")
        words = inputs(model)["input_ids"]
        expected = eager(words, attention_mask=keep).logits.numpy()
        added = torch.where(keep, 0.0, torch.finfo(torch.float32).min)
        for given in (keep, masks.Dense(keep), added):
            found = model(words, attention_mask=given).logits.numpy()
            assert standards.model_share(found, expected) <= 1

    def test_that_is_added_is_a_bias(self):
        added = torch.randn(ROWS, 1, TOKENS, TOKENS, generator=torch.Generator().manual_seed(0))
        model, eager = make("llama", "maskattn"), make("llama", "sdpa")
        words = inputs(model)["input_ids"]
        expected = eager(words, attention_mask=added).logits.numpy()
        assert standards.model_share(model(words, attention_mask=added).logits.numpy(), expected) <= 1

    def test_of_documents_by_their_cumulative_lengths(self):
        """Where a model gives no mask, but these."""
        from maskattn_torch.hugging_face._attention import attention

        starts, x = torch.tensor([0, 2, 5]), torch.randn(1, 2, 5, 4)
        module = torch.nn.Identity()
        module.is_causal = True
        found, _ = attention(module, x, x, x, None, cu_seq_lens_q=starts, cu_seq_lens_k=starts)
        mask = masks.Segments([[0, 0, 1, 1, 1]]) & masks.Causal()
        assert torch.equal(found, maskattn_torch.attention(*[x.transpose(1, 2)] * 3, mask))
        with pytest.raises(ValueError, match="laid end to end in one row, but the batch is 2"):
            attention(module, *[x.expand(2, -1, -1, -1)] * 3, None, cu_seq_lens_q=starts)

    def test_made_for_other_lengths_is_refused(self):
        from maskattn_torch.hugging_face._attention import attention
        from maskattn_torch.hugging_face._masks import mask

        x = torch.zeros(1, 2, 3, 4)
        with pytest.raises(ValueError, match="made for 3 queries and 5 keys, but attention is asked for 3 and 3"):
            attention(torch.nn.Identity(), x, x, x, mask(1, 3, 5))


def test_a_function_that_changed_is_not_taken_as_known(monkeypatch):
    from transformers import masking_utils

    from maskattn_torch.hugging_face import _functions, _trial

    assert _trial.differing(_functions.read, _functions.Place) == set()

    def overlay(width):
        return lambda b, h, q, k: k >= q - width

    monkeypatch.setattr(masking_utils, "sliding_window_bidirectional_overlay", overlay)
    monkeypatch.delattr(masking_utils, "blockwise_overlay")
    found = _trial.differing(_functions.read, _functions.Place)
    assert found == {"sliding_window_bidirectional_overlay", "blockwise_overlay"}


def test_a_mask_of_distances_that_allows_all_or_nothing_is_seen_to_be_so():
    from maskattn_torch.hugging_face._functions import Place

    kinds = (masks.Causal(), masks.SlidingWindow(1, None), masks.SlidingWindow(1, 1), masks.Causal(-2))
    found = set()
    for mask, q_len, kv_len, q_at, k_at in itertools.product(kinds, (1, 2), (1, 3), (0, 1, 4), (0, 2)):
        placed = Place(q_len, kv_len, q_at, k_at, dense=None).put(mask, sloped=True)
        want = np.broadcast_to(mask.at(q_at, k_at).dense(q_len, kv_len), (1, 1, q_len, kv_len))
        assert (np.broadcast_to(placed.dense(q_len, kv_len), want.shape) == want).all()
        assert isinstance(placed, masks.Full) == want.all() and isinstance(placed, masks.Empty) == (not want.any())
        found.add(type(placed))
    assert {masks.Full, masks.Empty} < found


class TestTraining:
    @staticmethod
    def gradients(model, seed=3):
        model.train().requires_grad_(True)
        keep = padding("left")
        words = inputs(model)["input_ids"]
        labels = torch.where(keep.bool(), words, -100)
        labels[1, 4] = -100  # which padding would foretell
        torch.manual_seed(seed)
        model(words, attention_mask=keep, labels=labels, use_cache=False).loss.backward()
        return {name: x.grad.numpy() for name, x in model.named_parameters()}

    @pytest.mark.parametrize("kind", ["mistral", "gpt_oss"])
    def test_gradients_are_those_of_eager_attention(self, kind):
        expected, found = (self.gradients(make(kind, x)) for x in ("eager", "maskattn"))
        for name, gradient in expected.items():
            most = standards.value("tier4.gradient") * max(np.abs(gradient).max(), standards.value("tier4.gradient"))
            assert np.abs(found[name] - gradient).max() <= most, name

    def test_dropout_is_drawn_from_the_generator_and_again_in_a_checkpoint(self):
        model, again, other = (make("llama", "maskattn", attention_dropout=0.4) for _ in range(3))
        again.activation_checkpointing_enable()
        expected, found, drawn = self.gradients(model), self.gradients(again), self.gradients(other, seed=4)
        assert all(np.array_equal(found[name], x) for name, x in expected.items())
        assert not all(np.array_equal(drawn[name], x) for name, x in expected.items())


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
class TestCompiled:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()

    @pytest.mark.parametrize(
        ("kind", "side", "sizes"),
        [
            ("mistral", "left", None),
            pytest.param("llama4_text", None, None, marks=pytest.mark.slow),
            pytest.param("gemma2", "left", True, marks=pytest.mark.slow),
        ],
    )
    def test_in_one_graph(self, kind, side, sizes):
        """With sizes, and the scale, left open too."""
        model, expected = make(kind, "maskattn", **ONE), result(make(kind, "eager", **ONE), side)
        found = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=sizes)
        out = found(**inputs(model, side), use_cache=False).logits
        out = out if side is None else out[padding(side).bool()]
        assert standards.model_share(out.numpy(), expected) <= 1

    def test_tokens_with_a_static_cache_compile_once(self, monkeypatch):
        model, eager = make("llama", "maskattn", **ONE), make("llama", **ONE)
        config = transformers.CompileConfig(backend="aot_eager", mode=None, fullgraph=True)
        monkeypatch.setattr(type(model), "_valid_auto_compile_criteria", lambda *given: True)
        given = {k: x for k, x in inputs(model, "left").items()}
        expected = eager.generate(**given, **TEXT)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        found = model.generate(**given, **TEXT, cache_implementation="static", compile_config=config)
        assert torch.equal(found, expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


class TestRefused:
    @pytest.mark.parametrize(
        "kind", ["bloom", "mpt", "codegen", "xglm", "falcon", "gptj", "gpt_neo", "big_bird", "swinv2"]
    )
    def test_models_with_attention_of_their_own_are_refused_by_name(self, kind):
        config = transformers.AutoConfig.for_model(kind)
        auto = transformers.AutoModel
        name = transformers.MODEL_MAPPING[type(config)].__name__
        with torch.device("meta"), pytest.raises(ValueError, match=f"{name} computes attention in code of its own"):
            auto.from_config(config, attn_implementation="maskattn")

    def test_a_configuration_that_was_changed_later_is_refused_too(self):
        from maskattn_torch.hugging_face._masks import mask

        config = transformers.AutoConfig.for_model("bloom", vocab_size=WORDS, hidden_size=32, n_layer=1, n_head=4)
        model = transformers.AutoModel.from_config(config, attn_implementation="eager")
        model.config._attn_implementation_internal = "maskattn"
        with pytest.raises(ValueError, match="a model of type 'bloom' computes attention in code of its own"):
            model(torch.zeros(1, 3, dtype=torch.long))
        assert mask(1, 3, 3) is not None

    def test_code_that_takes_the_mask_for_a_tensor_gets_an_error_that_says_so(self):
        from maskattn_torch.hugging_face._masks import mask

        given, x = mask(2, 3, 5), torch.zeros(2, 1, 3, 5)
        uses = (
            lambda: x + given,
            lambda: given * x,
            lambda: given[:, :, 0],
            lambda: given == 0,
            lambda: given.to(x.dtype),
        )
        for use in uses:
            with pytest.raises(TypeError, match="does with its mask what one does with a tensor"):
                use()
        with pytest.raises(AttributeError, match="does with its mask what one does with a tensor"):
            given.masked_fill(x > 0, 0)
        for use in (lambda: torch.where(given, x, x), lambda: x & given, lambda: x.masked_fill(given, 0)):
            with pytest.raises(TypeError):
                use()

    def test_queries_and_keys_may_be_cut_off(self):
        from maskattn_torch.hugging_face._masks import mask

        given = mask(2, 3, 5, q_offset=2)
        whole, cut = given.tensor(), given[..., -2:, :4]
        assert cut.shape == (2, 1, 2, 4) and given[:, :, :, :5] is given
        assert torch.equal(cut.tensor(), whole[..., -2:, :4])

    def test_what_it_cannot_do_is_refused(self):
        model = make("llama", "maskattn")
        with pytest.raises(ValueError, match="output_attentions"):
            model(**inputs(model), output_attentions=True)
        from maskattn_torch.hugging_face._attention import attention

        x = torch.zeros(1, 2, 3, 4)
        with pytest.raises(ValueError, match="sparse attention over chosen keys"):
            attention(torch.nn.Identity(), x, x, x, None, indices=x)

    @pytest.mark.parametrize(
        ("name", "error"), [("sdpa", ValueError), ("eager", ValueError), ("", ValueError), (3, TypeError)]
    )
    def test_names_that_are_taken(self, name, error):
        with pytest.raises(error, match="register: name must be"):
            maskattn_torch.register(name)

    def test_may_be_registered_again_and_changed_to(self):
        maskattn_torch.register()
        model = make("llama", "sdpa")
        expected = result(model)
        model.set_attn_implementation("maskattn")
        assert standards.model_share(result(model), expected) <= 1


@pytest.mark.parametrize(
    "kind", [x for x in MODELS if x not in ("clip", "siglip", "wav2vec2", "llama4_text", "gpt_bigcode")]
)
def test_for_hf_gives_the_mask_of_each_layer(kind):
    """The weights that eager attention returns are 0 where it may not attend."""
    model = make(kind)
    config = model.config
    out = model(**{k: x for k, x in inputs(model).items() if k != "attention_mask"}, output_attentions=True)
    stacks = {"encoder": "encoder_attentions", "decoder": "decoder_attentions", "cross": "cross_attentions"}
    for part, name in stacks.items() if config.is_encoder_decoder else {None: "attentions"}.items():
        for layer, weights in enumerate(getattr(out, name)):
            mask = masks.for_hf(config, layer, part)
            assert mask == masks.for_hf(config.to_dict(), layer, part)
            np.testing.assert_array_equal(mask.dense(*weights.shape[2:], 1, 1)[0, 0], (weights > 0).any(1)[0].numpy())
        with pytest.raises(ValueError, match="layer must be less than"):
            masks.for_hf(config, layer + 1, part)


def test_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for kind in ("llama", "bart"):
            result(make(kind, "maskattn"), "left")
    assert tiny_models.TARGETS < TOKENS


@pytest.mark.parametrize(
    ("kind", "options", "length"),
    [
        ("big_bird", dict(attention_type="block_sparse", block_size=2, num_random_blocks=1), 18),
        ("longformer", dict(attention_window=[4]), 12),
        ("gpt_neo", dict(attention_types=[[["local"], 1]], window_size=3, num_layers=1, num_heads=4), 9),
    ],
)
def test_for_hf_of_models_that_give_no_weights(kind, options, length):
    """What the output at a query depends on, in a model of one layer."""
    sizes = dict(vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    sizes = {name: x for name, x in sizes.items() if kind != "gpt_neo" or name in ("vocab_size", "hidden_size")}
    config = transformers.AutoConfig.for_model(kind, **sizes, **options, max_position_embeddings=64, pad_token_id=1)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    embedded = torch.randn(1, length, 32, requires_grad=True)
    out = model(inputs_embeds=embedded, attention_mask=torch.ones(1, length)).last_hidden_state
    out = (out[0] * torch.randn(length, 32)).sum(-1)
    moved = [torch.autograd.grad(x, embedded, retain_graph=True)[0][0].abs().sum(-1) > 0 for x in out]
    expected = masks.for_hf(config, 0, length=length).dense(length, length)[0, 0]
    np.testing.assert_array_equal(torch.stack(moved).numpy(), expected)
