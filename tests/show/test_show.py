"""`maskattn show`: its figures against counting, its drawings against the mask, its pictures, and what it says."""

from __future__ import annotations

import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from maskattn import masks, recipes, standards
from maskattn.cli._gallery import COLUMNS, panels, write_gallery
from maskattn.cli.main import main
from maskattn.masks._names import library_classes
from maskattn.parity.attention.cases import Shape, compose
from maskattn.parity.draws import Draws
from maskattn.show import drawing, shrink, statistics
from maskattn.show.picture import write_png

SHAPE = Shape(4, 24, 30, 2, 1, 8, 8)
SQUARE = Shape(4, 25, 25, 2, 1, 8, 8)


def show(*arguments):
    return CliRunner(env={"COLUMNS": "100", "LINES": "60"}).invoke(main, ["show", *map(str, arguments)])


def some_masks():
    for shape in (SHAPE, SQUARE):
        for name, cls in library_classes().items():
            for i, mask in enumerate(cls.examples(shape, Draws(f"{name} {shape.q_len}"))):
                yield pytest.param(mask, shape, id=f"{name}-{i}-{shape.q_len}")
        for seed in range(5):
            yield pytest.param(compose(shape, Draws(f"show {seed}"), 3), shape, id=f"composed-{seed}-{shape.q_len}")


