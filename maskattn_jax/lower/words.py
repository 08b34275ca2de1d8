"""Masks in the words of `jax.nn.dot_product_attention`: bands and lengths."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from maskattn._fields import peek
from maskattn.masks import And, KeyMask, KeyPadding, Mask, QueryMask
from maskattn.masks.interop.bands import Band, band, intersection


class InWords(NamedTuple):
    """A mask as what jax.nn has words for, whose conjunction it is.

    Attributes:
        limits: the band low <= k - q <= high that holds the diagonal.
        q_lengths, kv_lengths: int [B] each: how many queries and keys count.
        rest: the parts that only an array can say.
    """

    limits: Band
    q_lengths: list[Array]
    kv_lengths: list[Array]
    rest: list[Mask]


def in_words(mask: Mask) -> InWords:
    """The parts of a mask as words of `jax.nn.dot_product_attention`; no array is made."""
    bands: list[Band] = []
    q_lengths, kv_lengths, rest = [], [], []
    for part in mask.parts if isinstance(mask, And) else (mask,):
        limits, keys, queries = band(part), _key_lengths(part), _query_lengths(part)
        if limits is not None and _near(limits):
            bands.append(limits)
        elif keys is not None:
            kv_lengths.append(keys)
        elif queries is not None:
            q_lengths.append(queries)
        else:
            rest.append(part)
    return InWords(intersection(bands), q_lengths, kv_lengths, rest)


def reached(words: InWords, sizes: tuple[int, int, int, int]) -> tuple[Array, Array]:
    """Which rows may attend to something, bool [B or 1, 1, L], and which keys something may attend to, bool
    [B or 1, 1, S], of a mask that words say whole.
    """
    _, _, q_len, kv_len = sizes
    low, high = words.limits
    query, key = jnp.arange(q_len, dtype=jnp.int32), jnp.arange(kv_len, dtype=jnp.int32)
    queries, keys = _least(words.q_lengths, q_len), _least(words.kv_lengths, kv_len)
    rows = (query < queries) & _any(query, low, high, keys)
    columns = (key < keys) & _any(key, None if high is None else -high, None if low is None else -low, queries)
    return rows[:, None], columns[:, None]


def _any(place: Array, low: int | None, high: int | None, length: Array) -> Array:
    """Whether some number of 0 ... length - 1 lies in place + low ... place + high."""
    first = 0 if low is None else jnp.maximum(0, place + low)
    last = length - 1 if high is None else jnp.minimum(length - 1, place + high)
    return first <= last


def _least(lengths: list[Array], length: int) -> Array:
    """The least of these lengths of each batch row, at most `length`: int32 [B or 1, 1]."""
    least = jnp.full((1,), length, jnp.int32)
    for each in lengths:
        least = jnp.minimum(least, jnp.asarray(each, jnp.int32))
    return least[:, None]


def _near(limits: Band) -> bool:
    """Whether the band holds the diagonal, as the windows of jax.nn do."""
    low, high = limits
    return (low is None or low <= 0) and (high is None or high >= 0)


def _key_lengths(part: Mask) -> Array | None:
    if isinstance(part, KeyPadding):
        return part.lengths
    return _prefix_lengths(part.keep) if isinstance(part, KeyMask) else None


def _query_lengths(part: Mask) -> Array | None:
    return _prefix_lengths(part.keep) if isinstance(part, QueryMask) else None


def _prefix_lengths(keep: Array) -> Array | None:
    """How many slots each row keeps, where it keeps the first ones and the data can be read; else None."""
    kept = peek(keep)
    if kept is None:
        return None
    lengths = kept.sum(1)
    return lengths if (kept == (np.arange(kept.shape[1]) < lengths[:, None])).all() else None
