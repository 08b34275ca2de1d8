"""The README does what it says: its Python runs, its conversion too, and its figures are those of the benchmarks."""

import json
import re
from pathlib import Path

from click.testing import CliRunner

from maskattn.cli.main import main
from maskattn.models import ROWS
from tests.frameworks import in_both
from tests.test_pages import blocks

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@in_both
def test_the_python_blocks_run_one_after_the_other_and_what_they_made_is_converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = [code for language, code in blocks(TEXT) if language == "python"]
    assert len(code) == 3
    names: dict[str, object] = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert {"in_jax", "in_torch", "layer", "model", "out"} <= names.keys()
    (line,) = re.findall(r"^maskattn (convert .*--verify)$", TEXT, re.MULTILINE)
    done = CliRunner().invoke(main, line.split())
    assert done.exit_code == 0 and "came back byte for byte, 0 did not" in done.output, done.output


def test_it_is_short():
    assert len(TEXT.splitlines()) < 115


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set()
    for file in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        text = (ROOT / file).read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:^ *|`)make ([a-z]+)", text, re.MULTILINE))
    assert {"parity", "test", "lint"} <= named <= targets


def test_the_types_of_models_are_counted():
    assert f"[{len(ROWS)} types](docs/models-table.md)" in TEXT


def test_every_kernel_has_its_line():
    import maskattn_jax.kernels

    listed = re.findall(r'^\| `"([a-z]+)"` \|', TEXT, re.MULTILINE)
    assert sorted(listed) == sorted(["auto", *maskattn_jax.kernels.KERNELS])


def test_the_figures_are_those_of_the_benchmarks():
    text = " ".join(TEXT.split())
    found = {
        name: json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
        for name in ("attention_grid", "models", "exact_cost")
    }
    grid, models, cost = found.values()
    window = grid["results"]["forward"]["window 256"]["speed_up"]
    assert f"jax.nn {window['jax']['jax.nn']:.1f} times and SDPA {window['torch']['torch sdpa']:.1f} times" in text
    assert f"N = 4096, float32, {grid['processor']}, {grid['cores']} cores, {grid['date']}" in text
    token = models["results"]["SmolLM2-135M-Instruct, a token"]
    ratios = [token[f"maskattn_{twin}"] / token["transformers"] for twin in ("torch", "jax")]
    assert f"takes {ratios[0]:.2f} (PyTorch) and {ratios[1]:.2f} times (JAX) as long as in transformers" in text
    assert models["processor"] == grid["processor"] == cost["processor"]
    assert f"(the same machine, {models['date']})" in text
    ratios = [cost["results"][twin]["ratio"] for twin in ("torch", "jax")]
    assert (
        f"takes {ratios[0]:.0f} (PyTorch) and {ratios[1]:.0f} times (JAX) as long as `reference` ({cost['date']})"
        in text
    )
