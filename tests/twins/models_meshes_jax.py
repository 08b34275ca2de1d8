"""Run by test_models_meshes_jax.py: whole models on meshes of 4 virtual devices, compared with one device."""

import functools
import os
import re
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from maskattn import checkpoints, models, standards
from maskattn.checkpoints.safetensors import SafetensorsReader
from maskattn.models import adapters
from maskattn.models.part import find
from maskattn.parity.against.hurry import HURRY
from maskattn_jax.models import Model, load, save
from maskattn_jax.models.meshes import Places
from tests.scripts import each
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
IDS = np.random.default_rng(3).integers(1, 96, (4, 7))
GATHER = re.compile(r"= (\S+) all-gather(?:-start)?\(")


def mesh(*sizes, names=("data", "model"), kind=AxisType.Auto):
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))


def table(**changes):
    made = models.describe({**CONFIG, **changes})
    return adapters.new(["q_proj", "down_proj"]).on(made)


def numbers(name, tensor):
    """Drawn, those of adapters too."""
    drawn = models.first_numbers(name, tensor._replace(begins=None)) * 5
    return drawn if tensor.begins is None else drawn + np.float32(tensor.begins)


def built(places=None, reads=None, made=None, **options):
    def start(name, tensor):
        whole = numbers(name, tensor)
        if places is None:
            return jnp.asarray(whole.transpose(tensor.order))

        def read(index):
            part = whole[index]
            if reads is not None:
                reads.setdefault(name, []).append(part.shape)
            return part

        return places.read(tensor, read)

    made = table() if made is None else made
    return Model(made, start, adapter=adapters.new("all-linear"), places=places, **options)


@functools.cache
def answered(model, where=None):
    """(logits, gradients, compiled text of the forward pass)."""
    graph, state = nnx.split(model)
    ids = jnp.asarray(IDS) if where is None else jax.device_put(IDS, NamedSharding(where, P("data")))

    def forward(state, ids):
        return nnx.merge(graph, state)(ids).logits

    run = jax.jit(forward).lower(state, ids).compile()
    gradient = jax.jit(jax.grad(lambda *given: (forward(*given) ** 2).mean()), compiler_options=HURRY)(state, ids)
    return run(state, ids), gradient, run.as_text()


@functools.cache
def plain(**options):
    return built(**options)


def alike(ours, right, limit="tier4.float32"):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= standards.value(limit) * np.abs(other).max()


def gathered(text):
    """How many numbers each all-gather of a program makes."""
    shapes = [re.search(r"\[(.*?)\]", shape)[1] for shape in GATHER.findall(text)]
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]


def test_layers_are_divided():
    reads = {}
    over = mesh(2, 2)
    places = Places.of(over, table())
    model = built(places, reads)
    for path, leaf in model.table.leaves():
        for name, tensor in leaf.tensors().items():
            array = getattr(find(model, path), tensor.flax)[...]
            divided = [axis for axis in tensor.axes if axis in ("vocab", "heads", "kv_heads", "mlp")]
            parts = 2 if divided else 1
            shapes = {shard.data.shape for shard in array.addressable_shards}
            assert {int(np.prod(shape)) * parts for shape in shapes} == {array.size}, path
            asked = reads[f"{path}.{name}"]  # no device reads more than its part, nor one part twice
            assert len(asked) == parts and sum(int(np.prod(shape)) for shape in asked) == array.size
    logits, gradient, text = answered(model, over)
    right, right_gradient, _ = answered(plain())
    alike(logits, right)
    alike(gradient, right_gradient, "tier4.gradient")
    assert logits.sharding.shard_shape(logits.shape) == (2, 7, 48), logits.sharding
    sizes = {parameter.size for parameter in jax.tree.leaves(nnx.state(model, nnx.Param))}
    assert not sizes & set(gathered(text))
    kernel = model.lm_head.kernel[...]
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(over, P())).lower(kernel).compile()
    assert kernel.size in gathered(whole.as_text())  # so that it would be seen
    spec = nnx.get_partition_spec(nnx.state(model))
    held = jax.tree.map(lambda x: x.sharding.spec, nnx.to_pure_dict(nnx.state(model)))
    for path, one in jax.tree.leaves_with_path(held, is_leaf=lambda x: isinstance(x, P)):
        named = functools.reduce(lambda at, key: at[key.key], path, nnx.to_pure_dict(spec))
        assert tuple(named) + (None,) * (len(one) - len(named)) == tuple(one), path


