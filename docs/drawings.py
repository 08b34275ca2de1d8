"""Draws docs/life-of-a-call.png and docs/life-of-a-conversion.png; needs matplotlib and both twins.

python docs/drawings.py [--out DIR]

Each box says what a function does and where it is; tests/test_guide.py opens every one of them. What is drawn of a
mask, and of tensors, is what the library says of them.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent
INK, GREY, PAPER, RED, BLUE, LIGHT, SAND = "#1b1f24", "#57606a", "#ffffff", "#b3261e", "#3b6ea8", "#e3ecf6", "#fbf0dc"
PARTS = {"query": "#3b6ea8", "key": "#c8553d", "value": "#5b8c5a"}
#: One unit is a point: 324 of them are as wide as a phone shows without shrinking text below 9 pixels.
WIDTH, EDGE = 324, 8


@dataclass(frozen=True)
class Box:
    """One station: a function, the file it is in (`maskattn_*` is either twin), what it does, and what it refuses."""

    name: str
    path: str
    lines: tuple[str, ...]
    refuses: str = ""

    @property
    def height(self) -> float:
        """In points."""
        return 24 + 12.5 * (len(self.lines) + bool(self.refuses))


CALL = (
    Box("attention", "maskattn_*/functional.py", ("your arguments become a Call: nothing is read yet",)),
    Box(
        "prepare",
        "maskattn/attention.py",
        ("mask and bias bound to the framework, options settled",),
        "refused: types, shapes, values, sizes; all at once",
    ),
    Box(
        "choose",
        "maskattn/attention.py",
        ("the kernel you name, or what auto.py says, and why",),
        "refused: a named kernel that cannot, with every reason",
    ),
)
KERNELS = ("reference", "exact", "blockwise", "fused")
LENGTHS = (1024, 600)
#: The batch row that is drawn.
ROW = 1

READING = (
    Box(
        "open",
        "maskattn/checkpoints/__init__.py",
        ("a Reader: names, shapes, dtypes",),
        "refused: no such file, unknown suffix, damage",
    ),
    Box(
        "identify",
        "maskattn/convert/_identify.py",
        ("the Form: each name has one place, each place its name",),
        "refused: several families fit, or none",
    ),
    Box("read", "maskattn/convert/_canonical.py", ("to the Model: canonical names, Layers of Lazy arrays",)),
)
WRITING = (
    Box(
        "write",
        "maskattn/convert/_canonical.py",
        ("from the Model to the names of the target's Form",),
    ),
    Box(
        "plan",
        "maskattn/convert/_plan.py",
        ("all of it as a Plan: a Move for each tensor, every Step",),
        "refused: all that is missing, left over, misshapen",
    ),
)
RUNNING = (
    Box(
        "run",
        "maskattn/convert/_run.py",
        ("checks values, then reads, hashes and writes each tensor", "to a temporary file beside the target"),
        "refused: format, values, damage, disk; temporary removed",
    ),
)
VERIFYING = (
    Box(
        "verify",
        "maskattn/convert/_verify.py",
        (
            "each source tensor made again from the file: equal bytes?",
            "attention, PyTorch on the source's weights and JAX on",
            "the file's: both within their limits?",
        ),
    ),
)
CONVERSION = (*READING, *WRITING, *RUNNING, *VERIFYING)
#: A GPT-2 of one layer: what the page converts.
TINY: dict[str, tuple[int, ...]] = {
    "wte.weight": (10, 8),
    "wpe.weight": (6, 8),
    "h.0.ln_1.weight": (8,),
    "h.0.ln_1.bias": (8,),
    "h.0.attn.c_attn.weight": (8, 24),
    "h.0.attn.c_attn.bias": (24,),
    "h.0.attn.c_proj.weight": (8, 8),
    "h.0.attn.c_proj.bias": (8,),
    "h.0.ln_2.weight": (8,),
    "h.0.ln_2.bias": (8,),
    "h.0.mlp.c_fc.weight": (8, 32),
    "h.0.mlp.c_fc.bias": (32,),
    "h.0.mlp.c_proj.weight": (32, 8),
    "h.0.mlp.c_proj.bias": (8,),
    "ln_f.weight": (8,),
    "ln_f.bias": (8,),
}


class Page:
    """A drawing that grows downwards; all lengths are in points."""

    def __init__(self, height: float) -> None:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor=PAPER)
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.set_axis_off()
        self.y = float(EDGE)
        self.written: list[str] = []  # every text, which the picture's file holds too

    def text(self, x: float, y: float, text: str, size: float = 8.5, **options: Any) -> None:
        """Text whose middle is at y."""
        self.written.append(text)
        options = {"color": INK, "va": "center_baseline", "ha": "left"} | options
        self.axes.text(x, y, text, fontsize=size, **options)

    def area(
        self, x: float, y: float, width: float, height: float, colour: str, edge: str = "none", **more: Any
    ) -> None:
        """A rectangle."""
        from matplotlib.patches import Rectangle

        more = {"linewidth": 0.8} | more
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=edge, **more))

    def arrow(self, x: float, y: float, to: float) -> None:
        """Downwards."""
        style = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", (x, to), (x, y), arrowprops=style)

    def box(self, box: Box, arrow: bool = True) -> None:
        """A station, and the arrow to what comes next."""
        self.area(EDGE, self.y, WIDTH - 2 * EDGE, box.height, PAPER, INK)
        self.text(EDGE + 6, self.y + 11, box.name, 10, weight="bold")
        self.text(WIDTH - EDGE - 6, self.y + 11, box.path, 7.5, color=GREY, ha="right", family="monospace")
        for n, line in enumerate((*box.lines, box.refuses)):
            last = n == len(box.lines) and box.refuses.startswith("refused")
            self.text(EDGE + 6, self.y + 25 + 12.5 * n, line, color=RED if last else INK)
        self.y += box.height
        if arrow:
            self.arrow(WIDTH / 2, self.y, self.y + 13)
            self.y += 13


def steps(mask: Any, sizes: tuple[int, int, int, int]) -> Iterator[tuple[int, int, int, int, bool]]:
    """(first query, first key, queries, keys, masked) of each step of JAX's blockwise in the batch row drawn."""
    import jax.numpy as jnp

    from maskattn_jax.kernels.blockwise.shards import Origin
    from maskattn_jax.kernels.blockwise.steps import cheapest
    from maskattn_jax.lower import bind

    like = jnp.zeros((sizes[0], sizes[2], sizes[1], 1))
    tiling, found = cheapest(bind(mask), like, like, sizes, Origin(*map(jnp.int32, (0, 0, 0))), None)
    for begin, there in found.each():
        for row in np.flatnonzero(there[ROW, 0]):
            tile = int(begin[ROW, 0, row])
            keys = min(found.width, tiling.kv_tiles - tile) * tiling.kv_block
            yield int(row) * tiling.q_block, tile * tiling.kv_block, tiling.q_block, keys, found.masked


