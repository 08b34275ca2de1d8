"""Layers stored as one with an axis of layers, and apart again."""

import ml_dtypes
import numpy as np
import pytest

from maskattn import convert_tensors, standards
from maskattn.convert import layouts
from tests.convert.layouts.layout_cases import tensors_for
from tests.convert.layouts.peer_cases import GROUPED, PLAIN, inputs_of
from tests.frameworks import jax, jnp, linen as nn
from tests.twin import same_tensors


class Block(nn.Module):
    """As big_vision's Encoder1DBlock: what is not named, Linen names."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(num_heads=5, precision="highest")(y, y, deterministic=True)
        return x + y, None


def test_big_vision_and_its_scanned_layers():
    x = inputs_of(PLAIN)[0]
    scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    params = jax.eval_shape(scanned().init, jax.random.key(0), x, None)["params"]
    draw = np.random.default_rng(5)
    flat = layouts.flatten({"params": {"Transformer": {"encoderblock": params}}})
    flat = {name: draw.standard_normal(array.shape).astype(np.float32) / 6 for name, array in flat.items()}
    assert flat["params/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"].shape == (3, 35, 5, 7)
    assert layouts.Stack("encoderblock", "encoderblock_{}").place("params/Transformer/encoderblock_0/x") is None

    stack = layouts.Stack("encoderblock", "encoderblock_{}")
    apart = stack.unstack(flat)
    assert all(
        np.shares_memory(array, flat[name.replace("_0/", "/", 1)])
        for name, array in apart.items()
        if "block_0/" in name
    )
    same_tensors(dict(sorted(stack.stack(apart).items())), dict(sorted(flat.items())))
    for number in range(3):
        assert apart.keys() >= {f"params/Transformer/encoderblock_{number}/LayerNorm_0/scale"}

    # Layer by layer and in another layout, the same computation.
    there = convert_tensors(apart, source="big-vision", target="timm", config=PLAIN, others="drop")
    assert sorted(name for name in there if "block_1." in name) == [
        f"params.Transformer.encoderblock_1.MultiHeadDotProductAttention_0.{part}.{kind}"
        for part in ("proj", "qkv")
        for kind in ("bias", "weight")
    ]
    home = convert_tensors(there, source="timm", target="big-vision", config=PLAIN)
    same_tensors(home, {name: apart[name] for name in home})
    y = jnp.asarray(x)
    block = jax.jit(Block().apply)
    for number in range(3):
        prefix = f"params/Transformer/encoderblock_{number}/"
        own = {name.removeprefix(prefix): array for name, array in apart.items() if name.startswith(prefix)}
        y, _ = block({"params": layouts.unflatten(own)}, y, None)
    together = layouts.unflatten({n.removeprefix("params/Transformer/encoderblock/"): a for n, a in flat.items()})
    found = jax.jit(scanned().apply)({"params": together}, x, None)[0]
    limit = standards.value("convert.folded") * standards.eps("float32") * float(jnp.abs(y).max())
    assert float(jnp.abs(found - y).max()) <= limit


@pytest.mark.parametrize("axis", [0, 1])
def test_stacks_of_any_layout(axis):
    """MaxText's layers lie on axis 1, Haliax's on axis 0; bytes and dtypes stay."""
    stack = (
        layouts.Stack("layers", "layers_{}", axis)
        if axis
        else layouts.Stack("layers.stacked", "layers.{}", separator=".")
    )
    layout, prefix = ("maxtext", "params/decoder/") if axis else ("levanter", "model.transformer.")
    apart = {}
    for number in range(11):
        own = tensors_for(layout, GROUPED, ml_dtypes.bfloat16, seed=number)
        apart |= {stack.name(prefix, number, name): array for name, array in own.items()}
    others = {"params/decoder/norm/scale": np.ones(3), "layers": np.ones(2)}
    together = stack.stack(apart | others)
    name = stack.name(prefix, None, next(iter(own)))
    assert together[name].shape[axis] == 11 and len(together) == len(own) + 2
    same_tensors(stack.unstack(together), apart | others)
    assert np.take(together[name], 10, axis).tobytes() == apart[stack.name(prefix, 10, next(iter(own)))].tobytes()


def test_stacks_that_do_not_fit_are_refused():
    stack = layouts.Stack("layers", "layers_{}")
    for tensors, message in [
        ({"layers/a": np.ones(())}, r"layers/a: no axis 0 of layers in shape \[\]"),
        ({"layers/a": np.ones((0, 2))}, r"layers/a: no axis 0 of layers in shape \[0, 2\]"),
        ({"layers/a": np.ones(2), "layers/b": np.ones(3)}, "numbers of layers differ: layers/a 2, layers/b 3"),
        ({"layers/a": np.ones(2), "layers_1/a": np.ones(())}, "layers_1/a: the name of a layer that is there already"),
    ]:
        with pytest.raises(ValueError, match=message):
            stack.unstack(tensors)
    for tensors, message in [
        ({"layers_0/a": np.ones(2), "layers_2/a": np.ones(2)}, "missing: layers_1/a"),
        ({"layers_0/a": np.ones(2), "layers_1/b": np.ones(2)}, "missing: layers_1/a\n.*missing: layers_0/b"),
        ({"layers_0/a": np.ones(2), "layers_1/a": np.ones(3)}, r"layers differ: \[2\] float64, \[3\] float64"),
        ({"layers_0/a": np.ones(2), "layers/a": np.ones(3)}, "layers/a: the name of stacked layers that is there"),
    ]:
        with pytest.raises(ValueError, match=message):
            stack.stack(tensors)
    with pytest.raises(ValueError, match=r"(?s)each must hold '\{\}'.*axis must be at least 0, got -1"):
        layouts.Stack("layers", "layers_0", -1)