def test_it_writes_the_same():
    over = mesh(2, 2)
    model = built(Places.of(over, table()))
    options = {"attention_mask": np.tril(np.ones((7, 7), int))[[6, 5, 3, 6]], "max_new_tokens": 3}
    cache = model.new_cache(2, 8)
    assert cache[0].key.sharding.spec == P(None, None, "model", None)
    written = model.generate(IDS, **options)
    assert (np.asarray(written) == np.asarray(plain().generate(IDS, **options))).all()


def test_loops_and_widths_are_divided():
    over = mesh(2, 2, names=("data", "fsdp"))
    model = built(Places.of(over, table()), scan_layers=True)
    kernel = model.model.layers[0].phases[0].self_attn.q_proj.kernel
    assert kernel[...].sharding.spec == P(None, "fsdp", None) and kernel.out_sharding == (None, "embed", "heads")
    logits, _, _ = answered(model, over)
    alike(logits, answered(plain())[0])


def test_training_keeps_parameters_where_they_are():
    over = mesh(2, 2)
    model = built(Places.of(over, table()))
    before = jax.tree.map(lambda x: (np.asarray(x), x.sharding), nnx.to_pure_dict(nnx.state(model)))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.LoRAParam)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return (model(jnp.asarray(IDS)).logits ** 2).mean()

        found, gradient = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, gradient)
        return found

    first, second = (float(step(model, optimizer)) for _ in range(2))
    assert second < first
    for path, x in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model))):
        old, sharding = functools.reduce(lambda at, key: at[key.key], path, before)
        assert x.sharding.is_equivalent_to(sharding, x.ndim), path
        assert ("lora_" in str(path)) == bool((np.asarray(x) != old).any()), path


def test_a_folder_is_loaded_by_parts_and_saved_whole():
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        save(Model(models.describe(CONFIG)), f"{folder}/one", config=CONFIG)
        read, fill = [], SafetensorsReader._fill
        patch.setattr(
            SafetensorsReader, "_fill", lambda self, name, to, at: read.append(len(to)) or fill(self, name, to, at)
        )
        one = load(f"{folder}/one")
        whole = sum(read)
        read.clear()
        taken: list[int] = []

        def progress(name: str, count: int) -> None:
            taken.append(count)

        model = load(f"{folder}/one", mesh=mesh(2, 2), adapter=adapters.new(["q_proj"]), progress=progress)
        assert sum(read) == whole == sum(taken) == sum(x.nbytes for x in jax.tree.leaves(nnx.state(one)))
        kernel = model.model.layers[0].self_attn.q_proj.kernel[...]
        assert kernel.addressable_shards[0].data.shape == (48, 24)
        assert (np.asarray(kernel) == np.asarray(one.model.layers[0].self_attn.q_proj.kernel[...])).all()
        plain = load(f"{folder}/one", mesh=mesh(1, 4), scan_layers=True)
        save(plain, f"{folder}/again")
        with checkpoints.open(f"{folder}/one") as first, checkpoints.open(f"{folder}/again") as again:
            same_tensors(dict(first), {name: again[name] for name in first})


def test_heads_stay_whole():
    over = mesh(1, 4)
    places = Places.of(over, models.describe(CONFIG))
    assert {name for name, over in places.rules if over == "model"} == {"vocab", "mlp"}


def test_what_is_wrong_is_named():
    made = models.describe(CONFIG)
    with pytest.raises(ValueError, match="must be automatic"):
        Places.of(mesh(2, 2, kind=AxisType.Explicit), made)
    with pytest.raises(ValueError, match="rules must be given for a mesh of x, y"):
        Places.of(mesh(2, 2, names=("x", "y")), made)
    with pytest.raises(ValueError, match="got 'heads': 'z'"):
        Places.of(mesh(2, 2, names=("x", "y")), made, {"heads": "z"})
    with pytest.raises(TypeError, match="must be a jax.sharding.Mesh"):
        Places.of(3, made)


if __name__ == "__main__":
    each([value for name, value in list(globals().items()) if name.startswith("test_")])
