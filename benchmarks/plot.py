"""Draws what benchmarks found: docs/attention_speed.png, docs/attention_length.png and docs/finetune.png.

python benchmarks/plot.py [--results DIR] [--out DIR]
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent
COLOURS = {"jax": "#3b6ea8", "torch": "#c8553d"}
LINES = {"jax": "-", "torch": "--"}  # a colour is never alone: bars are hatched, lines broken
PEERS = {"jax": "jax.nn", "torch": "torch sdpa"}
TITLES = {"forward": "forward, N = 4096", "both": "forward and backward, N = 2048"}


def bars(axes: Any, names: list[str], values: dict[str, list[float]], log: bool) -> None:
    """A pair of bars for each name, a twin each, with its number."""
    for shift, (label, heights) in zip((-0.2, 0.2), values.items(), strict=True):
        twin = label.split()[0]
        at = [i + shift for i in range(len(names))]
        hatch = "//" if twin == "torch" else ""
        axes.bar(at, heights, 0.38, label=label, color=COLOURS[twin], hatch=hatch, edgecolor="white", linewidth=0)
        for x, height in zip(at, heights, strict=True):
            text = f"{height:.0%}" if not log else f"{height:.1f}" if height < 9.95 else f"{height:.0f}"
            axes.annotate(text, (x, height), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=9)
    if log:
        axes.set_yscale("log")
        axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        axes.minorticks_off()
    axes.margins(y=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)


def machine(found: dict[str, Any]) -> str:
    """Where and when it was measured, and with what."""
    date = [found["date"]] if "date" in found else []
    versions = [f"{name} {found[name]}" for name in ("jax", "torch")]
    return ", ".join([f"{found['cores']} cores ({found['processor']})", *versions, *date])


def save(figure: Any, where: Path) -> None:
    """Of few colours, so that a page loads quickly."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    Image.open(drawn).convert("RGB").quantize(64).save(where, optimize=True)
    plt.close(figure)


def speed(found: dict[str, Any], where: Path) -> None:
    """Times faster than each framework's own attention, and the share of a large product's rate."""
    figure, rows = plt.subplots(2, 2, figsize=(9.6, 6.8), layout="constrained")
    for column, which in enumerate(("forward", "both")):
        grid = found["results"][which]
        names = list(grid)
        ratios = {
            f"{twin} against {peer}": [grid[n]["speed_up"][twin][peer] for n in names] for twin, peer in PEERS.items()
        }
        bars(rows[0][column], names, ratios, log=True)
        rows[0][column].axhline(1, color="black", linewidth=0.7)
        rows[0][column].set_title(TITLES[which], fontsize=10, weight="bold")
        rows[0][column].set_ylabel("times faster")
        bars(rows[1][column], names, {twin: [grid[n]["limit"][twin] for n in names] for twin in COLOURS}, log=False)
        rows[1][column].set_ylabel("share of a large product's rate")
        rows[1][column].yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    figure.suptitle(f'kernel="{found["kernel"]}", float32, H = 8, D = 64; {machine(found)}', fontsize=9)
    save(figure, where)


def length(found: dict[str, Any], where: Path) -> None:
    """Time, peak memory and compilation against N."""
    results = found["results"]
    figure, panels = plt.subplot_mosaic("tt;mf", figsize=(9, 7.4), layout="constrained")
    time, memory, first = (panels[panel] for panel in "tmf")
    markers = dict(zip(("window 256", "documents of 512", "chunked 512"), "os^", strict=True))
    for name, line in results["time"].items():
        mask, _, twin = name.rpartition(", ")
        look = {"marker": markers[mask], "color": COLOURS[twin], "linestyle": LINES[twin], "markersize": 5}
        seconds = [1e3 * x for x in line["seconds"]]
        time.semilogy(line["lengths"], seconds, label=f"{name}: N^{line['exponent']:.2f}", **look)
    time.set_yticks([30, 100, 300, 1000], ["30", "100", "300", "1000"])
    time.set_ylabel("forward, milliseconds")
    for twin, line in results["memory"].items():
        lengths = [int(n) for n in line]
        peaks = [line[n]["peak_bytes"] / 2**20 for n in line]
        memory.plot(lengths, peaks, marker="o", color=COLOURS[twin], linestyle=LINES[twin], label=twin)
    memory.axhline(512, color="grey", linewidth=0.8, linestyle="--")
    memory.annotate("limit at N = 32768", (8192, 512), fontsize=9, va="bottom")
    memory.set_ylabel("MB above inputs and results\nwindow of 1024, forward and backward")
    memory.set_ylim(bottom=0)
    for (name, line), marker in zip(results["compile"].items(), "D^s", strict=True):
        first.plot([int(n) for n in line], list(line.values()), marker=marker, label=name)
    first.set_ylabel("seconds to trace, plan\nand compile in JAX")
    first.set_ylim(bottom=0)
    for axes, lines in ((time, results["time"]), (memory, results["memory"]), (first, results["compile"])):
        some = next(iter(lines.values()))
        lengths = some["lengths"] if axes is time else [int(n) for n in some]
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(n) for n in lengths])
        axes.minorticks_off()
        axes.set_xlabel("N")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle(f"B = 1, H = 8, D = 64, float32; {machine(found)}", fontsize=9)
    save(figure, where)


def finetune(found: dict[str, Any], where: Path) -> None:
    """The losses of both twins, and how far they are apart."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    results, steps = found["results"], range(1, found["steps"] + 1)
    for twin, name, size in (("torch", "PyTorch", 7), ("jax", "JAX", 3)):
        look = {"color": COLOURS[twin], "linestyle": LINES[twin], "marker": "o", "markersize": size}
        left.plot(steps, results["losses"][twin], label=name, **look)
    left.set_ylabel("loss")
    left.set_ylim(bottom=0)
    names = {"jax against torch": "JAX against PyTorch", "torch against float64": "PyTorch against float64"}
    for (key, name), twin in zip(names.items(), COLOURS, strict=True):
        look = {"color": COLOURS[twin], "linestyle": LINES[twin], "marker": "."}
        right.semilogy(steps, results["differences"][key], label=name, **look)
    right.set_ylabel("relative difference of the loss")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_xticks([1, 5, 10, 15, 20])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.suptitle(f"all-MiniLM-L6-v2, dropout on, AdamW of optax {found['optax']}; {machine(found)}", fontsize=9)
    save(figure, where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--out", type=Path, default=ROOT.parent / "docs")
    arguments = parser.parse_args()
    for name, draw in (("attention_grid", speed), ("attention_length", length), ("finetune", finetune)):
        file = arguments.results / f"{name}.json"
        picture = arguments.out / f"{name.replace('grid', 'speed')}.png"
        draw(json.loads(file.read_text(encoding="utf-8")), picture)
        print(f"{file} -> {picture}")


if __name__ == "__main__":
    main()
