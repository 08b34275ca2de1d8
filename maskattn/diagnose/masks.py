"""What a mask may be instead of the right one: the mistakes that ports make, each as another mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from maskattn.typing import NumPyArray


def _right(allowed: NumPyArray) -> NumPyArray:
    """Each key's permission given to the key behind it."""
    return np.concatenate([allowed[..., :1], allowed[..., :-1]], -1)


def _left(allowed: NumPyArray) -> NumPyArray:
    return np.concatenate([allowed[..., 1:], allowed[..., -1:]], -1)


def _some(allowed: NumPyArray) -> NumPyArray:
    """Keys that some query may attend to."""
    found: NumPyArray = np.asarray(allowed.any(-2, keepdims=True))
    return found


def _whole(allowed: NumPyArray, like: NumPyArray) -> NumPyArray:
    return np.broadcast_to(allowed, like.shape)


def _before(allowed: NumPyArray) -> NumPyArray:
    """What the query before may attend to; of the first, what it may itself, one key earlier."""
    first = np.concatenate([allowed[..., :1, 1:], np.zeros_like(allowed[..., :1, :1])], -1)
    return np.concatenate([first, allowed[..., :-1, :]], -2)


def _behind(allowed: NumPyArray) -> NumPyArray:
    """What the query behind may attend to; of the last, what it may itself, one key later."""
    last = np.concatenate([np.zeros_like(allowed[..., -1:, :1]), allowed[..., -1:, :-1]], -1)
    return np.concatenate([allowed[..., 1:, :], last], -2)


def _early(allowed: NumPyArray) -> NumPyArray:
    return allowed & _before(allowed)


def _first(allowed: NumPyArray) -> NumPyArray:
    """Rows that attend to nothing attend to the first key."""
    first = np.zeros_like(allowed)
    first[..., 0] = True
    return allowed | (~allowed.any(-1, keepdims=True) & first)


def _to_the_left(allowed: NumPyArray) -> NumPyArray:
    """All keys in front of an allowed one."""
    return np.flip(np.logical_or.accumulate(np.flip(allowed, -1), -1), -1)


def _diagonal(allowed: NumPyArray) -> NumPyArray:
    return np.eye(allowed.shape[-2], allowed.shape[-1], dtype=bool)


def _causal(allowed: NumPyArray) -> NumPyArray:
    rows, columns = allowed.shape[-2:]
    return np.tri(rows, columns, columns - rows, dtype=bool)


#: Words -> the mask [B, H, L, S] that is there instead, True = may attend.
MISTAKES: Mapping[str, Callable[[NumPyArray], NumPyArray]] = {
    "the mask is missing": np.ones_like,
    "the mask is inverted": np.logical_not,
    "the mask is inverted, but for the diagonal": lambda a: ~a | _diagonal(a),
    "padding is not masked": lambda a: _whole(np.asarray(a.any(0, keepdims=True)), a),
    "the mask is of padding alone: not causal, no window": lambda a: _whole(_some(a), a),
    "there is no window": lambda a: _to_the_left(a) & _some(a),
    "the mask is causal too": lambda a: a & _causal(a),
    "the mask is causal up to the last key, where there are more keys than queries": lambda a: (
        np.broadcast_to(_causal(a), a.shape) if a.shape[-2] < a.shape[-1] else a
    ),
    "the mask is causal alone: no padding, no window": lambda a: np.broadcast_to(_causal(a), a.shape),
    "the mask is causal from the first key on, where there are more keys than queries": lambda a: np.broadcast_to(
        np.tri(a.shape[-2], a.shape[-1], dtype=bool), a.shape
    ),
    "a query sees one key more behind (causal, one late)": lambda a: (a | _behind(a)) & _some(a),
    "a query sees one key more behind, padding too (causal, one late)": lambda a: a | _right(a),
    "a query sees one key less at the end (causal, one early)": _early,
    "a query sees one key less at the end (causal, one early; an empty row sees the first)": lambda a: _first(
        _early(a)
    ),
    "a query sees one key more before (a window too wide by one)": lambda a: (a | _before(a)) & _some(a),
    "a query sees one key less at the start (a window too narrow by one)": lambda a: a & _behind(a),
    "the mask is shifted by one key": _right,
    "the mask is shifted by one key to the left": _left,
    "queries and keys of the mask are exchanged": lambda a: np.swapaxes(a, -1, -2) if a.shape[-1] == a.shape[-2] else a,
}


def mistakes(allowed: NumPyArray) -> Iterator[tuple[str, NumPyArray]]:
    """Other masks than this one, bool [B, H, L, S], each once, and what is wrong with each."""
    seen = [allowed]
    for text, change in MISTAKES.items():
        other = change(allowed)
        if not any(np.array_equal(other, one) for one in seen):
            seen.append(other)
            yield text, other
