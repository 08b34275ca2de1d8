"""Adapters of PEFT give in both twins what transformers and PEFT give, and go back as they came."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskattn import checkpoints, models, standards
from maskattn.models import adapters
from maskattn.models.leaves import Linear
from maskattn.models.part import Run
from maskattn.parity.models.peer import WORDS, Peer
from maskattn.parity.models.tiny import TINY

pytestmark = pytest.mark.hurried

#: type -> what the adapter is.
ADAPTERS: dict[str, dict[str, Any]] = {
    "llama": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"layers.1.mlp.down_proj": 3},
        "alpha_pattern": {"v_proj": 5},
        "modules_to_save": ["lm_head"],
    },
    "gpt2": {"r": 3, "target_modules": ["c_attn", "c_proj"], "use_rslora": True, "fan_in_fan_out": True},
    "bert": {"r": 2, "target_modules": ["query", "dense"], "lora_alpha": 3},
}


class Both:
    """A tiny model of transformers with an adapter of PEFT, and what both twins make of the folder."""

    def __init__(self, name: str, folder: Path) -> None:
        peft = pytest.importorskip("peft")
        torch = pytest.importorskip("torch")
        self.tiny = TINY[name]
        self.peer = Peer.of(name, self.tiny)
        self.peer.model.save_pretrained(folder / "base")
        with warnings.catch_warnings(action="ignore"):  # of PEFT about transformers
            self.peft = peft.get_peft_model(self.peer.model, peft.LoraConfig(**ADAPTERS[name])).eval()
        draws = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for _, x in self.peft.named_parameters():
                if x.requires_grad:
                    x.copy_(torch.randn(x.shape, generator=draws) * 0.2)
        with warnings.catch_warnings(action="ignore"):
            self.peft.save_pretrained(folder)
        self.folder = folder

    def right(self) -> tuple[Any, Any]:
        """(batch, logits) of transformers with PEFT."""
        import torch

        batch = self.peer.batch(self.tiny, "right")
        given = {name: torch.tensor(x) for name, x in batch.items()}
        with torch.no_grad():
            return batch, self.peft(**given).logits.numpy()


@pytest.fixture(scope="module", params=ADAPTERS)
def both(request: Any, tmp_path_factory: Any) -> Both:
    pytest.importorskip("transformers")
    return Both(request.param, tmp_path_factory.mktemp("adapter"))


def logits(model: Any, batch: Any) -> Any:
    import torch

    given = {WORDS[name]: x for name, x in batch.items()}
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            return model(**{name: torch.tensor(x) for name, x in given.items()}).logits.numpy()
    return np.asarray(model(**given).logits)


def check(ours: Any, right: Any, batch: Any) -> None:
    keep = batch["attention_mask"].astype(bool)
    assert np.abs(ours - right)[keep].max() <= standards.value("tier4.float32") * np.abs(right[keep]).max()


@pytest.mark.parametrize("twin", ["torch", "jax"])
def test_it_gives_what_peft_gives_and_goes_back(both: Both, twin: str, tmp_path: Path) -> None:
    import maskattn_jax.models as in_jax
    import maskattn_torch.models as in_torch

    library: Any = in_torch if twin == "torch" else in_jax
    batch, right = both.right()
    model = library.load(both.folder / "base", adapter=both.folder)
    check(logits(model, batch), right, batch)
    whole = library.merged(model)
    assert whole.adapter is None and not any(leaf.within() for _, leaf in whole.table.leaves())
    check(logits(whole, batch), right, batch)
    with pytest.raises(ValueError, match="save_adapter"):
        library.save(model, tmp_path / "whole")
    if twin == "torch":
        library.save(whole, tmp_path / "whole")
        check(logits(library.load(tmp_path / "whole"), batch), right, batch)
    library.save_adapter(model, tmp_path)
    assert (tmp_path / adapters.CONFIG).read_bytes() == (both.folder / adapters.CONFIG).read_bytes()
    with checkpoints.open(tmp_path / adapters.WEIGHTS) as ours, checkpoints.open(both.folder / adapters.WEIGHTS) as old:
        assert ours.keys() == old.keys()
        for name in old:
            assert ours[name].dtype == old[name].dtype and ours[name].tobytes() == old[name].tobytes()


def test_a_loop_has_its_adapters_stacked(tmp_path: Path) -> None:
    pytest.importorskip("transformers"), pytest.importorskip("jax")
    import maskattn_jax.models as in_jax

    both = Both("gpt2", tmp_path)
    batch, right = both.right()
    model = in_jax.load(both.folder / "base", adapter=both.folder, scan_layers=True)
    assert model.transformer.h[0].phases[0].attn.c_attn.lora_A.kernel.shape == (2, 48, 3)
    check(logits(model, batch), right, batch)
    in_jax.save_adapter(model, tmp_path / "again")
    assert adapters.read(tmp_path / "again").tensors.keys() == adapters.read(both.folder).tensors.keys()
    check(logits(in_jax.merged(model), batch), right, batch)


def test_peft_trains_our_model(tmp_path: Path) -> None:
    """PEFT's own layers stand at our paths; what it saves is read as it is."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from maskattn_torch.models import Model

    table = models.describe(SMALL)
    model = Model(table, lambda *of: torch.tensor(models.first_numbers(*of)))
    ids = torch.arange(1, 8)[None]
    with warnings.catch_warnings(action="ignore"):
        wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "down_proj"], lora_alpha=20))
        optimizer = torch.optim.SGD([x for x in wrapped.parameters() if x.requires_grad], 0.5)
        for _ in range(2):
            wrapped(ids).logits.square().mean().backward()
            optimizer.step()
        wrapped.save_pretrained(tmp_path)
        right = wrapped(ids).logits.detach()
    adapter = adapters.read(tmp_path)

    def start(name: str, tensor: Any) -> Any:
        found = adapter.numbers(name, tensor)
        return torch.tensor(models.first_numbers(name, tensor) if found is None else found)

    ours = Model(adapter.on(table), start, adapter=adapter)(ids).logits.detach()
    plain = Model(table, start)(ids).logits.detach()
    limit = standards.value("tier4.float32") * right.abs().max()
    assert (ours - right).abs().max() <= limit < (plain - right).abs().max()


