"""What is said of small programs that do one thing otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

import maskattn

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((2, 6, 16)).astype(np.float32)
W = DRAW.standard_normal((16, 16)).astype(np.float32)
KERNEL = torch.from_numpy(W)


def written_out(x):
    y = x @ KERNEL
    return 0.5 * y * (1 + torch.tanh(0.7978845608028654 * (y + 0.044715 * y**3))) @ KERNEL


def halves(x):
    gate, up = (x @ KERNEL).chunk(2, -1)
    return functional.silu(gate) * up


def slices(x):
    y = x @ KERNEL
    return functional.silu(y[..., :8]) * y[..., 8:]


def gated(x):
    up, gate = jnp.split(x @ W, 2, -1)
    return jax.nn.silu(gate) * up


@pytest.mark.parametrize(
    ("original", "port", "said"),
    [
        (written_out, lambda x: jax.nn.gelu(x @ W, approximate=False) @ W, "the activation is gelu, not gelu (tanh)"),
        (written_out, lambda x: jax.nn.silu(x @ W) @ W, "the activation is silu, not gelu (tanh)"),
        (halves, gated, "parts 1 and 2 of 2 are exchanged: split.Tensor at "),
        (slices, gated, "two slices are exchanged: slice.Tensor at "),
    ],
)
def test_what_a_port_does_otherwise_is_said(original, port, said):
    report = maskattn.compare(original, port, {"x": X})
    (place,) = report.places
    assert place.diagnosis.startswith(said), str(report)
    assert place.share <= report.tolerance
