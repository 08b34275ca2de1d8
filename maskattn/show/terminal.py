"""A mask drawn with characters."""

from __future__ import annotations

import math

import numpy as np

from maskattn.masks import Mask
from maskattn.show.pixels import shrink

_SQUARES = "·█"  # one pair, drawn twice as wide as high
_HALVES = " ▄▀█"  # two pairs, one above the other
_SHADES = " ░▒▓█"  # nothing, up to a third, up to two thirds, nearly all, all
_ASCII = {"·": ".", "█": "#", "▄": "_", "▀": '"', "░": ".", "▒": ":", "▓": "+", "─": "-", "│": "|"}
_ASCII |= {corner: "+" for corner in "┌┐└┘"}


def drawing(
    mask: Mask,
    q_len: int,
    kv_len: int,
    batch: int = 0,
    head: int = 0,
    width: int = 80,
    height: int = 40,
    ascii_only: bool = False,
) -> str:
    """One matrix of the mask in a frame of at most `width` characters and `height` lines; queries run down.

    Small masks are drawn pair by pair, larger ones as shades of the share of pairs allowed.

    Args:
        mask: True = may attend; its sizes must fit.
        q_len, kv_len: how many queries and keys are drawn. batch, head: which matrix is.
        ascii_only: use no other characters.
    """
    label = max(3, len(str(max(q_len - 1, 0))))
    room = max(4, width - label - 2), max(2, height - 4)
    if not q_len or not kv_len:
        lines, note = [], f"no entries ({q_len} x {kv_len})"
        marks = [""]
    elif 2 * kv_len <= room[0] and q_len <= room[1]:
        bits = shrink(mask, q_len, kv_len, (1, 1), batch, head) > 0
        lines = ["".join(_SQUARES[int(bit)] * 2 for bit in row) for row in bits]
        note, marks = "", [str(q) for q in range(q_len)]
    elif kv_len <= room[0] and q_len <= 2 * room[1]:
        bits = shrink(mask, q_len, kv_len, (1, 1), batch, head) > 0
        bits = np.concatenate([bits, np.zeros((q_len % 2, kv_len), bool)])
        lines = ["".join(_HALVES[2 * int(up) + int(down)] for up, down in pair) for pair in _stacked(bits)]
        note, marks = "", [str(2 * line) for line in range(len(lines))]
    else:
        side = max(-(-kv_len // room[0]), -(-q_len // (2 * room[1])))
        densities = shrink(mask, q_len, kv_len, (2 * side, side), batch, head)
        lines = ["".join(_shade(density) for density in row) for row in densities]
        note = f"one character = {2 * side} queries x {side} keys"
        marks = [str(2 * side * i) for i in range(len(lines))]
    text = "\n".join(_framed(lines, marks, kv_len, label, note))
    return "".join(_ASCII.get(c, c) for c in text) if ascii_only else text


def _stacked(bits: np.ndarray) -> list[zip[tuple[bool, bool]]]:
    return [zip(bits[i], bits[i + 1], strict=True) for i in range(0, len(bits), 2)]


def _shade(density: float) -> str:
    if density in (0.0, 1.0):
        return _SHADES[int(density) * 4]
    return _SHADES[min(3, max(1, math.ceil(density * 3)))]


def _framed(lines: list[str], marks: list[str], kv_len: int, label: int, note: str) -> list[str]:
    """The lines in a frame, with the first and last key above and the queries at the left."""
    inner = max((len(line) for line in lines), default=0)
    last = str(max(kv_len - 1, 0))
    ruler = "0" + (last.rjust(inner - 1) if inner > len(last) + 1 else "")
    every = max(1, len(lines) // 8)
    framed = ["q\\k".rjust(label) + " " + ruler, " " * label + "┌" + "─" * inner + "┐"]
    for i, (line, mark) in enumerate(zip(lines, marks, strict=False)):
        framed.append((mark if i % every == 0 else "").rjust(label) + f"│{line}│")
    framed.append(" " * label + "└" + "─" * inner + "┘")
    return [*framed, f"{' ' * (label + 1)}{note}"] if note else framed
