"""What the tasks are trained on: Python's own language reference, and the handwritten digits of scikit-learn.

The rows of a step are drawn by `maskattn.rng` from the number of the step, so that both frameworks are given the same.
"""

from __future__ import annotations

import functools

import numpy as np

from maskattn.numerics import rng
from maskattn.typing import NumPyArray as Array

#: Tokens: four special ones, the printable characters of ASCII, and one for all others.
PAD, CLS, SEP, MASK = range(4)
VOCABULARY = 4 + (127 - 32) + 1

_DATA_KEY = rng.key(1)


def sentences(step: int, rows: int, length: int) -> dict[str, Array]:
    """Lines of text of different lengths, padded.

    Returns:
        tokens int32 [rows, length], [CLS] line [SEP] [PAD]...; lengths int32 [rows]; special bool [rows, length], True
        = [CLS], [SEP] or padding.
    """
    lines = _lines(length - 2)
    tokens: Array = np.full((rows, length), PAD, np.int32)
    lengths: Array = np.zeros(rows, np.int32)
    for row, chosen in enumerate(_chosen(step, rows, len(lines))):
        line = [CLS, *lines[chosen], SEP]
        tokens[row, : len(line)] = line
        lengths[row] = len(line)
    return {"tokens": tokens, "lengths": lengths, "special": np.isin(tokens, (PAD, CLS, SEP))}


def passages(step: int, rows: int, length: int) -> dict[str, Array]:
    """Text cut at any character: tokens int32 [rows, length + 1], of which the last `length` are to be predicted."""
    text = _text()
    starts = _chosen(step, rows, len(text) - length)
    return {"tokens": text[starts[:, None] + np.arange(length + 1)]}


def digits(step: int, rows: int, side: int = 1) -> dict[str, Array]:
    """images float64 [rows, 8 * side, 8 * side, 1], each of side * side digits, of 17 greys in [0, 1]; labels int32
    [rows], which digit is the first.

    Raises:
        ImportError: scikit-learn, which brings the images, is not installed.
    """
    images, labels = _images()
    chosen = _chosen(step, rows * side**2, len(images))
    pieces = images[chosen].reshape(rows, side, side, 8, 8).swapaxes(2, 3)
    return {"images": pieces.reshape(rows, 8 * side, 8 * side, 1), "labels": labels[chosen[:: side**2]]}


def _chosen(step: int, rows: int, count: int) -> Array:
    words = rng.bits(rng.fold_in(_DATA_KEY, step), (rows,))
    return np.asarray(words % np.uint32(count), np.int64)


@functools.cache
def _text() -> Array:
    """The language reference on Python's simple and compound statements, as tokens."""
    from pydoc_data.topics import topics

    names = sorted(name for name in topics if name.islower())[:24]
    codes = np.array([ord(c) for name in names for c in topics[name].replace("\n", " ")])
    printable = (codes >= 32) & (codes < 127)
    return np.where(printable, codes - 32 + 4, VOCABULARY - 1).astype(np.int32)


@functools.cache
def _lines(longest: int) -> list[list[int]]:
    """Runs of words of 5 to `longest` characters, whose lengths differ."""
    lines: list[list[int]] = []
    text, space, start = _text(), 4, 0
    while start + longest < len(text):
        wanted = 5 + 7 * len(lines) % (longest - 4)
        ends = np.flatnonzero(text[start : start + wanted] == space)
        stop = start + (int(ends[-1]) if len(ends) and ends[-1] >= 5 else wanted)
        lines.append([int(token) for token in text[start:stop]])
        start = stop + 1
    return lines


@functools.cache
def _images() -> tuple[Array, Array]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the images are scikit-learn's digits: pip install scikit-learn") from error
    found = load_digits()
    return np.asarray(found.images / 16.0), found.target.astype(np.int32)
