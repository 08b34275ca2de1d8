"""Whole models in exact arithmetic: the same bits in both twins, forward and backward, and no rounding but one each."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from maskattn import models, standards
from maskattn.attention import KernelCannot
from maskattn.parity.against.hurry import HURRY
from maskattn.parity.models.peer import WORDS, Peer
from maskattn.parity.models.tiny import TINY
from maskattn_jax.kernels import exact
from maskattn_jax.kernels.exact import rules
from maskattn_jax.models import Model as JaxModel
from maskattn_torch.models import Model as TorchModel
from tests.twin import same

pytest.importorskip("transformers")

pytestmark = pytest.mark.hurried

#: Rows that have no exact form, and what is said of them.
REFUSED = {
    r"(mixtral|qwen\d_moe|deepseek_v\d|olmoe|gpt_oss)(\+.*)?": "Experts: experts have no exact form",
    r"whisper|(wav2vec2|hubert)(\+.*)?|deberta-v2(\+separate)?": "got a convolution of windows that overlap",
    r"longt5\+global": "TransientGlobal: sums of blocks of tokens have no exact form",
    "clip|siglip": "Towers: the similarity of images and texts has no exact form",
    "esm": "divide has no exact form",
}


def refused(name: str) -> str:
    """Why a row has no exact form; empty where it has."""
    return next((why for pattern, why in REFUSED.items() if re.fullmatch(pattern, name)), "")


#: An encoder whose table is tied, with erf; a decoder with one layer for all of attention, whose MLP reads beside it.
QUICK = ("bert",)
ROWS = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in TINY if not refused(name)]


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of the exact functions, each compiled in half the time."""
    for module, name, static in (
        (rules, "_function_jit", (0, 2)),
        (rules, "_gradients_jit", (0, 3)),
        (exact, "_attention_jit", 1),
        (exact, "_attention_gradients_jit", 3),
    ):
        plain = getattr(module, name).__wrapped__
        hurried = _HURRIED.setdefault(name, jax.jit(plain, static_argnums=static, compiler_options=HURRY))
        monkeypatch.setattr(module, name, hurried)


_HURRIED: dict[str, Any] = {}


class Twins:
    """A row's model in both twins."""

    def __init__(self, name: str, **options: Any) -> None:
        self.tiny = replace(TINY[name], config={**TINY[name].config, **options})
        self.peer = Peer.of(name, self.tiny)
        tensors = self.peer.tensors
        self.table = models.describe(self.peer.config, tensors)
        self.torch = TorchModel(self.table, lambda name, _: torch.tensor(tensors[name])).eval()
        self.jax = JaxModel(self.table, lambda name, of: jnp.asarray(tensors[name].transpose(of.order)))
        self.batch = self.peer.batch(self.tiny, next(iter(self.tiny.padding), ""))

    def in_torch(self, **options: Any) -> tuple[list[Any], dict[str, Any]]:
        """What it gives, and the gradients of all parameters, of the sum of it all times numbers that differ."""
        given = {WORDS[name]: torch.tensor(x) for name, x in self.batch.items() if name in WORDS}
        found = flat(self.torch(**given, hidden_states=True, kernel="exact", **options))
        used = {name: x for name, x in self.torch.named_parameters() if x.requires_grad}
        cotangents = [torch.tensor(spread(x.shape)) for x in found]
        grads = torch.autograd.grad(found, list(used.values()), cotangents, allow_unused=True)
        self.unread = {name for name, g in zip(used, grads, strict=True) if g is None}
        made = {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(used.items(), grads, strict=True)}
        return found, made

    def in_jax(self, jit: bool = True, **options: Any) -> tuple[list[Any], dict[str, Any]]:
        """The same, its gradients named and turned as published."""
        graph, params, rest = nnx.split(self.jax, nnx.Param, ...)
        given = {WORDS[name]: jnp.asarray(x) for name, x in self.batch.items() if name in WORDS}

        def both(params: Any) -> Any:
            def run(params: Any) -> Any:
                model = nnx.merge(graph, params, rest)
                return flat(model(**given, hidden_states=True, kernel="exact", **options))

            found, pull = jax.vjp(run, params)
            return found, pull([jnp.asarray(spread(x.shape)) for x in found])[0]

        found, grads = (jax.jit(both, compiler_options=HURRY) if jit else both)(params)
        moved = dict(nnx.to_flat_state(grads))
        made = {}
        for path, leaf in self.table.leaves():
            for name, tensor in leaf.tensors().items():
                if tensor.trained:
                    at = (*path.split("."), tensor.flax) if name else tuple(path.split("."))
                    where = next(key for key in moved if tuple(map(str, key)) == at)
                    turned = np.asarray(moved[where][...]).transpose(np.argsort(tensor.order))
                    made[f"{path}.{name}" if name else path] = turned
        return found, made


def flat(out: Any) -> list[Any]:
    found = (*out.hidden_states, out.hidden, out.logits, out.pooled, out.text_embeds, out.image_embeds)
    return [x for x in found if x is not None]


def spread(shape: Any) -> np.ndarray:
    n = np.arange(np.prod(tuple(shape), dtype=int))
    return (((n * 7919 + 104729) % 997 - 498).reshape(tuple(shape)) / 331).astype(np.float32)


