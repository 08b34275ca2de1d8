"""Run by test_models_meshes_torch.py: whole models over two processes that talk over gloo, held to those of one."""

import subprocess
import sys
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from maskattn import checkpoints, models, standards
from maskattn.checkpoints.safetensors import SafetensorsReader
from maskattn.models import adapters
from maskattn_torch.models import Model, load, merged, save, save_adapter
from maskattn_torch.models.divided import Places
from tests.twin import same_tensors

CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
IDS = torch.randint(1, 96, (4, 7), generator=torch.Generator().manual_seed(3))
MASK = torch.tril(torch.ones(7, 7, dtype=torch.long))[[6, 5, 3, 6]]


def numbers(name, tensor):
    drawn = torch.tensor(models.first_numbers(name, tensor._replace(begins=None))) * 5
    return drawn if tensor.begins is None else drawn + tensor.begins


def spread(mesh, config, plain, reads):
    """The model out of a folder, on the mesh."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        save(plain, f"{folder}/one", config=config)
        fill = SafetensorsReader._fill

        def counted(self, name, to, at):
            reads[name] = reads.get(name, 0) + len(to) // 4
            fill(self, name, to, at)

        patch.setattr(SafetensorsReader, "_fill", counted)
        taken: dict[str, int] = {}
        model = load(f"{folder}/one", mesh=mesh, progress=taken.__setitem__)
        patch.undo()
        with checkpoints.open(f"{folder}/one") as first:
            assert sum(taken.values()) == sum(info.nbytes for info in first.infos.values())
        save(model, f"{folder}/again")
        if dist.get_rank() == 0:
            with checkpoints.open(f"{folder}/one") as first, checkpoints.open(f"{folder}/again") as again:
                same_tensors(dict(first), {name: again[name] for name in first})
        return model


def alike(found, right, limit="tier4.float32"):
    found = found.full_tensor() if isinstance(found, DTensor) else found
    assert found.shape == right.shape
    assert (found - right).abs().max() <= standards.value(limit) * right.abs().max()


def held_to_one(mesh, config, divided):
    reads = {}
    plain = Model(models.describe(config), numbers)
    model = spread(mesh, config, plain, reads)
    for name, parameter in model.named_parameters():
        parts = 2 if divided(name) else 1
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        file = name if name in reads else name.replace("lm_head", "embed_out")
        assert reads[file] == local.numel() and local.numel() * parts == parameter.numel(), name
    with warnings.catch_warnings(action="error"):  # FSDP2 warns of outputs that are views
        out, right = model(IDS, MASK), plain(IDS, MASK)
    alike(out.logits, right.logits)
    out.logits.square().mean().backward()
    right.logits.square().mean().backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None, name
        alike(one.grad, other.grad, "tier4.gradient")
    written = model.generate(IDS, MASK, max_new_tokens=3)
    assert (written == plain.generate(IDS, MASK, max_new_tokens=3)).all()
    return model


def layers_are_divided():
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    model = held_to_one(mesh, CONFIG, lambda name: "norm" not in name)
    assert model.new_cache(1, 4)[0].key.shape[2] == 1  # each has the keys of its own heads
    with pytest.raises(ValueError, match="no dropout is drawn"):
        model(IDS, dropout_key=3, deterministic=False)
    tied = {**CONFIG, "tie_word_embeddings": True, "attention_bias": True}
    held_to_one(mesh, tied, lambda name: not any(word in name for word in ("norm", "embed", "o_proj.bias")))
    qwen = {**CONFIG, "model_type": "qwen3", "head_dim": 8, "intermediate_size": 46}
    held_to_one(mesh, qwen, lambda name: "norm" not in name)
    neox = {**{key: x for key, x in CONFIG.items() if "key" not in key}, "model_type": "gpt_neox"}
    replicated = ("norm", "attention.dense.bias", "dense_4h_to_h.bias")
    held_to_one(mesh, neox, lambda name: not any(word in name for word in replicated))


def blocks_are_gathered():
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    model = held_to_one(mesh, CONFIG, lambda name: True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    before = model(IDS).logits.square().mean()
    optimizer.step()
    assert model(IDS).logits.square().mean() < before


def both_at_once():
    for sizes in ((1, 2), (2, 1)):
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("fsdp", "tp"))
        held_to_one(mesh, CONFIG, lambda name, sizes=sizes: sizes[0] == 2 or "norm" not in name)


def blocks_are_gathered_with_an_adapter():
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    plain = Model(models.describe(CONFIG), numbers)
    with tempfile.TemporaryDirectory() as folder:
        save(plain, f"{folder}/one", config=CONFIG)
        model = load(f"{folder}/one", mesh=mesh, adapter=adapters.new(["q_proj", "up_proj"], rank=2))
        alike(model(IDS).logits, plain(IDS).logits)
        optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], 0.1)
        model(IDS).logits.square().mean().backward()
        optimizer.step()
        right = model(IDS).logits
        save_adapter(model, f"{folder}/adapter")
        with pytest.raises(ValueError, match="lies on a mesh"):
            merged(model)
        if dist.get_rank() == 0:
            alike(load(f"{folder}/one", adapter=f"{folder}/adapter")(IDS).logits, right)
        assert (right - plain(IDS).logits).abs().max() > 1e-3
        dist.barrier()
    with pytest.raises(ValueError, match="layers with an adapter are not divided"):
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
        Places.of(mesh, adapters.new(["q_proj"]).on(models.describe(CONFIG)))


def what_cannot_be_divided_is_named():
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))

    def refused(words, **changes):
        with pytest.raises(ValueError, match=words):
            Places.of(mesh, models.describe({**CONFIG, **changes}))

    refused("two halves of one layer", model_type="phi3", pad_token_id=0)
    refused("queries, keys and values of one layer", model_type="gpt2", n_embd=48, n_head=6, n_layer=2, n_positions=32)
    refused("mlp 45 cannot be divided by 2", intermediate_size=45)
    refused("attention with position_bias is not divided", model_type="bloom", n_head=6, n_layer=2)
    bare = init_device_mesh("cpu", (2,))
    with pytest.raises(ValueError, match="must have names"):
        Places.of(bare, models.describe(CONFIG))


def main(rank, store):
    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": 2, "timeout": timedelta(seconds=200)}
    dist.init_process_group("gloo", init_method=f"file://{store}", **options)
    for check in (
        layers_are_divided,
        blocks_are_gathered,
        blocks_are_gathered_with_an_adapter,
        what_cannot_be_divided_is_named,
    ):
        check()
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(int(sys.argv[1]), sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__]
            both = [subprocess.Popen([*command, str(rank), str(Path(folder) / "store")]) for rank in range(2)]
            assert [one.wait(timeout=400) for one in both] == [0, 0]
        print("done")
