"""Draws what pages of docs/ show of masks and of results: schedule.png, comparing.png and parity.png.

python docs/pictures.py [NAME ...] [--out DIR]

The last two are pages that the command writes, photographed in Chromium: of docs/port/, and of every mask in `exact`.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskattn.masks import Mask

ROOT = Path(__file__).parent
INK, BLUE, SAND = "#1b1f24", "#3b6ea8", "#fbe3b5"
LENGTH = 2048


def drawn() -> dict[str, Mask]:
    """The masks whose tiles are drawn."""
    import numpy as np

    from maskattn.masks import Causal, KeyPadding, PrefixLM, Segments, SlidingWindow
    from maskattn.recipes import longformer

    documents = np.repeat([1, 2, 3, 4], [700, 500, 348, 500])[None]
    return {
        "Causal()": Causal(),
        "Causal() & KeyPadding([1300])": Causal() & KeyPadding([1300]),
        "Causal() & SlidingWindow(256, 0)": Causal() & SlidingWindow(256, 0),
        "Causal() & Segments(documents)": Causal() & Segments(documents),
        "PrefixLM([600])": PrefixLM([600]),
        "recipes.longformer(512, ...)": longformer(512, np.arange(LENGTH)[None] < 64),
    }


def schedule(where: Path) -> None:
    """Of each mask the tiles that are skipped, those done without asking it, and those in which it is applied."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    from maskattn import schedule as tiles

    figure = Figure(figsize=(8.4, 6.9), facecolor="white")
    axes = figure.subplots(2, 3).flat
    figure.subplots_adjust(left=0.03, right=0.97, top=0.88, bottom=0.12, wspace=0.12, hspace=0.3)
    for one, (name, mask) in zip(axes, drawn().items(), strict=True):
        found = tiles.Schedule.of(mask, 1, 1, LENGTH, LENGTH)
        states = found.states()[0, 0]
        rows, columns = states.shape
        for i in range(rows):
            for j in range(columns):
                if states[i, j] != tiles.EMPTY:
                    colour = BLUE if states[i, j] == tiles.FULL else SAND
                    one.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, edgecolor=INK, linewidth=0.4))
        one.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xticks=[], yticks=[])
        one.set_title(name, fontsize=9, weight="bold")
        share = {state: (states == state).mean() for state in (tiles.EMPTY, tiles.FULL)}
        said = f"{share[tiles.EMPTY]:.0%} skipped, {1 - sum(share.values()):.0%} mixed"
        one.set_xlabel(said.replace("%", " %"), fontsize=9)
    meanings = {"white": "skipped", BLUE: "done without asking the mask", SAND: "mixed: the mask is applied"}
    keys = [Patch(facecolor=colour, edgecolor=INK, label=label) for colour, label in meanings.items()]
    figure.legend(handles=keys, loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(f"{LENGTH} queries down, {LENGTH} keys across, in tiles of {found.q_block}", fontsize=10)
    _save(figure, where)


def comparing(where: Path) -> None:
    """What `maskattn compare` writes of a port with two faults."""
    arguments = ("compare", "original.py:model", "port.py:model", "--html")
    _photograph(arguments, where, ROOT / "port", ends=1, height=1075)


def parity(where: Path) -> None:
    """What `maskattn parity` writes of both twins in exact arithmetic, of the square cases of every mask."""
    _photograph(("parity", "--kernel", "exact", "--cases", "*/square/*", "--html"), where, ROOT, ends=0, height=896)


def _photograph(arguments: Sequence[str], where: Path, folder: Path, ends: int, height: int) -> None:
    """The top of a page that a command writes, at the width of a desk."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    browser = shutil.which(os.environ.get("MASKATTN_BROWSER", "chromium"))
    if browser is None:
        raise SystemExit("no browser: apt-get install chromium, or name one by MASKATTN_BROWSER")
    with tempfile.TemporaryDirectory() as made, sync_playwright() as driver:
        page = Path(made) / "page.html"
        command = [sys.executable, "-m", "maskattn", *arguments, str(page)]
        paths = os.pathsep.join(filter(None, (str(ROOT.parent), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": paths}, check=False)
        if done.returncode != ends:
            raise SystemExit(f"{' '.join(command)}: expected exit code {ends}, got {done.returncode}")
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"], timeout=180_000)
        shown = chromium.new_page(viewport={"width": 1120, "height": height}, device_scale_factor=1.5)
        shown.goto(page.as_uri())
        taken = Image.open(io.BytesIO(shown.screenshot()))
        chromium.close()
    taken.convert("RGB").quantize(64).save(where, optimize=True)


def _save(figure: object, where: Path) -> None:
    from matplotlib.figure import Figure
    from PIL import Image

    assert isinstance(figure, Figure)
    out = io.BytesIO()
    figure.savefig(out, dpi=150)
    Image.open(out).convert("RGB").quantize(64).save(where, optimize=True)


PICTURES: dict[str, Callable[[Path], None]] = {"schedule": schedule, "comparing": comparing, "parity": parity}


def main() -> None:
    """Draws all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--out", type=Path, default=ROOT)
    arguments = parser.parse_args()
    for name in arguments.names or PICTURES:
        PICTURES[name](arguments.out / f"{name}.png")
        print(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