def all_same(one: Any, other: Any, twins: Twins) -> None:
    for x, y in zip(one[0], other[0], strict=True):
        same(y, x.detach())
    turned = {f"{path}.weight" for path, leaf in twins.table.leaves() if getattr(leaf, "turned", False)}
    for name, x in one[1].items():
        y = other[1][name]
        assert np.isfinite(y).all(), name
        assert y.any() or name in twins.unread or name.endswith(("k_proj.bias", "mask_token")), name
        try:
            same(y, x.T if name in turned else x)
        except AssertionError:
            raise AssertionError(name) from None


@pytest.mark.parametrize("name", ROWS)
def test_the_twins_have_the_same_bits(name: str, in_a_hurry: None) -> None:
    """JAX without a jit of the whole: each function is a program, which all layers share."""
    twins = Twins(name)
    all_same(twins.in_torch(), twins.in_jax(jit=False), twins)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in TINY if refused(name)])
def test_rows_that_have_no_exact_form_are_refused_by_name(name: str) -> None:
    twins = Twins(name)
    for run in (twins.in_torch, twins.in_jax):
        with pytest.raises(KernelCannot, match=refused(name)):
            run()


@pytest.mark.slow  # the whole is one program
def test_the_twins_have_the_same_bits_under_jit() -> None:
    twins = Twins("llama", num_hidden_layers=1)
    all_same(twins.in_torch(), twins.in_jax(), twins)


def test_each_step_is_rounded_once() -> None:
    """Against transformers in float64: an error of some roundings for each layer, where float32 has as many terms."""
    twins = Twins("bert")
    theirs, _ = twins.peer.to("float64").run(twins.batch)
    given = {WORDS[name]: torch.tensor(x) for name, x in twins.batch.items()}
    with torch.no_grad():
        ours = twins.torch(**given, kernel="exact").logits.numpy()
    keep = twins.batch["attention_mask"].astype(bool)
    true = theirs["logits"][keep]
    roundings = 12 * len(twins.table.stack.blocks)  # of a number and of what it is added to
    assert np.abs(ours[keep] - true).max() <= roundings * standards.eps("float32") * np.abs(true).max()


def test_dropout(in_a_hurry: None) -> None:
    twins = Twins("bert")
    options = {"dropout_key": 7, "deterministic": False}
    found = twins.in_torch(**options)
    assert not np.array_equal(found[0][-1].detach(), twins.in_torch()[0][-1].detach())
    all_same(found, twins.in_jax(jit=False, **options), twins)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip_vision_model", "vit_mae", "dinov2_with_registers"])
def test_tokens_are_the_same_for_all_of_a_batch(name: str, in_a_hurry: None) -> None:
    """What one token of its own is added to in five images: its gradient is one sum."""
    twins = Twins(name)
    given = {name: x for name, x in twins.batch.items() if name in WORDS}
    twins.batch = {name: np.concatenate([x, x / 2, x[:1] - x[1:]]) for name, x in given.items()}
    all_same(twins.in_torch(), twins.in_jax(jit=False), twins)


def test_what_was_added_is_refused_by_name() -> None:
    twins = Twins("bert")
    ids = np.zeros((1, 3), np.int32)
    inner = twins.jax.cls.predictions.transform
    inner.dense = nnx.LoRALinear(48, 48, lora_rank=2, rngs=nnx.Rngs(0))
    with pytest.raises(KernelCannot, match=r"cls.predictions.transform.dense must be a plain layer, got LoRALinear"):
        twins.jax(jnp.asarray(ids), kernel="exact")
    twins.torch.cls.predictions.transform.dense.register_forward_hook(lambda *_: None)
    with pytest.raises(KernelCannot, match=r"transform.dense must be a plain layer, got one with hooks: .* merge or"):
        twins.torch(torch.tensor(ids), kernel="exact")


def test_what_has_no_exact_form_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskattn.models.exact import refuse
    from maskattn.models.leaves import Conv
    from maskattn.models.mlp import Plain

    class Held(models.TokenModel):
        def leaves(self, prefix: str = "") -> Any:
            yield "whole", Conv("whole", 3, 5, (4, 4), (4, 4))
            yield "over", Conv("over", 3, 5, (4,), (2,))

    table = Twins("bert").table
    monkeypatch.setattr(Plain, "inexact", "its experts have no exact form")
    with pytest.raises(KernelCannot) as raised:
        refuse(Held(**vars(table)), iter(()))
    assert raised.value.reasons == [
        "Plain: its experts have no exact form",
        "over must be a product of patches, got a convolution of windows that overlap",
    ]


def test_patches_are_products() -> None:
    """As the convolution of transformers, in both twins, to the bit."""
    from maskattn.models.leaves import Conv
    from maskattn_jax.models.exact import Exact as InJax
    from maskattn_torch.models.exact import Exact as InTorch

    leaf, draws = Conv("patches", 3, 5, (2, 4), (2, 4)), np.random.default_rng(2)
    x, weight, bias = (draws.standard_normal(s).astype(np.float32) for s in ((2, 7, 9, 3), (5, 3, 2, 4), (5,)))
    theirs = torch.nn.Conv2d(3, 5, (2, 4), (2, 4))
    theirs.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    ours = nnx.Conv(3, 5, (2, 4), strides=(2, 4), rngs=nnx.Rngs(0))
    ours.kernel[...], ours.bias[...] = jnp.asarray(weight.transpose(2, 3, 1, 0)), jnp.asarray(bias)
    found = InTorch().conv(leaf, theirs, torch.tensor(x)).detach()
    same(InJax().conv(leaf, ours, jnp.asarray(x)), found)
    true = theirs.double()(torch.tensor(x).double().movedim(-1, 1)).movedim(1, -1)
    assert (found - true).abs().max() <= standards.eps("float32") * true.abs().max()
