"""Corruption schemes as a PNG picture. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskattn.corruption import Scheme
from maskattn.show.picture import INK, LINE, PAPER, TEXT, new_figure
from maskattn.show.schemes import HIDDEN, SEEN, TARGET, Picture, Text, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The colours of target blocks.
TARGETS = ("#a8470b", "#0b7a6f", "#8b3a8f", "#b58900", "#5a5a5a")
_DRAWS, _SIDE, _WIDTH, _LINE = 5, 1.5, 9.6, 0.24  # draws of an image; inches: of one, of the page, of a line of text


def write_png(schemes: Sequence[Scheme], path: str | os.PathLike[str], seed: int = 0) -> None:
    """Draw what each scheme hides: of five images, or of one text.

    Raises:
        ImportError: matplotlib is missing. ValueError, TypeError: as `schemes.draw`.
    """
    drawn = [[draw(scheme, seed, row) for row in range(_DRAWS)] for scheme in schemes]
    heights = [_height(rows[0]) for rows in drawn]
    tall = sum(heights) + 0.2
    figure = new_figure(_WIDTH, tall)
    figure.set_layout_engine("none")
    top = tall - 0.1
    for scheme, rows, height in zip(schemes, drawn, heights, strict=True):
        figure.text(0.2 / _WIDTH, (top - 0.22) / tall, _title(scheme), fontsize=8.5, weight="bold", color=TEXT)
        if isinstance(rows[0], Text):
            _text(figure, rows[0], top - 0.5, tall)
        else:
            for i, picture in enumerate(rows):
                assert isinstance(picture, Picture)
                left = 0.2 + i * (_WIDTH - 0.2) / _DRAWS
                _image(figure, picture, (left / _WIDTH, (top - height + 0.15) / tall, _SIDE / _WIDTH, _SIDE / tall))
        top -= height
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _title(scheme: Scheme) -> str:
    text = repr(scheme)
    return text if len(text) <= 118 else f"{text[:115]}..."


def _height(drawing: Picture | Text) -> float:
    if isinstance(drawing, Picture):
        return 0.45 + _SIDE
    return 0.6 + _LINE * sum(len(lines) + 0.5 for lines in (_lines(words) for _, words in drawing.rows))


def _lines(words: Sequence[str], room: int = 105) -> list[list[int]]:
    """Which words stand on each line."""
    lines: list[list[int]] = [[]]
    used = 0
    for i, word in enumerate(words):
        if used + len(word) + 1 > room:
            lines.append([])
            used = 0
        lines[-1].append(i)
        used += len(word) + 1
    return lines


def _image(figure: Figure, picture: Picture, box: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import ListedColormap

    colors = [PAPER, INK, *(TARGETS[i % len(TARGETS)] for i in range(max(0, int(picture.cells.max()) - TARGET + 1)))]
    axes = figure.add_axes(box)
    axes.imshow(picture.cells, cmap=ListedColormap(colors), vmin=HIDDEN, vmax=max(SEEN, len(colors) - 1))
    rows, columns = picture.cells.shape
    axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=0.4)
    axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=0.4)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(LINE)
        spine.set_linewidth(0.6)


def _text(figure: Figure, drawing: Text, top: float, tall: float) -> None:
    """Rows of words in a fixed-width font; what is hidden of the text, or stands for it, is coloured."""
    step = 0.0755  # inches of a character
    for name, words in drawing.rows:
        figure.text(0.2 / _WIDTH, top / tall, name, fontsize=8, color=TEXT)
        for line in _lines(words):
            left = 0.95
            for i in line:
                same = len(words) == len(drawing.hidden)
                marked = words[i].startswith(("[", "<")) or (same and drawing.hidden[i])
                style: dict[str, Any] = {"weight": "bold", "color": TARGETS[0]} if marked else {"color": INK}
                figure.text(left / _WIDTH, top / tall, words[i], fontsize=8, family="monospace", **style)
                left += step * (len(words[i]) + 1)
            top -= _LINE
        top -= _LINE / 2
