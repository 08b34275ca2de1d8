"""`maskattn compare`: what it loads, what it says, what it writes, and how it ends."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from maskattn.cli.compare import command

TORCH = """
import numpy as np, torch
torch.manual_seed(0)
linear = torch.nn.Linear(8, 16).eval()
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear
    def forward(self, x):
        return torch.tanh(self.linear(x) * 0.25)
inputs = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
model = Model().eval()
def side():
    return model, inputs
def broken():
    raise RuntimeError("on purpose")
number = 3
"""
JAX = """
import functools
import jax.numpy as jnp
import numpy as np, torch
from original import linear
def port(p, x, scale=0.25):
    return jnp.tanh((x @ p["w"] + p["b"]) * scale)
params = {"w": jnp.asarray(linear.weight.detach().numpy().T), "b": jnp.asarray(linear.bias.detach().numpy())}
right = functools.partial(port, params)
drawn = torch.nn.Linear(8, 16).eval()  # two sides of one file share what it draws
def torch_side():
    return drawn, [np.ones((4, 8), np.float32)]
def jax_side():
    w, b = (jnp.asarray(one.detach().numpy()) for one in drawn.parameters())
    return lambda x: x @ w.T + b
wrong = functools.partial(port, params, scale=0.5)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command beside two files."""
    (tmp_path / "original.py").write_text(TORCH)
    (tmp_path / "theirs.py").write_text(JAX)
    np.savez(tmp_path / "x.npz", x=np.ones((2, 8), np.float32))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = CliRunner().invoke(command, arguments)
        return result.exit_code, " ".join(result.output.split())

    yield call
    for name in ("original", "theirs"):
        sys.modules.pop(name, None)


@pytest.mark.jax
@pytest.mark.torch
def test_a_right_port_ends_with_0_and_a_wrong_one_with_1(run, tmp_path):
    code, said = run("original.py:side", "theirs.py:right", "--grads")
    assert code == 0 and "equal: outputs, and 2 gradients to " in said, said
    code, said = run(
        "original.py:model", "theirs.py:wrong", "--inputs", "x.npz", "--json", "r.json", "--html", "r.html"
    )
    assert code == 1, said
    assert "theirs.py:7 port" in said and "original.py:10 Model.forward" in said and "different: outputs by" in said
    assert "one row only" not in said
    found = json.loads((tmp_path / "r.json").read_text())
    assert not found["ok"] and found["places"][0]["torch"] and found["parameters"][0]["how"] == "transposed"
    page = (tmp_path / "r.html").read_text()
    assert "Where they part" in page and "theirs.py:7 port" in page and "linear.weight" in page


@pytest.mark.jax
@pytest.mark.torch
def test_what_cannot_be_compared_ends_with_2_and_says_why(run):
    for sides, why in {
        ("original.py", "theirs.py:right"): "expected FILE.py:NAME or MODULE:NAME, got 'original.py'",
        ("gone.py:side", "theirs.py:right"): "there is no file gone.py",
        ("original.py:other", "theirs.py:right"): "original.py has no other; it has linear, Model, model, side, broken",
        ("original.py:number", "theirs.py:right"): "got int",
        ("original.py:model", "theirs.py:right"): "no inputs: give --inputs FILE.npz",
        ("original.py:side", "theirs.py:right", "--inputs", "x.npz"): "bring inputs of their own",
        ("original.py:broken", "theirs.py:right"): "nothing was compared: on purpose",
        ("no_such_module:side", "theirs.py:right"): "nothing was compared: No module named 'no_such_module'",
    }.items():
        code, said = run(*sides)
        assert code == 2 and why in said, said
