"""Weights in the layout of Keras, run on PyTorch, compute what its modules compute."""

import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_HOME", tempfile.gettempdir())  # where it would write its settings

import keras
import numpy as np
import pytest

from maskattn.convert import layouts
from tests.convert.layouts.peer_cases import ALLOWED, GROUPED, PLAIN, WIDE, converted, inputs_of, judge


@pytest.mark.parametrize("config", [PLAIN, WIDE], ids=["plain", "every width its own"])
def test_keras_multi_head_attention(config):
    canonical, tensors = converted("keras", config)
    options = {"value_dim": config.v_head_dim, "output_shape": config.out_dim}
    module = keras.layers.MultiHeadAttention(config.num_heads, config.head_dim, **options, name="attention")
    x = inputs_of(config)
    module.build(x[0].shape, x[2].shape, x[1].shape)
    variables = {variable.path: variable for variable in module.variables if "seed" not in variable.path}
    assert {path: tuple(v.shape) for path, v in variables.items()} == {
        f"attention/{n}": a.shape for n, a in tensors.items()
    }
    for path, variable in variables.items():
        variable.assign(tensors[path.removeprefix("attention/")])
    output = module(x[0], x[2], x[1], attention_mask=np.broadcast_to(ALLOWED[:, 0], (2, 11, 11)))
    judge(output.detach(), canonical, config, x)
    dumped = {path: variable.value.detach().numpy() for path, variable in variables.items()}
    assert layouts.detect(dumped).layout == "keras"


def test_keras_grouped_query_attention():
    canonical, tensors = converted("keras", GROUPED)
    module = keras.layers.GroupQueryAttention(7, 6, 2, name="attention")
    x = inputs_of(GROUPED)
    module.build(x[0].shape, x[2].shape, x[1].shape)
    for variable in module.variables:
        if "seed" not in variable.path:
            variable.assign(tensors[variable.path.removeprefix("attention/")])
    output = module(x[0], x[2], x[1], attention_mask=np.broadcast_to(ALLOWED[:, 0], (2, 11, 11)))
    judge(output.detach(), canonical, GROUPED, x)
