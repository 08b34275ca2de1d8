"""What a new user does first, with an installed maskattn: `python smoke.py core`, or jax, torch, all.

The argument says which frameworks were installed: what they bring must work, and what is missing must be said in words.
It is run by `release/environments.py`, in a folder of its own and outside any checkout. Exit code 0: everything held.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import maskattn
from maskattn import checkpoints, masks, standards
from maskattn.numerics import exact, oracle

EXTRAS = {"core": (), "jax": ("jax",), "torch": ("torch",), "all": ("jax", "torch")}
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 37, "hidden_size": 24,
    "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
TORCH = "import torch\nlinear = torch.nn.Linear(8, 16).eval()\ndef side():\n    return linear, [torch.ones(4, 8)]\n"
JAX = """import jax.numpy as jnp
from original import linear
w, b = (jnp.asarray(one.detach().numpy()) for one in linear.parameters())
def right(x):
    return x @ w.T + b
def wrong(x):
    return x @ w.T + b * 2
def side():
    return right
def other():
    return wrong
"""
TEST = "def test_it(parity_impls, parity_kernels):\n    assert not parity_impls and parity_kernels == ['reference']\n"


def command(*arguments: str, code: int = 0) -> str:
    """What `maskattn` says, both streams, if it ends with this exit code."""
    done = subprocess.run([_script("maskattn"), *arguments], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == code, (
        f"maskattn {' '.join(arguments)}: exit code {done.returncode}, expected {code}\n{said}"
    )
    assert "Traceback" not in said, said
    return said


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def the_package_is_the_installed_one(there: tuple[str, ...]) -> None:
    """Packages come from the environment, typed, and say one version."""
    for name in ("maskattn", *(f"maskattn_{framework}" for framework in there)):
        home = Path(importlib.import_module(name).__file__ or "").parent
        assert home.is_relative_to(sys.prefix), f"{name} is imported from {home}, not from {sys.prefix}"
        assert (home / "py.typed").is_file()
    assert importlib.metadata.version("maskattn") == maskattn.__version__
    assert maskattn.__version__ in command("--version")


def imports_load_no_other_framework(there: tuple[str, ...]) -> None:
    """The core imports no framework, and no twin the other's."""
    packages = {"": {"jax", "flax", "torch"}, "jax": {"torch"}, "torch": {"jax", "flax"}}
    for twin in ("", *there):
        names = "maskattn.masks, maskattn.convert, maskattn.cli.main" if not twin else f"maskattn_{twin}.models"
        code = f"import sys, {names}; print(*{packages[twin]} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not done.stdout.strip(), f"import {names} loads {done.stdout}"