@pytest.mark.parametrize("mask, shape", list(some_masks()))
def test_statistics_are_those_of_the_dense_mask(mask, shape):
    sizes = (shape.q_len, shape.kv_len, shape.batch, shape.heads)
    dense = mask.dense(*sizes)
    for tile in ((7, 4), (128, 128)):
        found = statistics(mask, *sizes, tile=tile)
        assert (found.exact, found.unknown_rows) == (True, 0)
        assert (found.allowed, found.pairs, found.rows) == (dense.sum(), dense.size, dense[..., 0].size)
        assert found.empty_rows == (~dense.any(axis=3)).sum()
        assert found.tiles == shape.batch * shape.heads * -(-shape.q_len // tile[0]) * -(-shape.kv_len // tile[1])
        empty, full = np.zeros(dense.shape[:2], int), np.zeros(dense.shape[:2], int)
        for q in range(0, shape.q_len, tile[0]):
            for k in range(0, shape.kv_len, tile[1]):
                block = dense[:, :, q : q + tile[0], k : k + tile[1]]
                empty, full = empty + ~block.any(axis=(2, 3)), full + block.all(axis=(2, 3))
        # `tile` may be loose, never wrong
        assert found.skipped_tiles <= empty.sum() and found.full_tiles <= full.sum()
        if isinstance(mask, (masks.Causal, masks.SlidingWindow, masks.KeyMask, masks.KeyPadding)):
            assert (found.skipped_tiles, found.full_tiles) == (empty.sum(), full.sum())


@pytest.mark.parametrize("budget", [0, 1, 500, 3000])
def test_statistics_within_a_budget_say_what_is_not_known(budget):
    mask = masks.Strided(3) & ~masks.QueryMask(np.arange(300)[None] % 60 == 7)
    dense = mask.dense(300, 300)
    found = statistics(mask, 300, 300, tile=(8, 8), budget=budget)
    assert not found.exact
    empty = int((~dense.any(axis=3)).sum())
    assert empty == 5 and found.empty_rows <= empty <= found.empty_rows + found.unknown_rows
    if budget >= 3000:
        assert abs(found.density - dense.mean()) < standards.value("draws.share") * dense.mean()


def test_statistics_of_no_pairs_and_no_tiles():
    found = statistics(masks.Causal(), 0, 5)
    assert (found.pairs, found.allowed, found.tiles) == (0, 0, 0) and np.isnan(found.density)
    found = statistics(masks.Causal(), 5, 0)
    assert (found.rows, found.empty_rows) == (5, 5)
    with pytest.raises(ValueError, match="tile must be at least 1 x 1, got 0 x 4"):
        statistics(masks.Causal(), 5, 5, tile=(0, 4))


def test_long_masks_are_counted_without_their_matrix():
    n = 131072
    found = statistics(masks.Causal() & masks.SlidingWindow(4095), n, n)
    assert found.exact and found.allowed == sum(min(q + 1, 4096) for q in range(n))
    assert (found.tiles, found.skipped_tiles + found.full_tiles) == (1024**2, 1024**2 - 1024 - (1024 - 32))
    tracemalloc.start()
    statistics(masks.Strided(1024), n, n)
    drawing(masks.Strided(1024), n, n)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000_000  # bytes; the matrix alone would be 17 GB


@pytest.mark.parametrize("cell", [(1, 1), (4, 5), (7, 3), (100, 100)])
def test_cells_hold_the_share_of_pairs_allowed(cell):
    mask = masks.KeyPadding([20, 11]) & (masks.Causal() | masks.Chunked(9))
    dense = mask.dense(23, 30)[1, 0]
    shares = shrink(mask, 23, 30, cell, batch=1)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            block = dense[i * cell[0] : (i + 1) * cell[0], j * cell[1] : (j + 1) * cell[1]]
            assert share == pytest.approx(block.mean(), abs=standards.value("same.float64"))
    # with every line of every cell among those looked at, the estimate is no estimate
    np.testing.assert_allclose(
        shrink(mask, 23, 30, cell, batch=1, exact=100 * 30 * 30 - 1), shares, atol=standards.value("same.float64")
    )


def test_a_single_line_is_seen_in_a_large_mask():
    tokens = np.zeros(20_000, bool)
    tokens[12_345] = True
    shares = shrink(masks.Global(tokens) | masks.SlidingWindow(0), 20_000, 20_000, (500, 500), exact=1 << 20)
    expected = np.eye(40, dtype=bool)
    expected[12_345 // 500] = expected[:, 12_345 // 500] = True
    np.testing.assert_array_equal(shares > 0, expected)


def inner(text):
    return [re.split("[│|]", line)[1] for line in text.splitlines() if re.search("[│|].*[│|]", line)]


def test_small_masks_are_drawn_pair_by_pair():
    mask = masks.Causal() & masks.KeyMask([[True, False, True, True]])
    assert drawing(mask, 3, 4).splitlines() == [
        "q\\k 0      3",
        "   ┌────────┐",
        "  0│██······│",
        "  1│██······│",
        "  2│██··██··│",
        "   └────────┘",
    ]
    dense = mask.dense(4, 4)[0, 0]
    assert [[line[2 * k] == "█" for k in range(4)] for line in inner(drawing(mask, 4, 4))] == dense.tolist()


def test_middling_masks_are_drawn_in_half_blocks():
    dense = (masks.Causal() & masks.SlidingWindow(9)).dense(41, 60)[0, 0]
    lines = inner(drawing(masks.Causal() & masks.SlidingWindow(9), 41, 60, width=70, height=40))
    upper = [[c in "▀█" for c in line] for line in lines]
    lower = [[c in "▄█" for c in line] for line in lines]
    np.testing.assert_array_equal(upper, dense[::2])
    np.testing.assert_array_equal(lower[:-1], dense[1::2])
    assert not any(lower[-1])


@pytest.mark.parametrize("q_len, kv_len", [(1000, 1000), (3, 5000), (5000, 3), (70_000, 70_000)])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_large_masks_fit_the_terminal(q_len, kv_len, ascii_only):
    text = drawing(masks.Causal(), q_len, kv_len, width=60, height=20, ascii_only=ascii_only)
    assert len(text.splitlines()) <= 20 and all(len(line) <= 60 for line in text.splitlines())
    assert text.isascii() == ascii_only
    assert set("".join(inner(text))) <= set(" .:+#" if ascii_only else " ░▒▓█")


def test_a_mask_without_pairs_is_drawn_empty():
    assert "no entries (0 x 4)" in drawing(masks.Causal(), 0, 4)


def test_the_command_draws_counts_and_warns():
    result = show("causal & window(255, 0)", "--q", 1024, "--kv", 1024)
    assert result.exit_code == 0
    allowed = sum(min(q + 1, 256) for q in range(1024))
    assert "Causal() & SlidingWindow(255)\n1,024 queries x 1,024 keys, batch 1, 1 head" in result.output
    assert "density     21.89 % (229,504 of 1,048,576 pairs)" in result.output and allowed == 229_504
    assert "empty rows  0 of 1,024 may attend to nothing" in result.output
    assert "tiles       64 of 128 x 128: 67.19 % skipped, 10.94 % without mask, 21.88 % mixed" in result.output
    assert "warning     Causal() changes nothing" in result.output
    assert len(inner(result.output)) > 20


def test_the_command_takes_sizes_from_the_data_and_draws_the_row_asked_for():
    result = show("padding([2, 3]) & key_mask([[true, true, true, false]])", "--row", 1, "--tile", 2)
    assert result.exit_code == 0 and "4 queries x 4 keys, batch 2, 1 head" in result.output
    assert "row 1:" in result.output and inner(result.output) == ["██████··"] * 4
    assert "tiles       8 of 2 x 2: 25.00 % skipped, 50.00 % without mask, 25.00 % mixed" in result.output
    assert "5 queries x 7 keys" in show("causal", "--q", 5, "--kv", 7).output
    assert "warning     rows that may attend to nothing: q = 0..2" in show("causal(-3)", "--q", 9).output


def test_the_command_says_why():
    result = show("causal & padding([5, 3])", "--q", 8, "--why", "1,0,6,4")
    assert result.output.splitlines() == [
        "query 6 may not attend to key 4 (batch row 1, head 0)",
        "  Causal() & KeyPadding([5, 3]) forbids it:",
        "    Causal() allows it: 4 <= 6 + 0 is true (k <= q + offset)",
        "    KeyPadding([5, 3]) forbids it: 0 <= 4 < 3 is false (0 <= k < lengths[b])",
    ]


def test_the_command_knows_recipes_and_json(tmp_path):
    for name, example in recipes.EXAMPLES.items():
        result = show(f"recipes.{name}")
        assert result.exit_code == 0, result.output
        assert f"{example.q_len} queries x {example.kv_len} keys" in result.output
    assert show("recipes.mistral(3)", "--q", 6, "--json").output == recipes.mistral(3).to_json() + "\n"
    path = tmp_path / "mask.json"
    path.write_text((masks.Causal() & masks.KeyPadding([3, 5])).to_json())
    assert "Causal() & KeyPadding([3, 5])\n" in show(f"@{path}", "--q", 6).output


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give a MASK to show, or --gallery FILE"),
        (["causal"], "the mask fixes no lengths: give --q, --kv or both"),
        (
            ["causal & causel", "--q", 4],
            "column 10: there is no mask 'causel'; did you mean 'causal'?\n  causal & causel\n",
        ),
        (["padding([1, 2])", "--q", 4, "--batch", 3], "expects batch 2, got 3"),
        (["padding([1, 2])", "--q", 4, "--row", 2], "--row 2 is outside the 2 there are"),
        (["padding([1, 2]) & padding([1, 2, 3])", "--q", 4], "batch is 2 in KeyPadding([1, 2]) but 3 in"),
        (["causal", "--q", 4, "--why", "1,2,3"], "expected four numbers b,h,q,k that are not negative, got '1,2,3'"),
        (["recipes.mistrial"], "there is no recipe 'mistrial'; there are bigbird, "),
        (["@no such file", "--q", 4], "cannot read no such file: "),
        (["causal", "--q", 0, "--png", "x.png"], "a picture needs pairs, got 0 queries and 0 keys"),
    ],
)
def test_the_command_says_what_it_cannot_do(arguments, message):
    result = show(*arguments)
    assert result.exit_code in (1, 2) and message in result.output and "Traceback" not in result.output


