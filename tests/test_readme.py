"""The README does what it says: its Python runs, and its commands exist."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from maskattn import masks
from maskattn.cli.main import main
from maskattn.parity.attention.cases import registry
from maskattn.parity.attention.run import run_cases
from tests.frameworks import in_both
from tests.scripts import of_benchmarks

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language, text=TEXT):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def names():
    """What the python blocks define, run one after the other."""
    code = blocks("python")
    assert len(code) == 8
    namespace = {}
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
    return namespace


def test_the_tables_of_gpus_are_those_of_the_figures():
    table = of_benchmarks("gpu_table")
    found = json.loads((ROOT / "benchmarks/results/gpu.json").read_text(encoding="utf-8"))
    assert table.readme(found) in TEXT and not found["dry"]
    assert TEXT.count(table.MARKS[0]) == TEXT.count(table.MARKS[1]) == 1


def test_the_pairs_that_gpus_are_timed_on_are_counted():
    problems = of_benchmarks("gpu_problems")
    for size in problems.DRY_SIZES:
        for name in problems.MASKS:
            mask = problems.mask_of(name, size, lambda x: x)
            dense = (masks.Full() if mask is None else mask).dense(size.length, size.length, size.batch, size.heads)
            assert problems.pairs(name, size) == dense.sum(), (name, size)


def test_without_a_gpu_the_benchmark_says_what_is_seen(monkeypatch):
    gpu = of_benchmarks("gpu")
    monkeypatch.setattr(gpu, "SEES", {"torch": "assert False, 'PyTorch 9 sees no CUDA device'", "jax": ""})
    with pytest.raises(SystemExit, match="no GPU .torch: AssertionError: PyTorch 9 sees no CUDA device.; --dry runs"):
        gpu.measured(["torch", "jax"], dry=False, seconds=1)


@in_both
def test_the_python_blocks_run_one_after_the_other(names):
    assert {"in_jax", "in_torch", "for_flax", "jax_module", "ADAPTER"} <= set(names)


@in_both
def test_the_adapter_holds_where_it_runs_and_says_why_elsewhere(names):
    families = {"Full", "Causal", "Segments", "options", "planted", "MultiHeadAttention"}
    cases = [case for case in registry() if case.family in families and case.dtype in ("float32", "float16")]
    result = run_cases(cases, [names["ADAPTER"]], kernel="reference")
    assert not result.failures, "\n".join(result.failures)
    held = {outcome.case.family for outcome in result.outcomes if outcome.status == "held"}
    assert {"Full", "Causal", "options"} <= held and result.elements > 1000
    reasons = {reason for outcome in result.not_run for reason in outcome.reasons}
    assert {"plain attention only", "float32 only", "nan_masked: declared 'leaks'"} <= reasons
    assert "empty_rows: asked 'zero', declared 'nan'" in reasons and result.exit_code == 3


def test_the_commands_and_their_options_exist():
    lines = "".join(blocks("sh")).splitlines() + re.findall(r"`(maskattn (?:convert|inspect|parity|show)[^`]*)`", TEXT)
    called = [shlex.split(line.removeprefix("PYTHONPATH=. "), comments=True) for line in lines]
    called = [words for words in called if words[0] == "maskattn"]
    assert {words[1] for words in called} == {"convert", "inspect", "parity", "show"}
    for _, *arguments in called:
        command: click.Command = main
        while isinstance(command, click.Group):
            name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
            found = command.get_command(click.Context(command), name)
            assert found is not None, name
            command = found
        known = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("-")} <= known


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set()
    for file in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        text = (ROOT / file).read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:^ *|`)make ([a-z]+)", text, re.MULTILINE))
    assert {"parity", "test", "lint"} <= named <= targets


def test_every_link_leads_to_a_file():
    for file in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / file).read_text(encoding="utf-8")):
            assert link.startswith("https://") or (ROOT / link).exists(), f"{file}: {link}"


def test_every_kernel_has_its_line():
    import maskattn_jax.kernels

    listed = re.findall(r'^\| `"([a-z]+)"` \|', TEXT, re.MULTILINE)
    assert sorted(listed) == sorted(["auto", *maskattn_jax.kernels.KERNELS])


def test_the_figures_are_those_of_the_benchmarks():
    results = ROOT / "benchmarks" / "results"
    grid = json.loads((results / "attention_grid.json").read_text(encoding="utf-8"))["results"]
    for name in grid["forward"]:
        peers = (("jax", "jax.nn"), ("torch", "torch sdpa"))
        ratios = [grid[which][name]["speed_up"][twin][peer] for twin, peer in peers for which in ("forward", "both")]
        assert f"| {name} | {' | '.join(f'{ratio:.1f}' for ratio in ratios)} |" in TEXT
    text = " ".join(TEXT.split())
    forward, both = ([f"{grid[which]['full']['limit'][twin]:.0%}" for twin in ("jax", "torch")] for which in grid)
    rates = [rate.replace("%", " %") for rate in forward + both]
    assert f"runs at {rates[0]} (JAX) and {rates[1]} (PyTorch)" in text
    assert f"forward and backward at {rates[2]} and {rates[3]}" in text
    assert f"{1 / grid['forward']['causal']['speed_up']['jax']['torch sdpa']:.2f} times SDPA's time" in text
    flex = [grid["forward"][name]["speed_up"]["torch"]["torch flex"] for name in grid["forward"]]
    assert f"takes {min(flex):.1f} to {max(flex):.1f} times as long" in text
    found = json.loads((results / "attention_length.json").read_text(encoding="utf-8"))["results"]
    exponents = [line["exponent"] for line in found["time"].values()]
    assert f"(exponents {min(exponents):.2f} to {max(exponents):.2f} from N = 4096 to 65536)" in text
    peaks = [found["memory"][twin]["32768"]["peak_bytes"] / 2**20 for twin in ("jax", "torch")]
    assert f"{peaks[0]:.0f} MB (JAX) and {peaks[1]:.0f} MB (PyTorch)" in text
    first = max(seconds for line in found["compile"].values() for seconds in line.values())
    assert f"compiles a forward pass in at most {first:.1f} s, at any length" in text
    found = json.loads((results / "compile_time.json").read_text(encoding="utf-8"))["results"]
    ratios = [f"{found[f'model, L = {length}']['auto']['ratio']:.1f}" for length in (512, 2048)]
    assert f"takes {ratios[0]} (L = 512) and {ratios[1]} times (L = 2048) as long to compile as with Flax's" in text
    cost = json.loads((results / "exact_cost.json").read_text(encoding="utf-8"))["results"]
    ratios = [f"{cost[twin]['ratio']:.0f}" for twin in ("torch", "jax")]
    assert f"it takes {ratios[0]} times the time of `reference` in PyTorch and {ratios[1]} times in jitted JAX" in text


def test_the_figures_of_fine_tuning_are_those_of_the_benchmark():
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks/results/finetune.json").read_text(encoding="utf-8"))
    results = found["results"]
    lines = {"jax against torch": "JAX against PyTorch", "torch against float64": "PyTorch against float64"}
    for of, said in lines.items():
        figures = results["largest difference of losses"][of], *results["parameters"][of].values()
        assert f"| {said} | {' | '.join(f'{x:.1e}' for x in figures)} |" in page
    assert f"Measured on {found['date']} ({found['processor']}" in page