def attention_is_the_oracles(there: tuple[str, ...]) -> None:
    """Every kernel is within its limit of the float64 oracle; `exact` has the bits of NumPy."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 7, 4, 8)).astype(np.float32)
    k, v = k[:, :, :2], v[:, :, :2]
    mask = masks.Causal() & masks.SlidingWindow(3, 0) & masks.KeyPadding(np.array([7, 4]))
    allowed = mask.dense(7, 7)
    right = oracle.attention(q, k, v, allowed).output
    most = oracle.magnitudes(q, k, v, allowed)
    limit = standards.tier2_limit("float32", float(most.output.max()), most.logit, 7)
    bits = {"numpy": exact.attention(q, k, v, allowed)[0].tobytes()}
    for framework in there:
        twin = importlib.import_module(f"maskattn_{framework}")
        given = [_array(framework, x) for x in (q, k, v)]
        for kernel in ("auto", "reference", "blockwise", "fused", "exact"):
            found = np.asarray(twin.attention(*given, mask, kernel=kernel))
            error = float(np.abs(found - right).max())
            assert error <= limit, f"{framework}, {kernel}: error {error:.2e}, limit {limit:.2e}"
            if kernel == "exact":
                bits[framework] = found.tobytes()
    assert len(set(bits.values())) == 1, f"kernel='exact' differs among {', '.join(bits)}"


def _array(framework: str, x: np.ndarray[Any, Any]) -> Any:
    if framework == "torch":
        return importlib.import_module("torch").tensor(x)
    return importlib.import_module("jax.numpy").asarray(x)


def masks_are_drawn(there: tuple[str, ...]) -> None:
    """`--help`, and `show` with figures and reasons."""
    assert "Usage: maskattn" in command("--help")
    assert "56.25 %" in command("show", "causal", "--q", "8", "--ascii")
    assert command("show", "causal & window(2, 0)", "--q", "8", "--why", "0,0,5,2").strip()


def checkpoints_convert_and_come_back(there: tuple[str, ...]) -> None:
    """`inspect`, `convert` and back give the same bytes; with both frameworks `--verify` runs both models."""
    folder = Path("model")
    tensors = _model(folder)
    assert "hf-llama" in command("inspect", str(folder))
    verify = ["--verify"] if len(there) == 2 else []
    said = command("convert", str(folder), "there.npz", "--to", "flax-linen", *verify)
    assert not verify or "held" in said, said
    command("convert", "there.npz", "back/model.safetensors")
    with checkpoints.open("back/model.safetensors") as back:
        assert {name: back[name].tobytes() for name in back} == {name: x.tobytes() for name, x in tensors.items()}


def _model(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A tiny model of Hugging Face's Llama, written without any framework."""
    width, inner, kv, words = 24, 20, 8, 37
    shapes = {
        "model.embed_tokens.weight": (words, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (words, width),
    }
    for layer in range(2):
        for name, shape in {
            "input_layernorm": (width,), "post_attention_layernorm": (width,),
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    draw = np.random.default_rng(1)
    tensors = {name: (draw.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    checkpoints.save(folder / "model.safetensors", tensors)
    return tensors


def models_load_and_write(there: tuple[str, ...]) -> None:
    """A model is loaded, run, continues a text and is saved as it was; both twins write the same."""
    _model(Path("model"))
    found, written = {}, {}
    for framework in there:
        models = importlib.import_module(f"maskattn_{framework}.models")
        model = models.load("model")
        out = model(_array(framework, TOKENS))
        found[framework] = np.asarray(out.logits.detach() if framework == "torch" else out.logits)
        assert found[framework].shape == (2, 5, 37) and np.isfinite(found[framework]).all()
        tokens = model.generate(_array(framework, TOKENS), max_new_tokens=3)
        written[framework] = np.asarray(tokens).tolist()
        models.save(model, Path(f"saved-{framework}"))
        saved = Path(f"saved-{framework}", "model.safetensors").read_bytes()
        with (
            checkpoints.open("model/model.safetensors") as one,
            checkpoints.open(f"saved-{framework}/model.safetensors") as two,
        ):
            assert saved and {name: one[name].tobytes() for name in one} == {name: two[name].tobytes() for name in two}
    if len(there) == 2:
        assert written["jax"] == written["torch"]
        assert standards.model_share(found["jax"], found["torch"]) <= 1


def parity_holds(there: tuple[str, ...]) -> None:
    """`parity` on a few cases: both twins, or the one that is there."""
    few = ["parity", "--cases", "Causal/*float32*"]
    if len(there) == 2:
        command(*few)
        command(*few, "--kernel", "reference")
    for framework in there:
        command(*few, "--impl", f"maskattn_{framework}.testing.adapter:ADAPTER")
    if not there:
        assert "pip install" in command(*few, code=1)


def pytest_finds_the_plugin(there: tuple[str, ...]) -> None:
    """The plugin's options and fixtures are there without an import."""
    (entry,) = importlib.metadata.entry_points(group="pytest11", name="maskattn")
    assert entry.value == "maskattn.parity.plugin"
    Path("test_it.py").write_text(TEST, encoding="utf-8")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--parity-kernel", "reference", "test_it.py"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def ports_are_compared(there: tuple[str, ...]) -> None:
    """`compare` finds a right port equal and a wrong one different."""
    Path("original.py").write_text(TORCH, encoding="utf-8")
    Path("theirs.py").write_text(JAX, encoding="utf-8")
    if len(there) == 2:
        assert "equal: outputs" in command("compare", "original.py:side", "theirs.py:side")
        assert "different: outputs" in command("compare", "original.py:side", "theirs.py:other", code=1)
    else:
        said = command("compare", "original.py:side", "theirs.py:side", code=2)
        assert "nothing was compared: No module named" in said, said


def what_is_missing_is_said(there: tuple[str, ...]) -> None:
    """A twin without its framework, and a command that needs it, say what to install."""
    for framework in {"jax", "torch"} - set(there):
        try:
            importlib.import_module(f"maskattn_{framework}")
        except ModuleNotFoundError as error:
            assert f"pip install 'maskattn[{framework}]'" in str(error), error
        else:
            raise AssertionError(f"{framework} is installed")
    if len(there) < 2:
        assert "pip install" in command("parity", "faults", code=2)


CHECKS: tuple[Callable[[tuple[str, ...]], None], ...] = (
    the_package_is_the_installed_one,
    imports_load_no_other_framework,
    attention_is_the_oracles,
    masks_are_drawn,
    checkpoints_convert_and_come_back,
    models_load_and_write,
    parity_holds,
    pytest_finds_the_plugin,
    ports_are_compared,
    what_is_missing_is_said,
)


def main(extra: str) -> int:
    """Runs every check in a folder of its own, and says how many failed."""
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        with tempfile.TemporaryDirectory() as folder:
            home = Path.cwd()
            try:
                os.chdir(folder)
                check(EXTRAS[extra])
                print(f"  held    {name}", flush=True)
            except Exception:
                failed += 1
                print(f"  FAILED  {name}\n{traceback.format_exc()}", flush=True)
            finally:
                os.chdir(home)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} held")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1]) else 0)
