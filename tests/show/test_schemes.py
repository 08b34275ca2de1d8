"""`maskattn show` of corruption schemes: what is drawn is what is drawn from the key."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from maskattn import corruption
from maskattn.cli.main import main
from maskattn.corruption.examples import EXAMPLES, SIDE, TEXT
from maskattn.show.schemes import Text, draw, terminal

DOCS = Path(__file__).parents[2] / "docs"


def show(*arguments):
    return CliRunner(env={"COLUMNS": "100", "LINES": "60"}).invoke(main, ["show", *map(str, arguments)])


def cells(text):
    """The patches between the frames, two characters each."""
    rows = [re.split("[│|]", line)[1] for line in text.splitlines() if re.search("[│|].*[│|]", line)]
    return np.array([[row[i : i + 2] for i in range(0, len(row), 2)] for row in rows])


def test_every_scheme_has_an_example_that_bears_the_name_of_its_file():
    schemes = {cls for cls in vars(corruption).values() if isinstance(cls, type) and issubclass(cls, corruption.Scheme)}
    assert {type(scheme) for scheme in EXAMPLES.values()} == schemes - {corruption.Scheme}
    assert all(type(scheme).__module__ == f"maskattn.corruption.{name}" for name, scheme in EXAMPLES.items())


@pytest.mark.parametrize("name, size", [("mae", (SIDE**2,)), ("simmim", ()), ("beit", ())])
@pytest.mark.parametrize("options", [(), ("--ascii",)])
def test_images_show_what_is_removed(name, size, options):
    result = show(name, "--seed", 5, "--row", 2, *options)
    assert result.exit_code == 0, result.output
    removed = EXAMPLES[name].apply(5, 3, *size).removed[2].reshape(SIDE, SIDE)
    np.testing.assert_array_equal(cells(result.output), np.where(removed, *("..", "##") if options else ("··", "██")))
    assert f"{EXAMPLES[name]!r}\nseed 5, row 2\n" in result.output
    assert f"hidden      {removed.sum()} of 196 ({100 * removed.mean():.2f} %)" in result.output
    assert result.output.isascii() == bool(options)


def test_ijepa_shows_context_and_targets():
    result = show("ijepa(targets=3)", "--seed", 1)
    drawn = corruption.IJEPA(targets=3).apply(1, 1)
    found = cells(result.output)
    np.testing.assert_array_equal(found == "██", drawn.context[0])
    assert (found[drawn.targets[0, 2]] == " 3").all()  # a later one is drawn over an earlier one
    np.testing.assert_array_equal(found == "··", ~drawn.context[0] & ~drawn.targets[0].any(axis=0))
    assert f"context     {drawn.context.sum()} of 196" in result.output and "1, 2, ... targets" in result.output


def rows(output):
    """name -> the words of all its lines."""
    found = {}
    for line in output.splitlines():
        name, _, words = line.partition(" ")
        if name in ("text", "tokens", "labels", "inputs", "targets"):
            found.setdefault(name, []).extend(words.split())
    return found


@pytest.mark.parametrize("arguments", ["", "(rate=0.5, random_share=0.2)", "(whole_words=True, exact_count=True)"])
def test_mlm_shows_tokens_and_labels_below_the_text(arguments):
    found = rows(show(f"mlm{arguments}", "--seed", 2).output)
    assert found["text"] == TEXT and len(found["tokens"]) == len(found["labels"]) == len(TEXT)
    selected = [label != "-" for label in found["labels"]]
    assert any(selected) and "[MASK]" in found["tokens"]
    for word, token, label, chosen in zip(TEXT, found["tokens"], found["labels"], selected, strict=True):
        assert (label == word) if chosen else (token == word)


def test_t5_shows_what_is_to_be_written():
    result = show("t5_spans(rate=0.4, eos_id=200)", "--seed", 3)
    found = rows(result.output)
    assert found["text"] == TEXT and found["inputs"][-1] == found["targets"][-1] == "</s>"
    answers = re.split(r"<\d+>", " ".join(found["targets"][:-1]))[1:]
    told = re.sub(r"<(\d+)>", lambda match: answers[int(match[1])].strip(), " ".join(found["inputs"][:-1]))
    assert told == " ".join(TEXT)
    assert f"corrupted   14 of 34 (41.18 %) in {len(answers)} spans" in result.output


@pytest.mark.parametrize("width", [20, 60, 300])
def test_drawings_are_as_wide_as_asked(width):
    for name in ("mlm", "t5_spans"):
        drawing = draw(EXAMPLES[name])
        assert isinstance(drawing, Text)
        assert all(len(line) <= max(width, 22) for line in terminal(drawing, width).splitlines())


def test_all_schemes_at_once_and_as_a_picture(tmp_path):
    result = show("corruption", "--png", tmp_path / "all.png")
    assert result.exit_code == 0, result.output
    assert all(repr(scheme) in result.output for scheme in EXAMPLES.values())
    with Image.open(tmp_path / "all.png") as image, Image.open(DOCS / "corruption.png") as committed:
        assert image.size == committed.size, "maskattn show corruption --png docs/corruption.png"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    ink = np.abs(pixels - [0x1F, 0x4E, 0x8C]).sum(axis=2) < 12
    assert 0.1 < ink.mean() < 0.5
    assert (DOCS / "corruption.png").stat().st_size < 200_000


def test_a_picture_shows_the_draws(tmp_path):
    assert show("beit(grid=8, patches=20, min_block=4)", "--png", tmp_path / "one.png").exit_code == 0
    with Image.open(tmp_path / "one.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    ink = np.abs(pixels - [0x1F, 0x4E, 0x8C]).sum(axis=2) < 12
    paper = np.abs(pixels - [0xEE, 0xF1, 0xF5]).sum(axis=2) < 12
    either = ink | paper
    rows_used = np.flatnonzero(either.sum(axis=1) > 0.3 * either.sum(axis=1).max())
    columns = np.flatnonzero(either[rows_used].sum(axis=0) > 0)
    first = columns[: np.flatnonzero(np.diff(columns) > 10)[0] + 1]  # the first of the five images
    removed = corruption.BEiT(8, 20, 4).apply(0, 1).removed[0]
    for y, x in np.ndindex(8, 8):
        at = (
            rows_used[0] + int((y + 0.5) * (rows_used[-1] - rows_used[0]) / 8),
            first[0] + int((x + 0.5) * (first[-1] - first[0]) / 8),
        )
        assert (paper if removed[y, x] else ink)[at], (y, x)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["mae(0.9)"], "expected a scheme as mae or mae(ratio=0.9), got 'mae(0.9)'"),
        (["mae(ratio=x)"], "expected a scheme as mae"),
        (["mae & causal"], "expected a scheme as mae"),
        (["mae(ration=0.9)"], "mae has no 'ration'; it has ratio, prefix"),
        (["mae(ratio=1)"], "MAE: ratio must be in [0, 1), got 1.0"),
        (["mae(ratio=0.999)"], "ratio must keep at least one of 196 patches, got 0.999"),
        (["mae", "--seed", -1], "-1 is not in the range"),
        (["maes"], "there is no mask 'maes'"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments, message):
    result = show(*arguments)
    assert result.exit_code in (1, 2) and message in result.output and "Traceback" not in result.output


def test_pictures_without_matplotlib_say_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = show("mae", "--png", tmp_path / "mae.png")
    assert result.exit_code == 1 and "pictures need matplotlib" in result.output