SMALL = {"model_type": "llama", "vocab_size": 96, "hidden_size": 48, "intermediate_size": 44}
SMALL |= {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2}


@pytest.mark.slow
def test_exact_bits_are_the_same() -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    import maskattn_jax.models as in_jax
    import maskattn_torch.models as in_torch
    from maskattn.parity.against.hurry import HURRY
    from maskattn_jax.models.exact import Exact as ExactJax
    from maskattn_torch.models.exact import Exact as ExactTorch

    adapter = adapters.new(["k_proj", "down_proj"], rank=3, alpha=5)
    table = adapter.on(models.describe({**SMALL, "num_hidden_layers": 1}))

    def numbers(name: str, tensor: Any) -> Any:
        return models.first_numbers(name, tensor._replace(begins=None)) * 5

    def start(name: str, tensor: Any) -> Any:
        return jax.numpy.asarray(numbers(name, tensor).transpose(tensor.order))

    leaf = table.stack.blocks[0].attention.inputs.key  # type: ignore[attr-defined, union-attr]
    one = in_torch.Model(table, lambda *of: torch.tensor(numbers(*of)), adapter=adapter).model.layers[0]
    two = in_jax.Model(table, start, adapter=adapter).model.layers[0]
    x = np.random.default_rng(1).standard_normal((1, 3, 48), np.float32)
    with torch.no_grad():
        found = Run(ExactTorch()).linear(leaf, one, torch.tensor(x)).numpy()
        plain = Run(ExactTorch()).linear(replace(leaf, lora=None), one, torch.tensor(x)).numpy()
    run = jax.jit(lambda x: Run(ExactJax()).linear(leaf, two, x), compiler_options=HURRY)
    assert found.tobytes() == np.asarray(run(x)).tobytes() != plain.tobytes()


USUAL = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("config", "shapes", "says"),
    [
        ({"peft_type": "IA3"}, {}, "peft_type 'IA3' is not read"),
        ({"use_dora": True}, {}, "use_dora True is not read"),
        ({"bias": "all"}, {}, "bias 'all' is not read"),
        ({"init_lora_weights": "pissa"}, {}, "changes the model's own weights"),
        ({"trainable_token_indices": [1]}, {}, "trainable_token_indices"),
        ({"something_new": {"a": 1}}, {}, "something_new"),
        ({"r": 0}, {}, "r must be a positive number"),
        ({}, {Q.format("A"): (3, 48)}, r"has shape \[3, 48\], expected \[2, 48\]"),
        ({}, {Q.format("B"): None}, "lora_B.weight: missing"),
        ({}, {"base_model.model.model.embed_tokens.lora_embedding_A": (2, 96)}, "has no linear layer"),
        ({}, {"base_model.model.model.embed_tokens.weight": (96, 48)}, "the head is the same table"),
        ({}, {"model.norm.weight": (48,)}, "begin with base_model.model."),
    ],
)
def test_what_is_not_read_is_named(config: dict[str, Any], shapes: dict[str, Any], says: str, tmp_path: Path) -> None:
    held = {Q.format("A"): (2, 48), Q.format("B"): (48, 2)} | shapes
    tensors = {name: np.zeros(shape, np.float32) for name, shape in held.items() if shape is not None}
    checkpoints.save(tmp_path / adapters.WEIGHTS, tensors)
    (tmp_path / adapters.CONFIG).write_text(json.dumps(USUAL | config))
    with pytest.raises(ValueError, match=says):
        adapters.read(tmp_path).on(models.describe({**SMALL, "tie_word_embeddings": True}))


def test_new_adapters_are_checked() -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"rank must be at least 1(.|\n)*dropout_rate must be in \[0, 1\)"
    ):
        adapters.new(["q_proj"], rank=0, dropout_rate=1.0)
    with pytest.raises(ValueError, match="the model has no such linear layer"):
        adapters.new(["nothing"]).on(models.describe(SMALL))
    everything = adapters.new("all-linear").on(models.describe({**SMALL, "tie_word_embeddings": False}))
    assert sum(bool(leaf.within()) for _, leaf in everything.leaves()) == 14
    some = adapters.new(r".*layers\.1\..*proj").on(models.describe(SMALL))
    assert sum(bool(leaf.within()) for _, leaf in some.leaves()) == 7


def test_every_model_takes_adapters() -> None:
    """All linear layers of all rows, and no other leaf, are reached by the paths that they have."""
    transformers = pytest.importorskip("transformers")
    for name, tiny in TINY.items():
        config = transformers.AutoConfig.for_model(name.partition("+")[0], **tiny.config)
        table = models.describe(config)
        adapter = adapters.new(r".*")
        with_adapter = adapter.on(table)
        linear = {path for path, leaf in table.leaves() if isinstance(leaf, Linear)}
        added = {path for path, leaf in with_adapter.leaves() if leaf.adapter}
        assert added == {f"{path}.lora_{side}" for path in linear for side in "AB"}, name
        assert adapters.without(with_adapter) == table, name
