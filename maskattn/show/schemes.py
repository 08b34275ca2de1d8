"""A corruption scheme, seen: what one draw hides of an image or of a text, and its figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskattn.corruption import IJEPA, MAE, MLM, Scheme, T5Spans
from maskattn.corruption.examples import SIDE, TEXT, VOCABULARY

Array = np.ndarray

#: What a patch can be: hidden, seen, in no block, or in target 1, 2, ...
HIDDEN, SEEN, TARGET = 0, 1, 2


@dataclass(frozen=True)
class Picture:
    """An image's patches, int [height, width]: `HIDDEN`, `SEEN`, or `TARGET` + the number of a target."""

    cells: Array
    figures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Text:
    """Rows of words below one another, each with its name; and which words of the first row are hidden."""

    rows: tuple[tuple[str, tuple[str, ...]], ...]
    hidden: tuple[bool, ...]
    figures: tuple[tuple[str, str], ...]


def draw(scheme: Scheme, seed: int = 0, row: int = 0) -> Picture | Text:
    """Row `row` of what the scheme draws from this seed, on the example image or text.

    Raises:
        ValueError, TypeError: seed is out of range; or the scheme does not fit the example, as its `apply` says.
    """
    if isinstance(scheme, MLM):
        return _mlm(scheme, seed, row)
    if isinstance(scheme, T5Spans):
        return _t5(scheme, seed, row)
    if isinstance(scheme, IJEPA):
        drawn = scheme.apply(seed, row + 1)
        cells = drawn.context[row].astype(int)
        for number, target in enumerate(drawn.targets[row]):
            cells[target] = TARGET + number
        neither = (~drawn.context[row] & ~drawn.targets[row].any(axis=0)).sum()
        counts = {
            "context": drawn.context[row].sum(),
            "targets": drawn.targets[row].any(axis=0).sum(),
            "neither": neither,
        }
        return Picture(cells, tuple((name, _share(count, cells.size)) for name, count in counts.items()))
    if isinstance(scheme, MAE):
        removed = scheme.apply(seed, row + 1, SIDE * SIDE).removed[row].reshape(SIDE, SIDE)
    else:
        removed = scheme.apply(seed, row + 1).removed[row]
    return Picture(np.where(removed, HIDDEN, SEEN), (("hidden", _share(removed.sum(), removed.size)),))


def terminal(drawing: Picture | Text, width: int = 80, ascii_only: bool = False) -> str:
    """The drawing as lines of at most `width` characters, or as wide as one word where that is more."""
    if isinstance(drawing, Text):
        return "\n".join(_aligned(drawing, width))
    marks = {HIDDEN: "..", SEEN: "##"} if ascii_only else {HIDDEN: "··", SEEN: "██"}
    inside = ["".join(marks.get(cell, f"{cell - TARGET + 1:>2}") for cell in line) for line in drawing.cells.tolist()]
    flat = 2 * drawing.cells.shape[1]
    left, right, side = ("+", "+", "|") if ascii_only else ("┌", "┐", "│")
    below = ("+", "+") if ascii_only else ("└", "┘")
    line = ("-" if ascii_only else "─") * flat
    legend = f"{marks[SEEN]} seen  {marks[HIDDEN]} hidden"
    if drawing.cells.max() >= TARGET:
        legend = f"{marks[SEEN]} context  {marks[HIDDEN]} in no block  1, 2, ... targets"
    return "\n".join(
        [f"{left}{line}{right}", *(f"{side}{x}{side}" for x in inside), f"{below[0]}{line}{below[1]}", legend]
    )


def _mlm(scheme: MLM, seed: int, row: int) -> Text:
    tokens = _tokens(row)
    words = np.tile(np.arange(len(TEXT)), (row + 1, 1)) if scheme.whole_words else None
    drawn = scheme.apply(seed, tokens, words=words)
    hidden = drawn.selected[row]
    names = {scheme.mask_id: "[MASK]"}
    rows = (
        ("text", tuple(TEXT)),
        ("tokens", tuple(names.get(t) or _word(t) for t in drawn.tokens[row].tolist())),
        ("labels", tuple(word if chosen else "-" for word, chosen in zip(TEXT, hidden, strict=True))),
    )
    changed = drawn.tokens[row] != tokens[row]
    masked = drawn.tokens[row] == scheme.mask_id
    figures = (
        ("selected", _share(hidden.sum(), hidden.size)),
        (
            "of these",
            f"{masked.sum()} [MASK], {(changed & ~masked).sum()} another word, {(hidden & ~changed).sum()} unchanged",
        ),
    )
    return Text(rows, tuple(hidden.tolist()), figures)


def _t5(scheme: T5Spans, seed: int, row: int) -> Text:
    drawn = scheme.apply(seed, _tokens(row))
    hidden = drawn.corrupted[row]

    def words(tokens: Array, length: int) -> tuple[str, ...]:
        last = scheme.first_sentinel - scheme.sentinels
        return tuple(
            "</s>"
            if t == scheme.eos_id
            else f"<{scheme.first_sentinel - t}>"
            if last < t <= scheme.first_sentinel
            else _word(t)
            for t in tokens[: int(length)].tolist()
        )

    rows = (
        ("text", tuple(TEXT)),
        ("inputs", words(drawn.inputs[row], drawn.input_lengths[row])),
        ("targets", words(drawn.targets[row], drawn.target_lengths[row])),
    )
    spans = (hidden & ~np.concatenate([[False], hidden[:-1]])).sum()
    return Text(rows, tuple(hidden.tolist()), (("corrupted", f"{_share(hidden.sum(), hidden.size)} in {spans} spans"),))


def _tokens(row: int) -> Array:
    return np.tile([VOCABULARY.index(word) for word in TEXT], (row + 1, 1))


def _word(token: int) -> str:
    return VOCABULARY[token] if token < len(VOCABULARY) else f"#{token}"


def _share(part: int, whole: int) -> str:
    return f"{int(part)} of {whole} ({100 * int(part) / whole:.2f} %)"


def _aligned(drawing: Text, width: int) -> list[str]:
    """Lines: rows as long as the text stand below it word by word, in blocks; each other row follows by itself."""
    name_width = max(len(name) for name, _ in drawing.rows) + 2
    length = len(drawing.rows[0][1])
    together = [row for row in drawing.rows if len(row[1]) == length]
    alone = [row for row in drawing.rows if len(row[1]) != length]
    lines = []
    for rows in [together, *([row] for row in alone)]:
        widths = [max(map(len, column)) + 1 for column in zip(*(words for _, words in rows), strict=True)]
        start = 0
        while start < len(widths):
            stop = start + 1
            while stop < len(widths) and name_width + sum(widths[start : stop + 1]) <= width:
                stop += 1
            for name, words in rows:
                cells = (word.ljust(n) for word, n in zip(words[start:stop], widths[start:stop], strict=True))
                lines.append(f"{name.ljust(name_width)}{''.join(cells)}".rstrip())
            lines += [""] * (len(rows) > 1)
            start = stop
        lines += [""] * (len(rows) == 1)
    return lines
