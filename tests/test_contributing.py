"""CONTRIBUTING.md, followed to the letter: each thing it adds is one file and its line, and is then everywhere.

All six are added to one copy of the packages, from the text of the guide; nothing else in the copy is changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"`(maskattn\w*/\S+\.(?:py|toml))`(?: could be)?:\n\n```(?:python|toml)\n(.*?)```", GUIDE, re.DOTALL)
)
COMMAND = ("-m", "maskattn")
SQUARE = "Causal/square/*"
#: Runs the command once for each list of arguments, in one process.
COMMANDS = """
import json, sys
from click.testing import CliRunner
from maskattn.cli.main import main
printed = []
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, arguments)
    printed.append(done.output)
    assert done.exit_code == 0, done.output
print(json.dumps(printed))
"""
#: The examples in a module's docstrings, of which there must be some.
EXAMPLES = """
import doctest, importlib, sys
found = doctest.testmod(importlib.import_module(sys.argv[1]))
assert found.attempted and not found.failed
"""


def enter(path, imported, table, line):
    """An import, and a line of a table."""
    text = path.read_text(encoding="utf-8").replace("\nfrom maskattn", f"\n{imported}\nfrom maskattn", 1)
    text, count = re.subn(rf"^({table}\b[^=\n]*= [\(\[{{])", rf"\1{line}, ", text, count=1, flags=re.MULTILINE)
    assert count == 1, f"no {table} in {path}"
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs Python in a copy of the packages that has all six."""
    folder = tmp_path_factory.mktemp("newcomer")
    for package in ("maskattn", "maskattn_jax", "maskattn_torch"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text in FILES.items():
        assert not (folder / file).exists(), file
        (folder / file).write_text(text, encoding="utf-8")
    lines = [
        ("maskattn/masks", "from maskattn.masks.congruent import Congruent", "__all__", '"Congruent"'),
        ("maskattn/biases", "from maskattn.biases.key_bias import KeyBias", "__all__", '"KeyBias"'),
        ("maskattn/checkpoints", "from maskattn.checkpoints import flat", "_FORMATS", "flat"),
        ("maskattn_jax/kernels", "from maskattn_jax.kernels import textbook", "KERNELS", '"textbook": textbook'),
        ("maskattn_torch/kernels", "from maskattn_torch.kernels import textbook", "KERNELS", '"textbook": textbook'),
    ]
    layout = "from maskattn.convert.layouts.gpt_bigcode import GPTBigCode"
    lines.append(("maskattn/convert/layouts", layout, "_LAYOUTS", "GPTBigCode()"))
    for package, *line in lines:
        enter(folder / package / "__init__.py", *line)

    def call(*arguments, held=True):
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "error"}
        options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        found = subprocess.run([sys.executable, *arguments], **options, check=False)
        assert not held or found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    return call


def commands(run, *lines):
    """What the command prints for each list of arguments."""
    return json.loads(run("-c", COMMANDS, json.dumps(lines)))


def test_the_guide_has_a_file_for_each():
    assert len(FILES) == 7  # a kernel has two
    kinds = {"masks", "biases", "layouts", "families", "kernels", "checkpoints"}
    assert {Path(file).parent.name for file in FILES} == kinds


