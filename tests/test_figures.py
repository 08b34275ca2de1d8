"""The figures that pages have are those of the files of results, and each of these says its machine and its day."""

import json
import re
from pathlib import Path

import pytest

from maskattn import masks
from tests.scripts import of_benchmarks

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
TEXT = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")


def test_every_file_of_results_is_listed_with_its_machine_and_its_day():
    rows = re.findall(
        r"^\| \[(\w+)\]\(\.\./benchmarks/results/\1\.json\) \| [^|]+ \| ([^|]+) \| ([\d-]+) \|", TEXT, re.MULTILINE
    )
    files = sorted(RESULTS.glob("*.json"))
    assert [name for name, *_ in rows] == [file.stem for file in files]
    for (_, machine, day), file in zip(rows, files, strict=True):
        found = json.loads(file.read_text(encoding="utf-8"))
        said = (
            found["machine"]
            if file.stem == "gpu"
            else f"{found.get('processor', found['machine'])}, {found['cores']} cores"
        )
        assert (machine, day) == (said, found["date"]), file.stem


def test_the_tables_of_gpus_are_those_of_the_figures():
    table = of_benchmarks("gpu_table")
    found = json.loads((ROOT / "benchmarks/results/gpu.json").read_text(encoding="utf-8"))
    assert table.tables(found) in TEXT and not found["dry"]
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


def test_the_figures_are_those_of_the_benchmarks():
    text = " ".join(TEXT.split())
    results = ROOT / "benchmarks" / "results"
    grid = json.loads((results / "attention_grid.json").read_text(encoding="utf-8"))["results"]
    for name in grid["forward"]:
        peers = (("jax", "jax.nn"), ("torch", "torch sdpa"))
        ratios = [grid[which][name]["speed_up"][twin][peer] for twin, peer in peers for which in ("forward", "both")]
        assert f"| {name} | {' | '.join(f'{ratio:.1f}' for ratio in ratios)} |" in TEXT
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
    text = " ".join((ROOT / "docs/exactness.md").read_text(encoding="utf-8").split())
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