def call() -> Page:
    """The stations of a call, and what blockwise makes of its mask."""
    from maskattn import schedule
    from maskattn.masks import Causal, KeyPadding
    from maskattn.schedule.pieces import OPEN, TRIANGLE, pieces_of

    page = Page(686)
    page.text(
        WIDTH / 2, page.y + 6, "attention(q, k, v, Causal() & KeyPadding([1024, 600]))", 8.5, ha="center", weight="bold"
    )
    page.y += 16
    for box in CALL:
        page.box(box)
    width = (WIDTH - 2 * EDGE - 12) / 4
    for n, name in enumerate(KERNELS):
        x = EDGE + n * (width + 4)
        page.area(x, page.y, width, 32, LIGHT if name == "blockwise" else PAPER, INK)
        page.text(x + width / 2, page.y + 10, name, 8.5, ha="center", weight="bold")
        says = {"reference": "the formula", "exact": "equal bits", "blockwise": "tiles", "fused": "the vendor's"}[name]
        page.text(x + width / 2, page.y + 23, says, 8, ha="center")
    page.y += 32
    page.arrow(WIDTH / 2, page.y, page.y + 13)
    page.y += 13
    page.area(EDGE, page.y, WIDTH - 2 * EDGE, 20, PAPER, INK)
    page.text(WIDTH / 2, page.y + 10, "output [B, L, H, Dv]  ·  lse [B, L, H] (not from fused)", 8.5, ha="center")
    page.y += 36

    length = LENGTHS[0]
    sizes = (2, 4, length, length)
    mask = Causal() & KeyPadding(np.array(LENGTHS))
    page.text(EDGE, page.y, "blockwise: what becomes of the mask (second batch row)", 8.5, weight="bold")
    page.text(EDGE, page.y + 12, "queries down, keys across; white is what may be skipped", 8, color=GREY)
    page.y += 24
    side = (WIDTH - 3 * EDGE) / 2
    unit = side / length
    allowed = mask.dense(length, length)[ROW, 0]

    def panel(x: float, title: str, where: str, share: float) -> None:
        page.area(x, page.y, side, side, "none", INK)
        page.text(x, page.y + side + 9, f"{title}: {share:.0%}".replace("%", " %"), 8, weight="bold")
        page.text(x, page.y + side + 20, where, 7.5, color=GREY, family="monospace")

    def put(x: float, part: tuple[int, int, int, int], colour: str, edge: str = INK) -> int:
        q, k, rows, keys = part
        rows, keys = min(rows, length - q), min(keys, length - k)
        page.area(x + k * unit, page.y + q * unit, keys * unit, rows * unit, colour, edge, linewidth=0.6)
        return rows * keys

    left, right = float(EDGE), 2 * EDGE + side
    x = [(k + 0.0) * unit for k in (0, LENGTHS[ROW], LENGTHS[ROW], 0)]
    y = [q * unit for q in (0, LENGTHS[ROW], length, length)]
    page.axes.fill([left + a for a in x], [page.y + b for b in y], color=BLUE, linewidth=0)
    panel(left, "pairs allowed", "Mask.allowed", allowed.mean())

    tiles = schedule.Schedule.of(mask, *sizes)
    size = tiles.q_block
    done = 0
    for i, j in np.argwhere(tiles.states()[ROW, 0] != schedule.EMPTY):
        full = tiles.states()[ROW, 0, i, j] == schedule.FULL
        done += put(right, (i * size, j * size, size, size), BLUE if full else SAND)
    panel(right, "tiles of 128, not empty", "Schedule.of", done / length**2)
    page.y += side + 36

    done = sum(put(left, part, SAND if masked else BLUE) for *part, masked in sorted(steps(mask, sizes)))
    panel(left, "steps in JAX", "steps.cheapest", done / length**2)
    done = 0.0
    for piece in pieces_of(mask, 2, 4, 4, length, length):
        if ROW not in piece.batch:
            continue
        corner = (left, page.y)
        for n in range(piece.count):
            q, k = piece.q + n * piece.q_step, piece.k + n * piece.k_step
            if piece.kind == TRIANGLE:
                corners = [(k, q), (k + piece.cols, q + piece.rows), (k, q + piece.rows)]
                xs, ys = zip(*((right + a * unit, corner[1] + b * unit) for a, b in corners), strict=True)
                page.axes.fill(xs, ys, facecolor=BLUE, edgecolor=INK, linewidth=0.6)
                done += piece.rows * piece.cols / 2
            else:
                done += put(right, (q, k, piece.rows, piece.cols), BLUE if piece.kind == OPEN else SAND)
    panel(right, "pieces in PyTorch", "pieces_of", done / length**2)
    page.y += side + 36
    page.area(left, page.y - 5, 10, 10, BLUE, INK)
    page.text(left + 15, page.y, "done without asking the mask", 8)
    page.area(right, page.y - 5, 10, 10, SAND, INK)
    page.text(right + 15, page.y, "mixed: the mask is applied", 8)
    return page