def test_the_files_are_as_the_linters_want_them(tmp_path):
    for file, text in FILES.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    for arguments in (("check",), ("format", "--check")):
        command = [sys.executable, "-m", "ruff", *arguments, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout


def test_a_mask_has_cases_text_a_drawing_and_a_place_in_the_gallery(run):
    numpy = ("--impl", "maskattn.parity.attention.adapters:NumpyExact")
    listed, judged, shown = commands(
        run,
        ["parity", "list", "--cases", "Congruent"],
        ["parity", *numpy, "--cases", "Congruent/*"],
        ["show", "congruent(2)", "--q", "4", "--kv", "4", "--ascii"],
    )
    assert {f"Congruent/{name}/float32/0" for name in ("square", "wide", "tall")} <= set(listed.split())
    assert "Congruent/square/bfloat16/0" in listed.split()
    assert "every case ran and held" in judged
    assert "Congruent(2)" in shown and "50.00 %" in shown
    code = "from maskattn.cli._gallery import panels; print([panel.name for panel in panels()])"
    assert "'Congruent'" in run("-c", code)
    code = "from maskattn import masks; print(masks.Congruent(3).why(0, 0, 5, 2))"
    assert "5 % 3 == 2 % 3 is true" in run("-c", code)
    run("-c", EXAMPLES, "maskattn.masks.congruent")


def test_a_bias_has_cases_in_both_twins(run):
    run("-c", EXAMPLES, "maskattn.biases.key_bias")
    kernels = [["parity", "--kernel", kernel, "--cases", "bias/KeyBias*"] for kernel in ("reference", "blockwise")]
    listed, *judged = commands(run, ["parity", "list", "--cases", "bias/KeyBias"], *kernels)
    assert listed.split() == ["bias/KeyBias/float32/0"]
    assert all("every case ran and held" in printed for printed in judged)


@pytest.mark.slow
def test_a_bias_and_a_kernel_in_what_takes_long_to_compile(run):
    for arguments in (("--kernel", "exact", "--cases", "bias/KeyBias*"), ("--kernel", "textbook", "--cases", SQUARE)):
        assert "every case ran and held" in run(*COMMAND, "parity", *arguments)


def test_a_layout_converts_and_is_detected(run):
    run(
        "-c",
        """
import numpy as np
from maskattn import AttentionConfig, convert_tensors, layouts
for kv_heads in (4, 1):
    config = AttentionConfig(embed_dim=20, num_heads=4, num_kv_heads=kv_heads)
    width = (4 + 2 * kv_heads) * 5
    shapes = {"c_attn.weight": (width, 20), "c_attn.bias": (width,), "c_proj.weight": (20, 20), "c_proj.bias": (20,)}
    rng = np.random.default_rng(0)
    given = {f"h.0.attn.{name}": rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    assert "hf-gpt-bigcode" in [candidate.layout for candidate in layouts.detect(given)]
    flax = convert_tensors(given, source="hf-gpt-bigcode", target="flax-nnx", config=config)
    back = convert_tensors(flax, source="flax-nnx", target="hf-gpt-bigcode", config=config)
    assert {name: array.tobytes() for name, array in given.items()} == {n: a.tobytes() for n, a in back.items()}
    # one key head: all queries come first, then the key (transformers' GPTBigCodeAttention splits so)
    query = flax["h/0/attn/query/kernel" if "h/0/attn/query/kernel" in flax else "h.0.attn.query.kernel"]
    if kv_heads == 1:
        assert (query.reshape(20, 20).T == given["h.0.attn.c_attn.weight"][:20]).all()
""",
    )


def test_a_family_is_recognised_and_converts_there_and_back(run):
    run(
        "-c",
        """
import transformers
config = transformers.IJepaConfig(
    hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16, image_size=8, patch_size=4
)
transformers.IJepaModel(config).save_pretrained("ijepa")
""",
    )
    inspected, *_ = commands(
        run,
        ["inspect", "ijepa"],
        ["convert", "ijepa", "ijepa.npz", "--to", "flax-linen", "--verify"],
        ["convert", "ijepa.npz", "back.safetensors", "--to", "hf-ijepa"],
    )
    assert "hf-ijepa" in inspected
    run(
        "-c",
        """
from maskattn import checkpoints
with checkpoints.open("ijepa") as first, checkpoints.open("back.safetensors") as last:
    assert set(first) == set(last) and all(first[name].tobytes() == last[name].tobytes() for name in first)
""",
    )


@pytest.mark.slow
def test_a_kernel_runs_in_both_twins_and_is_judged(run):
    found = run(*COMMAND, "parity", "--kernel", "textbook", "--cases", SQUARE + "float16/0")
    assert "every case ran and held" in found
    said = run(*COMMAND, "parity", "--kernel", "textbook", "--cases", "options/softcap/*", held=False)
    assert "no softcap" in said
    run(
        "-c",
        """
import maskattn_torch, torch
x = torch.zeros(1, 3, 2, 4)
assert maskattn_torch.explain(x, x, x, kernel="textbook")[0] == "textbook"
try:
    maskattn_torch.attention(x, x, x, sinks=torch.zeros(2), kernel="textbook")
except ValueError as error:
    assert "no sinks" in str(error)
""",
    )


def test_a_file_format_stores_a_checkpoint_and_sees_damage(run):
    run(
        "-c",
        """
import numpy as np
from maskattn import checkpoints
tensors = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.zeros((0, 2), "i8"), "c": np.array(1.5)}
checkpoints.save("some.flat", tensors, metadata={"who": "me"})
with checkpoints.open("some.flat") as reader:
    assert {n: reader[n].tobytes() for n in reader} == {n: x.tobytes() for n, x in tensors.items()}
    assert reader.metadata == {"who": "me"} and set(reader.hashes) == set(tensors)
whole = bytearray(open("some.flat", "rb").read())
for damaged in (whole[1:], whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], b"", b"x" * 8):
    open("bad.flat", "wb").write(damaged)
    try:
        with checkpoints.open("bad.flat") as reader:
            reader["a"]
    except ValueError as error:
        assert "bad.flat" in str(error)
    else:
        raise AssertionError("the damage was not seen")
""",
    )