def pixels(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_picture_shows_the_mask(tmp_path):
    path = tmp_path / "mask.png"
    result = show("causal & window(2, 0)", "--q", 8, "--png", path)
    assert result.exit_code == 0 and f"picture: {path}" in result.output
    image = pixels(path)
    height, width, _ = image.shape
    assert 900 < width < 1200 and 900 < height < 1200
    ink = np.abs(image - [0x1F, 0x4E, 0x8C]).sum(axis=2) < 12
    paper = np.abs(image - [0xEE, 0xF1, 0xF5]).sum(axis=2) < 12
    rows, columns = np.flatnonzero((ink | paper).sum(axis=1) > 400), np.flatnonzero((ink | paper).sum(axis=0) > 400)
    top, left = rows[0], columns[0]
    side = (rows[-1] - top) / 8, (columns[-1] - left) / 8
    dense = (masks.Causal() & masks.SlidingWindow(2)).dense(8, 8)[0, 0]
    for q in range(8):
        for k in range(8):
            at = int(top + (q + 0.5) * side[0]), int(left + (k + 0.5) * side[1])
            assert (ink[at], paper[at]) == (dense[q, k], not dense[q, k]), (q, k)


def test_pictures_of_large_and_long_masks(tmp_path):
    for q_len, kv_len in ((20_000, 20_000), (1, 500), (500, 1)):
        write_png(masks.Causal(), tmp_path / "mask.png", q_len, kv_len)
        height, width, _ = pixels(tmp_path / "mask.png").shape
        assert 200 < height < 4000 and 900 < width < 1200


def test_the_gallery_holds_every_mask_and_every_recipe(tmp_path):
    found = panels()
    names = {
        kind: {panel.name for panel in found if panel.kind == kind} for kind in ("masks", "combinations", "recipes")
    }
    made_by_operators = {"And", "Or", "Not", "At", "Positioned"}
    assert names["masks"] == set(library_classes()) - made_by_operators - {"Stored"}  # which caches make
    combined = {type(panel.mask).__name__ for panel in found if panel.kind == "combinations"}
    assert combined <= made_by_operators and len(names["combinations"]) == len(made_by_operators)
    assert names["recipes"] == set(recipes.EXAMPLES)
    path = tmp_path / "gallery.png"
    assert write_gallery(path) == len(found)
    height, width, _ = pixels(path).shape
    assert width > 1400 and height > 150 * len(found) / COLUMNS
    assert path.stat().st_size < 400_000


def test_the_gallery_in_the_docs_is_the_one_that_the_command_makes():
    docs = Path(__file__).parents[2] / "docs"
    committed = pixels(docs / "gallery.png")
    rows = -(-len(panels()) // COLUMNS)
    assert committed.shape[0] == pytest.approx((rows * 2.06 + 0.72) * 110, abs=2), (
        "maskattn show --gallery docs/gallery.png"
    )
    assert (docs / "gallery.png").stat().st_size < 400_000
    text = (docs / "gallery.md").read_text(encoding="utf-8")
    assert "](gallery.png)" in text and "maskattn show --gallery docs/gallery.png" in text


def test_pictures_without_matplotlib_say_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = show("causal", "--q", 4, "--png", tmp_path / "mask.png")
    assert result.exit_code == 1 and "pictures need matplotlib" in result.output
