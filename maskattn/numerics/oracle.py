"""The judge: masked multi-head attention in float64 (or longdouble), forward and backward, in plain NumPy.

Everything else in the library is compared with this file, so it is written to be checked by eye against the formulas:

    x = softcap(scale * q.k) + bias        p = exp(x - max x) / sum exp(x - max x)        out = p v

and, for a cotangent dO of the output and dlse of the log-sum-exp, with dp = dO.v,

    ds = p (dp - sum p dp + dlse)          dq = scale ds k     dk = scale ds^T q     dv = p^T dO     dbias = ds

(Vaswani et al. 2017, eq. 1; Dao et al. 2022, appendix B.4, with softcap's derivative where it is used). Shapes:
``query`` [B, L, H, D], ``key`` [B, S, K, D], ``value`` [B, S, K, Dv]; head h reads key/value head ``h // (H // K)``;
``allowed`` (True = may attend) and ``bias`` broadcast to [B, H, L, S]; ``sinks`` [H].

Dropout puts keep / (1 - rate) between p and v: out = (p keep / (1 - rate)) v, dv = (p keep / (1 - rate))^T dO and
dp = keep / (1 - rate) dO.v (Srivastava et al. 2014, section 10, scaled while training). ``keep`` (bool) broadcasts to
[B, H, L, S].

What a query may not attend to never reaches its result: a forbidden NaN is as good as a forbidden 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from maskattn.typing import EmptyRows, NumPyArray as Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class Forward(NamedTuple):
    """``output`` [B, L, H, Dv] and the log-sum-exp of the logits ``lse`` [B, L, H] (-inf for an empty row)."""

    output: Array
    lse: Array


class Gradients(NamedTuple):
    """Gradients with the shapes of their inputs; None where the input was None."""

    query: Array
    key: Array
    value: Array
    bias: Array | None
    sinks: Array | None


class Magnitudes(NamedTuple):
    """The formulas with every factor and difference replaced by its absolute value, entry by entry, and ``logit``, the
    largest finite absolute logit after bias. Error limits are stated as multiples of these."""

    logit: float
    output: Array
    lse: Array
    query: Array | None
    key: Array | None
    value: Array | None
    bias: Array | None
    sinks: Array | None


class Options(TypedDict, total=False):
    """What `attention`, `backward` and `magnitudes` take besides the arrays: see `attention`."""

    bias: Float[Array, "#B #H #L #S"] | None
    scale: float | None
    softcap: float | None
    sinks: Float[Array, " H"] | None
    empty_rows: EmptyRows
    keep: Bool[Array, "#B #H L S"] | None
    dropout_rate: float
    dtype: DTypeLike


class _Arguments(NamedTuple):
    """What all three functions here take: the arrays of the formulas, and what they are computed with."""

    query: Array
    key: Array
    value: Array
    allowed: Array | None = None
    bias: Array | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Array | None = None
    empty_rows: EmptyRows = "zero"
    keep: Array | None = None
    dropout_rate: float = 0.0
    dtype: DTypeLike = np.float64

    @property
    def factor(self) -> float:
        """``scale``, or 1 / sqrt(D)."""
        return 1 / math.sqrt(np.shape(self.query)[3]) if self.scale is None else self.scale

    def heads_first(self) -> tuple[Array, Array, Array]:
        """query, key and value [B, H, length, D]."""
        groups = np.shape(self.query)[2] // max(np.shape(self.key)[2], 1)
        keys, values = (_heads(x, self.dtype, groups) for x in (self.key, self.value))
        return _heads(self.query, self.dtype), keys, values

    def dropped(self, weights: Array) -> Array:
        """Weights, or their gradients, times keep / (1 - rate); a dropped one is exactly 0."""
        return weights if self.keep is None else np.where(self.keep, weights / (1 - self.dropout_rate), 0)


class _Weights(NamedTuple):
    """Head-major intermediates: [B, H, L, S] but for the row-wise ``lse``, ``sink`` and ``empty`` [B, H, L, 1]."""

    logits: Array
    p: Array  # softmax weights; an empty row is 0, or 1 / S under "mean"
    live: Array  # p where gradients flow: 0 in every empty row
    slope: Array | None  # tanh(scale q.k / softcap)
    allowed: Array
    empty: Array
    sink: Array | None  # the sink's share of the softmax
    lse: Array


def _clean(x: Array) -> Array:
    return np.where(np.isfinite(x), x, 0)


def _weighted(w: Array, x: Array) -> Array:
    """``w @ x`` in which a weight of exactly 0 contributes exactly 0, whatever it meets."""
    out = w @ _clean(x)
    finite = np.isfinite(x)
    if finite.all():
        return out
    met = (w != 0).astype(np.float64) @ (~finite).astype(np.float64) > 0
    return np.where(met, np.nan, out)


def _heads(x: Array, dtype: DTypeLike, groups: int = 1) -> Array:
    """[B, length, K, D] -> [B, K * groups, length, D], each head repeated ``groups`` times in a row."""
    return np.repeat(np.asarray(x).astype(dtype).transpose(0, 2, 1, 3), groups, axis=1)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sums ``x`` over the axes along which an array of ``shape`` was broadcast to it."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 and x.shape[i] != 1), keepdims=True)


def _weights(given: _Arguments, q: Array, k: Array) -> _Weights:
    allowed, bias, softcap, sinks = given.allowed, given.bias, given.softcap, given.sinks
    shape = (*q.shape[:3], k.shape[2])
    logits = given.factor * (q @ k.swapaxes(-1, -2))
    slope = None
    if softcap is not None:
        slope = np.tanh(logits / softcap)
        logits = softcap * slope
    may: Array = np.broadcast_to(np.asarray(True if allowed is None else allowed, bool), shape)
    if bias is not None:
        b = np.asarray(bias).astype(q.dtype)
        may = may & (b != -np.inf)
        logits = logits + b
    logits = np.where(may, logits, -np.inf)
    highest = logits.max(axis=-1, keepdims=True, initial=-np.inf)
    sink = None if sinks is None else np.asarray(sinks).astype(q.dtype)[None, :, None, None]
    empty: Array = np.asarray(~may.any(axis=-1, keepdims=True))
    if sink is not None:
        highest = np.maximum(highest, sink)
        empty = np.zeros_like(empty)
    shift = np.where(np.isneginf(highest), 0, highest)
    e = np.where(may, np.exp(logits - shift), 0)
    total = e.sum(axis=-1, keepdims=True)
    sink_e = None if sink is None else np.exp(sink - shift)
    if sink_e is not None:
        total = total + sink_e
    live = e / np.where(empty, 1, total)
    p = live
    if given.empty_rows == "mean" and shape[3]:
        p = np.where(empty, np.ones((), q.dtype) / shape[3], live)
    lse = np.where(empty, -np.inf, shift + np.log(np.where(empty, 1, total)))
    return _Weights(logits, p, live, slope, may, empty, None if sink_e is None else sink_e / total, lse)


def attention(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K Dv"],
    allowed: Bool[Array, "#B #H #L #S"] | None = None,
    **options: Unpack[Options],
) -> Forward:
    """Masked attention. ``allowed``: bool, True = may attend.

    The options, here and below: ``bias``, ``scale``, ``softcap``, ``sinks``, ``keep``, ``dropout_rate``; ``empty_rows``
    as in ``maskattn_torch.attention``, without ``"error"``; ``dtype``: float64, or np.longdouble where the judge must
    be finer than what it judges.
    """
    given = _Arguments(query, key, value, allowed, **options)
    q, k, v = given.heads_first()
    with np.errstate(all="ignore"):
        w = _weights(given, q, k)
        out = _weighted(given.dropped(w.p), v)
        if given.empty_rows != "mean":
            out = np.where(w.empty, np.nan if given.empty_rows == "nan" else 0.0, out)
    return Forward(out.transpose(0, 2, 1, 3), w.lse[..., 0].transpose(0, 2, 1))


def backward(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K Dv"],
    allowed: Bool[Array, "#B #H #L #S"] | None = None,
    *,
    d_output: Float[Array, "B L H Dv"],
    d_lse: Float[Array, "B L H"] | None = None,
    **options: Unpack[Options],
) -> Gradients:
    """Gradients of ``sum(output * d_output) + sum(lse * d_lse)``: ``d_output`` [B, L, H, Dv], ``d_lse`` [B, L, H]."""
    given = _Arguments(query, key, value, allowed, **options)
    return _backward(given, d_output, d_lse, lambda x: x, np.subtract)[0]


def _backward(
    given: _Arguments,
    d_output: Array,
    d_lse: Array | None,
    size: Callable[[Array], Array],
    minus: Callable[[ArrayLike, ArrayLike], Array],
) -> tuple[Gradients, _Weights]:
    """The backward pass, and with ``size=abs`` and ``minus=add`` its magnitudes: one text, so that they cannot part."""
    q, k, v = given.heads_first()
    batch, heads, _, _ = q.shape
    kv_heads = np.shape(given.key)[2]

    def sum_groups(x: Array) -> Array:
        """[B, H, S, D] -> [B, S, K, D]"""
        return x.reshape(batch, kv_heads, heads // max(kv_heads, 1), *x.shape[2:]).sum(axis=2).transpose(0, 2, 1, 3)

    with np.errstate(all="ignore"):
        w = _weights(given, q, k)
        d_o = size(_heads(d_output, given.dtype))
        q, k, v, scale = size(q), size(k), size(v), float(size(np.asarray(given.factor)))
        d_o_kept = d_o if given.empty_rows == "mean" else np.where(w.empty, 0, d_o)
        d_value = _weighted(given.dropped(w.p).swapaxes(-1, -2), d_o_kept)
        dp = given.dropped(np.where(w.live != 0, d_o @ v.swapaxes(-1, -2), 0))
        delta = (w.live * dp).sum(axis=-1, keepdims=True)
        d_row = (
            np.zeros_like(delta)
            if d_lse is None
            else size(np.asarray(d_lse).astype(given.dtype).transpose(0, 2, 1)[..., None])
        )
        inner = minus(dp, delta) + d_row
        ds = np.where(w.live != 0, w.live * inner, 0)
        draw = ds if w.slope is None else ds * minus(1, w.slope * w.slope)
        d_query = scale * _weighted(draw, k)
        d_key = scale * _weighted(draw.swapaxes(-1, -2), q)
        d_bias = None if given.bias is None else _sum_to(ds, np.shape(given.bias))
        d_sinks = None if w.sink is None else (w.sink * (minus(0, delta) + d_row)).sum(axis=(0, 2, 3))
    return Gradients(d_query.transpose(0, 2, 1, 3), sum_groups(d_key), sum_groups(d_value), d_bias, d_sinks), w


def magnitudes(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B S K D"],
    value: Float[Array, "B S K Dv"],
    allowed: Bool[Array, "#B #H #L #S"] | None = None,
    *,
    d_output: Float[Array, "B L H Dv"] | None = None,
    d_lse: Float[Array, "B L H"] | None = None,
    **options: Unpack[Options],
) -> Magnitudes:
    """What errors are measured against; gradients' magnitudes are None where ``d_output`` is None.

    A forbidden pair has no magnitude. For the log-sum-exp it is |max| + |log sum| + 1: the logarithm turns the relative
    error of its argument into an absolute one.
    """
    given = _Arguments(query, key, value, allowed, **options)
    d_o = np.zeros((*np.shape(query)[:3], np.shape(value)[3])) if d_output is None else d_output
    grads, w = _backward(given, d_o, d_lse, np.abs, np.add)
    with np.errstate(all="ignore"):
        output = _weighted(given.dropped(w.p), np.abs(given.heads_first()[2])).transpose(0, 2, 1, 3)
        highest = w.logits.max(axis=-1, initial=-np.inf)
        lse = np.where(
            w.empty[..., 0], 0, np.abs(_clean(highest)) + np.abs(_clean(w.lse[..., 0] - _clean(highest))) + 1
        )
    largest = float(np.abs(_clean(w.logits)).max(initial=0.0))
    if d_output is None:
        grads = Gradients(None, None, None, None, None)  # type: ignore[arg-type]
    return Magnitudes(largest, output, lse.transpose(0, 2, 1), *grads)
