"""Masks as the arguments and objects that JAX's own attention functions take."""

from __future__ import annotations

import functools
import operator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from maskattn import schedule
from maskattn._fields import peek
from maskattn._problems import Problems
from maskattn.masks import And, Mask, Or, check_mask, require_mask
from maskattn.masks.interop.bands import Band, band
from maskattn_jax.lower._binding import check
from maskattn_jax.lower._dense import allowed
from maskattn_jax.lower.words import in_words

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import MultiHeadMask

__all__ = ["to_dot_product_attention", "to_splash_mask"]


class DotProductKeywords(TypedDict, total=False):
    """Keywords of `jax.nn.dot_product_attention`."""

    is_causal: bool
    local_window_size: tuple[int, int]
    query_seq_lengths: Int[Array, " B"]
    key_value_seq_lengths: Int[Array, " B"]
    mask: Bool[Array, "#B #H #L #S"] | None


def to_dot_product_attention(
    mask: Mask, batch: int, heads: int, q_len: int, kv_len: int, *, empty_rows: Literal["error", "mean"] = "error"
) -> DotProductKeywords:
    """The mask as keywords of `jax.nn.dot_product_attention`.

    Bands around the diagonal become `is_causal` and `local_window_size`, lengths become `key_value_seq_lengths` and
    `query_seq_lengths` (a KeyMask or QueryMask whose data can be read now, too), whatever else `mask`, a bool array of
    rank 4 in which axes that the mask does not read have size 1.

    Args:
        mask: True = may attend.
        batch, heads, q_len, kv_len: the sizes it is used at.
        empty_rows: jax.nn gives a row that may attend to nothing the average of all values. "error" refuses a mask with
            such a row, "mean" accepts it. Rows beyond `query_seq_lengths` give 0, and are not counted.

    Raises:
        TypeError, ValueError: everything that jax.nn cannot express, or that is wrong, in one error.
    """
    problems = Problems("to_dot_product_attention")
    check_mask(problems, mask)
    problems.choice("empty_rows", empty_rows, ("error", "mean"))
    problems.raise_if_any()
    check(mask, batch, heads, q_len, kv_len)
    words = in_words(mask)
    keywords: dict[str, Any] = _band_keywords(words.limits, q_len, kv_len)
    for name, given in (("query_seq_lengths", words.q_lengths), ("key_value_seq_lengths", words.kv_lengths)):
        if given:
            least = functools.reduce(jnp.minimum, [jnp.asarray(each, jnp.int32) for each in given])
            keywords[name] = jnp.broadcast_to(least, (batch,))
    if words.rest:
        keywords["mask"] = allowed(functools.reduce(operator.and_, words.rest), batch, heads, q_len, kv_len)
    if empty_rows == "error":
        _refuse_empty_rows(mask, (batch, heads, q_len, kv_len), words.q_lengths)
    return cast(DotProductKeywords, keywords)


def to_splash_mask(mask: Mask, heads: int, q_len: int, kv_len: int) -> MultiHeadMask:
    """The mask as a `MultiHeadMask` of TPU Splash attention, one mask per head.

    Bands become its CausalMask, LocalMask and FullMask, `&` and `|` its own, whatever else a NumpyMask, an array
    [q_len, kv_len].

    Args:
        mask: True = may attend. Its data must be readable now, since Splash plans with them, and the same for every
            batch row (padding and documents go to the kernel as segment ids).
        heads, q_len, kv_len: ints, at least 1.

    Raises:
        TypeError, ValueError: everything that Splash cannot express, or that is wrong, in one error.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash

    problems = Problems("to_splash_mask")
    require_mask("to_splash_mask", mask)
    for name, size in (("heads", heads), ("q_len", q_len), ("kv_len", kv_len)):
        problems.integer(name, size, minimum=1)
    problems.raise_if_any()
    traced: list[Array] = []
    mask.map_data(lambda array: traced.append(array) if peek(array) is None else array)
    if traced:
        problems.value(f"{mask!r} has traced data: Splash plans with a mask whose data can be read now")
    for part in _reading_batch(mask):
        problems.value(f"{part!r} differs between batch rows: give padding and documents to the kernel as segment_ids")
    problems.raise_if_any()
    mask = mask.map_data(peek)
    rows = schedule.empty_rows(mask, 1, heads, q_len, kv_len)
    if rows.any():
        problems.value(f"{_count(rows)}: what Splash gives there is undefined")
    problems.raise_if_any()
    shape = (q_len, kv_len)
    per_head = "h" in mask.depends
    built = [_splash(splash, mask, h, heads, shape) for h in range(heads if per_head else 1)]
    return splash.MultiHeadMask(built if per_head else built * heads)


def _band_keywords(limits: Band, q_len: int, kv_len: int) -> dict[str, Any]:
    low, high = limits
    keywords: dict[str, Any] = {"is_causal": True} if high == 0 else {}
    if low is not None or high not in (None, 0):
        # jax.nn has no unbounded side: one as long as the sequence is
        keywords["local_window_size"] = (q_len if low is None else -low, kv_len if high is None else high)
    return keywords


def _refuse_empty_rows(mask: Mask, sizes: tuple[int, int, int, int], query_lengths: list[Array]) -> None:
    try:
        rows = schedule.empty_rows(mask, *sizes)
    except ValueError as error:
        raise ValueError(
            'to_dot_product_attention: empty_rows="error" cannot be checked where the data are traced: check outside '
            'jit, or use "mean"'
        ) from error
    for lengths in query_lengths:
        rows = rows & (np.arange(sizes[2]) < np.asarray(lengths)[:, None, None])
    if rows.any():
        raise ValueError(
            f"to_dot_product_attention: {_count(rows)}: jax.nn gives the average of all values there; "
            'empty_rows="mean" accepts that'
        )


def _count(rows: np.ndarray) -> str:
    first = tuple(int(i) for i in np.argwhere(rows)[0])
    return f"{int(rows.sum())} of {rows.size} rows may attend to no key, the first (batch, head, query) = {first}"


def _reading_batch(mask: Mask) -> list[Mask]:
    """The innermost parts that differ between batch rows."""
    if "b" not in mask.depends:
        return []
    reading = [part for child in mask.children() for part in _reading_batch(child)]
    return reading or [mask]


def _splash(splash: ModuleType, mask: Mask, head: int, heads: int, shape: tuple[int, int]) -> Any:
    limits = band(mask)
    if limits is not None:
        low, high = limits
        if low is None:
            return splash.FullMask(shape) if high is None else splash.CausalMask(shape, high)
        # Splash's windows lie on both sides of a shifted diagonal
        window = (-low, None) if high is None else (high - low, 0)
        return splash.LocalMask(shape, window, 0 if high is None else high)
    if isinstance(mask, (And, Or)):
        combine = splash.LogicalAnd if isinstance(mask, And) else splash.LogicalOr
        return functools.reduce(combine, [_splash(splash, part, head, heads, shape) for part in mask.parts])
    return splash.NumpyMask(mask.dense(*shape, 1, heads)[0, head])