def conversion() -> Page:
    """The stations of a conversion, and one layer's query, key and value on their way."""
    from maskattn.checkpoints import TensorInfo
    from maskattn.convert import plan

    infos = {name: TensorInfo(shape, np.dtype("float32")) for name, shape in TINY.items()}
    planned = plan(infos, target="flax-linen", num_heads=2)
    moves = {move.array.operations: move.target for move in planned.moves}
    (layer,) = planned.layers.values()
    parts = [(part, layer.tensors[f"{part}.kernel"]) for part in PARTS]
    ((source,),) = {lazy.sources for _, lazy in parts}

    page = Page(678)
    title = "maskattn convert tiny.safetensors tiny.npz --to flax-linen --heads 2"
    page.text(WIDTH / 2, page.y + 6, title, 7.5, ha="center", weight="bold")
    page.y += 18
    top = page.y
    page.text(EDGE, page.y + 9, "names, shapes, dtypes: no number read, nothing written", 8, color=BLUE, weight="bold")
    page.y += 20
    page.box(READING[0])
    page.box(READING[1])

    rows, columns = infos[source].shape
    unit = 4.5
    for n, (part, _) in enumerate(parts):
        page.area(EDGE + n * columns / 3 * unit, page.y, columns / 3 * unit, rows * 3, PARTS[part], PAPER)
    page.text(EDGE + columns * unit + 8, page.y + 6, source, 7.5, family="monospace")
    page.text(EDGE + columns * unit + 8, page.y + 18, f"{list(infos[source].shape)}, query, key and value", 8)
    page.y += rows * 3 + 4
    page.arrow(WIDTH / 2, page.y, page.y + 11)
    page.y += 11
    page.box(READING[2])
    for names in ([f"{part}.kernel" for part in PARTS], [moves[lazy.operations] for _, lazy in parts]):
        width = (WIDTH - 2 * EDGE) / 3
        for n, ((part, lazy), name) in enumerate(zip(parts, names, strict=True)):
            x = EDGE + width * n
            page.area(x + (width - columns / 3 * unit) / 2, page.y, columns / 3 * unit, rows * 3, PARTS[part])
            page.text(x + width / 2, page.y + rows * 3 + 8, name, 7, family="monospace", ha="center")
            page.text(x + width / 2, page.y + rows * 3 + 18, str(list(lazy.shape)), 7, color=GREY, ha="center")
        page.y += rows * 3 + 24
        page.arrow(WIDTH / 2, page.y, page.y + 11)
        page.y += 11
        page.box(WRITING[0] if names[0] == "query.kernel" else WRITING[1])
    page.y -= 6
    page.area(0, top, WIDTH, page.y - top, LIGHT, zorder=0)
    top = page.y
    page.text(EDGE, page.y + 10, "numbers are read, two tensors at a time", 8, color="#8a5a00", weight="bold")
    page.y += 20
    page.box(RUNNING[0])
    page.area(0, top, WIDTH, page.y - top, SAND, zorder=0)
    page.area(0, page.y, WIDTH, 22, INK)
    page.text(
        WIDTH / 2, page.y + 11, "published: renamed to tiny.npz, whole or not at all", 8.5, ha="center", color=PAPER
    )
    page.y += 22
    page.arrow(WIDTH / 2, page.y, page.y + 11)
    page.y += 11
    page.box(VERIFYING[0], arrow=False)
    return page


def main() -> None:
    """Draws both."""
    from PIL import Image, PngImagePlugin

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT)
    arguments = parser.parse_args()
    for name, draw in (("life-of-a-call", call), ("life-of-a-conversion", conversion)):
        page, drawn, texts = draw(), io.BytesIO(), PngImagePlugin.PngInfo()
        page.figure.savefig(drawn, dpi=160)
        texts.add_itxt("Description", "\n".join(page.written))
        where = arguments.out / f"{name}.png"
        Image.open(drawn).convert("RGB").quantize(64).save(where, optimize=True, pnginfo=texts)
        print(where)


if __name__ == "__main__":
    main()
