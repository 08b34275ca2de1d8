"""A mask as a PNG picture. Needs matplotlib."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from maskattn.masks import Mask
from maskattn.show.pixels import shrink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What may not attend, and what may.
PAPER, INK = "#eef1f5", "#1f4e8c"
LINE, TEXT = "#c3cad4", "#20242b"
_PIXELS = 1024  # across the longer side of a drawn mask


def write_png(mask: Mask, path: str | os.PathLike[str], q_len: int, kv_len: int, batch: int = 0, head: int = 0) -> None:
    """Draw one matrix of the mask: queries down, keys across, dark = may attend (where pixels hold many pairs, their
    share).

    Args:
        mask: True = may attend.

    Raises:
        ImportError: matplotlib is missing. ValueError: a size conflicts with the data, or there are no pairs.
    """
    mask.settle(q_len, kv_len)
    if not q_len or not kv_len:
        raise ValueError(f"a picture needs pairs, got {q_len} queries and {kv_len} keys")
    tall = min(max(q_len / kv_len, 0.2), 4.0)
    figure = new_figure(6.4, 1.5 + 5.2 * tall)
    axes = figure.add_subplot()
    paint(axes, mask, q_len, kv_len, batch, head)
    where = [f"batch row {batch}"] * ("b" in mask.depends) + [f"head {head}"] * ("h" in mask.depends)
    title = textwrap.shorten(repr(mask), 300) + (f"\n{', '.join(where)}" if where else "")
    axes.set_title("\n".join(textwrap.fill(line, 72) for line in title.split("\n")), fontsize=9, color=TEXT, pad=10)
    axes.set_xlabel("key", color=TEXT)
    axes.set_ylabel("query", color=TEXT)
    axes.tick_params(colors=TEXT, labelsize=8, length=3)
    figure.savefig(path, format="png", dpi=160, metadata={"Software": None})


def new_figure(width: float, height: float) -> Figure:
    """A figure of this many inches that needs no display and leaves matplotlib's state alone."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'maskattn[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def paint(
    axes: Axes,
    mask: Mask,
    q_len: int,
    kv_len: int,
    batch: int = 0,
    head: int = 0,
    ink: str = INK,
    line: float = 0.7,
) -> None:
    """The mask in these axes; pairs are set apart by lines where there are few."""
    from matplotlib.colors import LinearSegmentedColormap

    side = max(1, -(-max(q_len, kv_len) // _PIXELS))
    shares = shrink(mask, q_len, kv_len, (side, side), batch, head)
    # a few pairs in a pixel of many are still to be seen
    shown = np.where(shares > 0, 0.15 + 0.85 * shares, 0.0)
    colors = LinearSegmentedColormap.from_list("mask", [PAPER, ink])
    extent = (-0.5, kv_len - 0.5, q_len - 0.5, -0.5)
    axes.imshow(shown, cmap=colors, vmin=0, vmax=1, extent=extent, interpolation="nearest", aspect="equal")
    if q_len / kv_len > 4 or kv_len / q_len > 5:
        axes.set_aspect("auto")
    if max(q_len, kv_len) <= 40:
        axes.vlines(np.arange(kv_len - 1) + 0.5, -0.5, q_len - 0.5, color="white", linewidth=line)
        axes.hlines(np.arange(q_len - 1) + 0.5, -0.5, kv_len - 0.5, color="white", linewidth=line)
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.yaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    for spine in axes.spines.values():
        spine.set_color(LINE)
