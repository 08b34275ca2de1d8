"""Where a port computes in fewer bits than its original, and what is no fault."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import maskattn

WIDTH = 16
X = np.random.default_rng(0).standard_normal((2, 6, WIDTH)).astype(np.float32)


class Original(nn.Module):
    """A norm, attention with one head, a residual. `narrow`: dtypes of parts, by name."""

    def __init__(self, **narrow):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)
        self.narrow = narrow

    def forward(self, x):
        x = x.to(self.qkv.weight.dtype)
        wide = self.narrow.get("norm", torch.float32)
        y = nn.functional.layer_norm(x.to(wide), (WIDTH,), self.norm.weight.to(wide), self.norm.bias.to(wide))
        q, k, v = self.qkv(y.to(x.dtype)).chunk(3, -1)
        scores = q @ k.mT * 0.25
        p = torch.softmax(scores.to(self.narrow.get("softmax", torch.float32)), -1).to(x.dtype)
        return x + p @ v


def port(p, x, **narrow):
    """The same by JAX."""
    x = x.astype(p["qkv.weight"].dtype)
    cast = lambda part, one: one.astype(narrow.get(part, jnp.float32))  # noqa: E731
    y = cast("norm", x)
    y = (y - y.mean(-1, keepdims=True)) * jax.lax.rsqrt(y.var(-1, keepdims=True) + 1e-5)
    y = (y * cast("norm", p["norm.weight"]) + cast("norm", p["norm.bias"])).astype(x.dtype)
    w, b = p["qkv.weight"], p["qkv.bias"]
    if "product" in narrow:
        made = (cast("product", y) @ cast("product", w).T).astype(x.dtype) + b
    else:
        made = y @ w.T + b
    q, k, v = jnp.split(made, 3, -1)
    scores = q @ k.mT * 0.25
    o = jax.nn.softmax(cast("softmax", scores), -1).astype(x.dtype) @ v
    out = cast("residual", x) + cast("residual", o) if "residual" in narrow else x + o
    return cast("output", out) if "output" in narrow else out


def compared(original, stored=None, **narrow):
    """What is said of a port whose parameters are stored as the original's are, or otherwise."""
    dtype = jnp.bfloat16 if original.qkv.weight.dtype == torch.bfloat16 else jnp.float32
    state = {name: jnp.asarray(one.float().numpy(), stored or dtype) for name, one in original.state_dict().items()}
    return maskattn.compare(original.eval(), functools.partial(port, state, **narrow), {"x": X})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("softmax", "softmax"),
        ("norm", "norm"),
        ("product", "matrix product"),
        ("residual", "sum"),
        ("output", "output"),
    ],
)
def test_what_a_port_computes_in_fewer_bits_is_found(part, what, dtype):
    report = compared(Original(), **{part: getattr(jnp, dtype)})
    assert not report.ok and report.error <= report.tolerance
    (place,) = report.places
    assert place.rounding and place.diagnosis == f"{what} computed in {dtype}, the original in float32"
    assert "port" in place.jax[0] and (part == "output" or "Original.forward" in place.torch[0])
    assert "in float64 outputs are equal" in report.verdict


def test_what_both_compute_in_fewer_bits_is_no_fault():
    report = compared(Original(softmax=torch.bfloat16), softmax=jnp.bfloat16)
    assert report.ok and not report.places, str(report)
    assert "JAX" not in report.notes


def test_what_the_original_alone_computes_in_fewer_bits_is_noted():
    report = compared(Original(softmax=torch.bfloat16))
    assert report.ok and not report.places, str(report)
    said = "PyTorch computes in fewer bits than JAX, no fault of the port: softmax in bfloat16, JAX in float32"
    assert any(note.startswith(said) for note in report.notes), report.notes
    report = compared(Original(softmax=torch.float16), softmax=jnp.bfloat16)
    assert report.diagnosis == ("softmax computed in bfloat16, the original in float16",)


def test_a_model_stored_in_bfloat16_computes_in_it_but_for_what_the_original_does_not():
    report = compared(Original().bfloat16())
    assert report.ok and not report.places, str(report)
    for part in ("softmax", "norm"):
        report = compared(Original().bfloat16(), **{part: jnp.bfloat16})
        assert not report.ok
        assert report.diagnosis == (f"{part} computed in bfloat16, the original in float32",), str(report)


def test_how_parameters_are_stored_is_no_computation():
    for original, stored in ((Original(), jnp.bfloat16), (Original().bfloat16(), jnp.float32)):
        report = compared(original, stored)
        assert report.ok and not report.places, str(report)


def test_what_a_dtype_holds_exactly_is_not_rounded():
    def masked(x, see):
        return x * see.to(torch.float32)

    def in_bfloat16(x, see):
        return x * jnp.where(see, 1, 0).astype(jnp.bfloat16).astype(jnp.float32)

    assert maskattn.compare(masked, in_bfloat16, {"x": X, "see": X > 0}).ok
