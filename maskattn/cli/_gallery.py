"""Every mask, some combinations and every recipe in one picture."""

from __future__ import annotations

import os
import re
import textwrap
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskattn import masks
from maskattn.masks import library_classes
from maskattn.parity.attention.cases import Shape
from maskattn.parity.draws import Draws
from maskattn.show.picture import LINE, TEXT, new_figure, paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = Shape(batch=4, q_len=24, kv_len=24, heads=2, kv_heads=1, head_dim=8, v_head_dim=8)
INKS = {"masks": "#1f4e8c", "combinations": "#0b7a6f", "recipes": "#a8470b"}
COLUMNS = 8
_CELL, _IMAGE, _TOP = (1.62, 2.06), 1.36, 0.72  # inches: a panel, the mask in it, the heading of the page


class Panel(NamedTuple):
    """One mask of the gallery."""

    kind: str
    name: str
    mask: masks.Mask
    q_len: int
    kv_len: int


def panels() -> list[Panel]:
    """Everything in the gallery: one example of each mask of the library, combinations, and the recipes."""
    drawn = []
    for name, cls in sorted(library_classes().items()):
        examples = cls.examples(SHAPE, Draws(name))
        if examples:
            drawn.append(Panel("masks", name, _telling(examples), SHAPE.q_len, SHAPE.kv_len))
    drawn += [Panel("combinations", *entry) for entry in _combinations()]
    from maskattn import recipes

    for name, (mask, q_len, kv_len) in sorted(recipes.EXAMPLES.items()):
        drawn.append(Panel("recipes", name, mask, q_len, kv_len))
    return drawn


def write_gallery(path: str | os.PathLike[str]) -> int:
    """Draw the gallery as a PNG and return how many masks it holds.

    Raises:
        ImportError: matplotlib is missing.
    """
    drawn = panels()
    rows = -(-len(drawn) // COLUMNS)
    width, height = COLUMNS * _CELL[0] + 0.2, rows * _CELL[1] + _TOP
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    figure.text(0.2 / width, 1 - 0.3 / height, "maskattn", fontsize=17, weight="bold", color=TEXT, va="center")
    note = "Queries run down, keys across. Colour = may attend."
    figure.text(1.62 / width, 1 - 0.305 / height, note, fontsize=10.5, color=TEXT, va="center")
    for i, (kind, ink) in enumerate(INKS.items()):
        at = ((COLUMNS - 3.6 + i * 1.25) * _CELL[0] / width, 1 - 0.305 / height)
        figure.text(*at, f"■ {kind}", fontsize=11, weight="bold", color=ink, va="center")
    for i, panel in enumerate(drawn):
        row, column = divmod(i, COLUMNS)
        left, top = 0.2 + column * _CELL[0], height - _TOP - row * _CELL[1]
        _draw(figure, panel, left, top, width, height)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return len(drawn)


def _draw(figure: Figure, panel: Panel, left: float, top: float, width: float, height: float) -> None:
    """One panel: name, mask and what it was made from, its upper left corner at (left, top) inches."""
    batch, head = _matrix(panel)
    scale = _IMAGE / max(panel.q_len, panel.kv_len)
    wide, tall = panel.kv_len * scale, panel.q_len * scale
    axes = figure.add_axes((left / width, (top - 0.2 - tall) / height, wide / width, tall / height))
    paint(axes, panel.mask, panel.q_len, panel.kv_len, batch, head, ink=INKS[panel.kind], line=0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(LINE)
        spine.set_linewidth(0.6)
    size = 8.5 if len(panel.name) < 19 else 6.5
    figure.text(left / width, (top - 0.13) / height, panel.name, fontsize=size, weight="bold", color=INKS[panel.kind])
    lines = textwrap.wrap(_caption(panel), 27, break_on_hyphens=False)
    lines = [*lines[:1], textwrap.shorten(" ".join(lines[1:]), 27, placeholder=" …")] if lines[2:] else lines
    below = (top - 0.2 - tall - 0.05) / height
    figure.text(left / width, below, "\n".join(lines), fontsize=6.3, color=TEXT, va="top", linespacing=1.25)


def _caption(panel: Panel) -> str:
    """The mask as it is written, long data left out."""
    text = re.sub(r"\[[-\d, \[\]TrueFals]{14,}\]", "[…]", repr(panel.mask))
    text = re.sub(r"\b(bool|int64)\[[\d, ]*\]", "[…]", text)
    return "" if text == f"{panel.name}()" else text


def _telling(examples: list[masks.Mask]) -> masks.Mask:
    """The first example that is neither nearly empty nor nearly full, else the first."""
    for mask in examples:
        if 0.1 <= mask.dense(SHAPE.q_len, SHAPE.kv_len).mean() <= 0.75:
            return mask
    return examples[0]


def _matrix(panel: Panel) -> tuple[int, int]:
    """The batch row and head to draw: of those that differ, the one nearest to 40 % full."""
    density = panel.mask.dense(panel.q_len, panel.kv_len).mean(axis=(2, 3))
    best = np.unravel_index(np.abs(density - 0.4).argmin(), density.shape)
    return int(best[0]), int(best[1])


def _combinations() -> list[tuple[str, masks.Mask, int, int]]:
    causal, packed = masks.Causal(), masks.Segments.from_sizes([7, 11, 6])
    ring = (np.arange(24) + 9) % 24
    return [
        ("a & b", causal & packed, 24, 24),
        ("a | b", masks.SlidingWindow(2, 2) | masks.Strided(6), 24, 24),
        ("~a", ~masks.SlidingWindow(5, 5), 24, 24),
        ("a.at", causal.at(q_offset=12), 12, 24),
        ("a.with_positions", (causal & masks.SlidingWindow(9)).with_positions(np.arange(24)[None], ring[None]), 24, 24),
    ]
