"""What gpu.py found, as the tables of docs/benchmarks.md, between their marks, and as docs/gpu_speed.png.

python benchmarks/gpu_table.py [--results FILE] [--page FILE] [--picture FILE]
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks.md"
MARKS = "<!-- made by benchmarks/gpu_table.py -->", "<!-- until here -->"
MASKS = ("full", "causal", "window", "documents", "padding")
#: Columns by their word in gpu.json, for each framework: this library first.
WHO = {
    "torch": {
        "auto": "`auto`",
        "blockwise": "`blockwise`",
        "fused": "`fused`",
        "prototype": "prototype",
        "sdpa": "SDPA",
        "sdpa cudnn": "SDPA, cuDNN",
        "sdpa flash": "SDPA, flash",
        "flex": "FlexAttention",
        "varlen": "varlen_attn",
    },
    "jax": {
        "auto": "`auto`",
        "blockwise": "`blockwise`",
        "fused": "`fused`",
        "prototype": "prototype",
        "cudnn": "cuDNN",
        "xla": "XLA",
    },
}
NAMES = {"torch": "PyTorch", "jax": "JAX"}
SHADES = {"auto": "#a63d24", "blockwise": "#d4694f", "fused": "#e6998a", "prototype": "#f2c4b8"}  # this library's
SHADES |= {"sdpa": "#2f4b6e", "cudnn": "#2f4b6e", "sdpa cudnn": "#44668f", "sdpa flash": "#5b7ba3"}
SHADES |= {"flex": "#8fa9c8", "varlen": "#c3d0e0", "xla": "#8fa9c8"}


def speeds(found: dict[str, Any], framework: str, size: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Lines by contender and mask."""
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for line in found["results"]:
        if (line["what"], line["framework"], line.get("size")) == ("speed", framework, size):
            chosen.setdefault(line["who"], {})[line["mask"]] = line
    return chosen


def sizes(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(line["size"] for line in found["results"] if line["what"] == "speed"))


def cell(line: dict[str, Any] | None) -> str:
    """Milliseconds, forward / forward and backward; a dash where there is no figure."""
    if line is None or "forward_ms" not in line:
        return "out of memory" if line and "memory" in line.get("error", "").lower() else "–"
    return " / ".join(
        f"{line[word]:.2g}" if line[word] < 0.1 else f"{line[word]:.3g}" for word in ("forward_ms", "both_ms")
    )


def table(found: dict[str, Any], framework: str, size: str) -> str:
    """One table in Markdown; "" where nothing was measured."""
    lines = speeds(found, framework, size)
    columns = {who: title for who, title in WHO[framework].items() if who in lines}
    if not columns:
        return ""
    rows = [f"| {NAMES[framework]}, {size} | {' | '.join(columns.values())} |", "| --- |" + " --- |" * len(columns)]
    for mask in MASKS:
        rows.append(f"| {mask} | " + " | ".join(cell(lines[who].get(mask)) for who in columns) + " |")
    return "\n".join(rows)


def tables(found: dict[str, Any]) -> str:
    """What stands between the marks."""
    said = f"Measured on {found['date']} ({found.get('machine', machine(found))}), of the code of {found['code']}."
    said = textwrap.fill(" ".join([said, found.get("note", "")]).strip(), 120)
    made = [table(found, framework, size) for size in sizes(found) for framework in WHO]
    return "\n\n".join([MARKS[0], said, *filter(None, made), MARKS[1]])


def machine(found: dict[str, Any]) -> str:
    """The device and the versions, as the halves said them."""
    said = [line for line in found["results"] if line["what"] == "versions"]
    devices = list(dict.fromkeys(line["device"] for line in said))
    versions = [f"{name} {line[name]}" for line in said for name in NAMES if name in line]
    return ", ".join([*devices, *versions])


def draw(found: dict[str, Any], where: Path) -> None:
    """Milliseconds of the forward pass, by mask and contender, a panel for each framework and size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    all_sizes = sizes(found)
    shown = [(size, framework) for size in all_sizes for framework in WHO]
    figure, panels = plt.subplots(len(shown), figsize=(9, 2.6 * len(shown)), layout="constrained", squeeze=False)
    for axes, (size, framework) in zip(panels[:, 0], shown, strict=True):
        panel(axes, found, framework, size)
    title = f"forward, milliseconds, bfloat16, H = 16, D = 128; {found.get('machine', machine(found))}, {found['date']}"
    figure.suptitle(f"{title}, of the code of {found['code']}".replace("; ", "\n"), fontsize=9)
    figure.savefig(where, dpi=120)
    plt.close(figure)


def panel(axes: Any, found: dict[str, Any], framework: str, size: str) -> None:
    lines = speeds(found, framework, size)
    names = [who for who in WHO[framework] if any("forward_ms" in line for line in lines.get(who, {}).values())]
    masks = [mask for mask in MASKS if any("forward_ms" in lines[who].get(mask, {}) for who in names)]
    width = 0.84 / max(1, len(names))
    for n, who in enumerate(names):
        for at, mask in enumerate(masks):
            line = lines[who].get(mask, {})
            if "forward_ms" in line:
                x = at + (n - (len(names) - 1) / 2) * width
                first = not any(mask in lines[who] and "forward_ms" in lines[who][mask] for mask in masks[:at])
                label = WHO[framework][who].strip("`") if first else None
                axes.bar(x, line["forward_ms"], width * 0.92, color=SHADES[who], edgecolor="#444", lw=0.5, label=label)
                axes.annotate(
                    f"{line['forward_ms']:.2g}", (x, line["forward_ms"]), ha="center", va="bottom", fontsize=6.5
                )
    axes.set_xticks(range(len(masks)), masks, fontsize=9)
    axes.set_xlim(-0.5, max(1, len(masks)) - 0.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("milliseconds", fontsize=9)
    axes.margins(y=0.15)
    axes.set_title(f"{NAMES[framework]}, {size}", fontsize=10, weight="bold", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    # above the bars, at the right of the title
    axes.legend(frameon=False, fontsize=8, ncols=6, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/gpu_speed.png")
    given = parser.parse_args()
    found = json.loads(given.results.read_text(encoding="utf-8"))
    if found["dry"] and given.page.resolve() == PAGE:
        raise SystemExit(f"gpu_table.py: the figures of {given.results} are of a dry run, and mean nothing")
    text = given.page.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    given.page.write_text(before + tables(found) + rest.split(MARKS[1])[1], encoding="utf-8")
    draw(found, given.picture)
    print(f"{given.results} -> {given.page}, {given.picture}")


if __name__ == "__main__":
    main()
