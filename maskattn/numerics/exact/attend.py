"""Exact masked attention, forward and backward, for any framework: the oracle's formulas on pairs.

Arrays are ``[batch, length, heads, head_dim]`` in the inputs' own type; ``allowed`` (True = may attend), ``bias`` and
``keep`` (True = not dropped) have rank 4 and broadcast to [B, H, L, S]; ``sinks`` is [H]. Inside, heads are grouped by
the key/value head they read: [B, K, G * L, ...]. A dropped weight is exactly 0, whatever it would meet.

A non-finite number that a query may reach makes its result NaN; one that it may not reach changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from maskattn._arithmetic import constant, is_number
from maskattn.numerics.exact import bits, elementary, pair
from maskattn.numerics.exact._ops import Array, Ops
from maskattn.numerics.exact.pair import Pair


class Options(NamedTuple):
    """What is static: the factor of the logits, the softcap, the policy for empty rows ("zero", "mean" or "nan"), and
    the share of the weights that dropout keeps, by which it divides them.
    """

    scale: float
    softcap: float | None = None
    empty_rows: str = "zero"
    kept: float = 1.0


class Arrays(NamedTuple):
    """What attention is computed of, in the inputs' own type; the last four may be None."""

    query: Array
    key: Array
    value: Array
    allowed: Array | None
    bias: Array | None
    sinks: Array | None
    keep: Array | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, H, L, S]."""
        return self.query.shape[0], self.query.shape[2], self.query.shape[1], self.key.shape[1]


class _Inputs(NamedTuple):
    """Widened, grouped, and cleaned of non-finite values, whose places the second half remembers."""

    query: Array  # [B, K, G * L, D]
    key: Array  # [B, K, S, D]
    value: Array  # [B, K, S, Dv]
    bad_query: Array  # bool [B, K, G * L, 1]
    bad_key: Array  # bool [B, K, S, 1]
    bad_value: Array  # bool [B, K, S, Dv]


class _Softmax(NamedTuple):
    """Unnormalised weights [B, K, G * L, S] and their row-wise quantities [B, K, G * L, 1]."""

    weights: Pair  # NaN in the allowed places of a row that reaches a non-finite logit
    total: Pair  # what to divide them by
    highest: Pair  # the logit they are relative to
    slope: Pair | None  # the softcap's derivative
    allowed: Array
    empty: Array
    sink: Pair | None  # the sink's unnormalised weight


def _cleaned(ops: Ops, x: Array) -> tuple[Array, Array]:
    finite = ops.isfinite(x)
    return ops.where(finite, x, 0.0), ~finite


def _by_kv_head(ops: Ops, x: Array, kv_heads: int) -> Array:
    """[B, L, H, D] -> [B, K, G * L, D], widened."""
    x = ops.moveaxis(bits.widen(ops, x), 2, 1)
    return ops.reshape(x, (x.shape[0], kv_heads, (x.shape[1] // max(kv_heads, 1)) * x.shape[2], x.shape[3]))


def _by_head(ops: Ops, x: Array, shape: tuple[int, ...]) -> Array:
    """[B, K, G * L, N] -> [B, L, H, N] for ``shape`` = (B, H, L, ...)."""
    return ops.moveaxis(ops.reshape(x, (*shape[:3], x.shape[-1])), 1, 2)


def _inputs(ops: Ops, given: Arrays) -> _Inputs:
    kv_heads = given.key.shape[2]
    q, bad_q = _cleaned(ops, _by_kv_head(ops, given.query, kv_heads))
    k, bad_k = _cleaned(ops, _by_kv_head(ops, given.key, kv_heads))
    v, bad_v = _cleaned(ops, _by_kv_head(ops, given.value, kv_heads))
    return _Inputs(q, k, v, ops.any(bad_q, -1), ops.any(bad_k, -1), bad_v)


def _spread(ops: Ops, x: Array, shape: tuple[int, ...], grouped: tuple[int, ...]) -> Array:
    return ops.reshape(ops.broadcast(x, shape), grouped)


def _softmax(ops: Ops, x: _Inputs, given: Arrays, dtype: str, options: Options) -> _Softmax:
    shape, allowed, bias, sinks = given.shape, given.allowed, given.bias, given.sinks
    q_terms = pair.input_pieces(ops, x.query, dtype)
    k_terms = pair.input_pieces(ops, ops.moveaxis(x.key, -1, -2), dtype)
    logits = pair.scaled(ops, pair.matmul(ops, q_terms, k_terms), options.scale)
    grouped = logits.hi.shape
    slope = None
    if options.softcap is not None:
        cap = pair.exactly(constant(options.softcap, logits.hi))
        value, slope = elementary.tanh(ops, pair.divide(ops, logits, cap))
        logits = pair.scaled(ops, value, options.softcap)
    bad = x.bad_query | ops.moveaxis(x.bad_key, -1, -2)
    may = bad | ~bad
    if allowed is not None:
        may = may & _spread(ops, allowed, shape, grouped)
    if bias is not None:
        b = _spread(ops, bits.widen(ops, bias), shape, grouped)
        may = may & (b != -float("inf"))
        b, bad_bias = _cleaned(ops, b)
        bad = bad | bad_bias
        logits = pair.add(logits, pair.exactly(b))
    bad = may & (bad | ~ops.isfinite(logits.hi))
    live = may & ~bad
    logits = pair.where(ops, live, logits, 0.0)
    lowest = -float("inf")
    hi = ops.max(ops.where(live, logits.hi, lowest))
    sink = None
    if sinks is not None:
        sink = ops.broadcast(bits.widen(ops, sinks)[None, :, None, None], (*shape[:3], 1))
        sink = ops.reshape(sink, (*grouped[:3], 1))
        hi = ops.where(sink > hi, sink, hi)
        hi = ops.where(is_number(sink), hi, bits.NAN)
    hi = ops.where(hi == lowest, 0.0, hi)
    # the low half of the largest logit too, so that the largest weight is exactly 1 and a lone key's gradient exactly 0
    lo = ops.max(ops.where(live & (logits.hi == hi), logits.lo, lowest))
    if sink is not None:
        lo = ops.where((sink == hi) & (lo < 0.0), 0.0, lo)
    highest = Pair(hi, ops.where(lo == lowest, 0.0, lo))
    down = pair.negative(highest)
    weights = elementary.exp(ops, pair.add(pair.where(ops, live, logits, float("nan")), down))
    weights = pair.where(ops, live, weights, 0.0)
    weights = Pair(ops.where(ops.any(bad, -1) & may, bits.NAN, weights.hi), weights.lo)
    total = pair.total(ops, weights, -1)
    empty = ~ops.any(may, -1)
    sink_weight = None
    if sink is not None:
        sink_weight = elementary.exp(ops, pair.add(pair.exactly(sink), down))
        total = pair.add(total, sink_weight)
        empty = empty & ~empty
    total = pair.where(ops, ~empty, total, 1.0)
    return _Softmax(weights, total, highest, slope, may, empty, sink_weight)


def _value_weights(ops: Ops, s: _Softmax, keep: Array | None, options: Options) -> tuple[Pair, Pair, Array]:
    """The weights of the values, what to divide by, and which pairs meet: under "mean" an empty row weighs all keys
    alike. `keep` is grouped.
    """
    weights, total, reach = s.weights, s.total, s.allowed
    if options.empty_rows == "mean":
        keys = float(max(s.allowed.shape[-1], 1))
        weights, total = pair.where(ops, ~s.empty, weights, 1.0), pair.where(ops, ~s.empty, total, keys)
        reach = reach | s.empty
    if keep is not None:
        weights, total = pair.where(ops, keep, weights, 0.0), pair.scaled(ops, total, options.kept)
        reach = reach & keep
    return weights, total, reach


def _poisoned(ops: Ops, x: Pair, reach: Array, bad: Array) -> Pair:
    """``x`` with NaN wherever a non-finite value is within reach: ``reach`` [.., M, C], ``bad`` [.., C, N]."""
    return Pair(ops.where(ops.meet(reach, bad), bits.NAN, x.hi), x.lo)


def forward(ops: Ops, given: Arrays, options: Options) -> tuple[Array, Array]:
    """``output`` [B, L, H, Dv] in the inputs' type and ``lse`` [B, L, H] in float32 (float64 for float64 inputs)."""
    dtype, shape = ops.dtype(given.query), given.shape
    x = _inputs(ops, given)
    s = _softmax(ops, x, given, dtype, options)
    keep = None if given.keep is None else _spread(ops, given.keep, shape, s.weights.hi.shape)
    weights, total, reach = _value_weights(ops, s, keep, options)
    summed = pair.matmul(ops, pair.pieces(ops, weights, dtype), pair.input_pieces(ops, x.value, dtype))
    out = _poisoned(ops, pair.divide(ops, summed, total), reach, x.bad_value)
    if options.empty_rows != "mean":
        out = pair.where(ops, ~s.empty, out, bits.NAN if options.empty_rows == "nan" else 0.0)
    lse = pair.add(s.highest, elementary.log(ops, s.total))
    lse = pair.where(ops, ~s.empty, lse, -float("inf"))
    output = bits.narrow(ops, _by_head(ops, out.hi, shape), _by_head(ops, out.lo, shape), dtype)
    wide = "float64" if dtype == "float64" else "float32"
    return output, bits.narrow(ops, _by_head(ops, lse.hi, shape), _by_head(ops, lse.lo, shape), wide)[..., 0]


def backward(
    ops: Ops, given: Arrays, d_output: Array, d_lse: Array | None, options: Options
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """Gradients of query, key, value, bias and sinks, in their types and shapes (None where the input is None)."""
    dtype, shape, kv_heads = ops.dtype(given.query), given.shape, given.key.shape[2]
    x = _inputs(ops, given)
    s = _softmax(ops, x, given, dtype, options)
    d_out, bad_d_out = _cleaned(ops, _by_kv_head(ops, d_output, kv_heads))
    if options.empty_rows != "mean":
        bad_d_out = bad_d_out & ~s.empty
    d_out_terms = pair.input_pieces(ops, d_out, dtype)

    keep = None if given.keep is None else _spread(ops, given.keep, shape, s.weights.hi.shape)
    weights, total, reach = _value_weights(ops, s, keep, options)
    shares = pair.where(ops, reach, pair.divide(ops, weights, total), 0.0)
    share_terms = [ops.moveaxis(t, -1, -2) for t in pair.pieces(ops, shares, dtype)]
    d_value = _poisoned(ops, pair.matmul(ops, share_terms, d_out_terms), ops.moveaxis(reach, -1, -2), bad_d_out)

    if keep is not None:
        shares = pair.divide(ops, s.weights, s.total)
    shares = pair.where(ops, s.allowed, shares, 0.0)
    v_terms = pair.input_pieces(ops, ops.moveaxis(x.value, -1, -2), dtype)
    d_shares = pair.matmul(ops, d_out_terms, v_terms)
    met = s.allowed if keep is None else s.allowed & keep
    bad = met & (ops.any(bad_d_out, -1) | ops.moveaxis(ops.any(x.bad_value, -1), -1, -2) | ~ops.isfinite(d_shares.hi))
    d_shares = pair.where(ops, met & ~bad, d_shares, 0.0)
    if keep is not None:
        kept = pair.exactly(constant(options.kept, d_shares.hi))
        d_shares = pair.divide(ops, d_shares, kept)
    # over p dp, not over the output: a row with one key then has a gradient of exactly 0
    mean = pair.divide(ops, pair.total(ops, pair.multiply(ops, s.weights, d_shares), -1), s.total)
    rest = pair.negative(mean)
    if d_lse is not None:
        rows = _by_kv_head(ops, d_lse[..., None], kv_heads)
        rest = pair.add(rest, pair.exactly(rows))
    rest = Pair(ops.where(ops.any(bad, -1), bits.NAN, rest.hi), rest.lo)
    d_logits = pair.multiply(ops, shares, pair.add(d_shares, rest))
    d_logits = pair.where(ops, s.allowed, d_logits, 0.0)
    d_bias = None if given.bias is None else _d_bias(ops, d_logits, given.bias, shape)
    d_sinks = None
    if given.sinks is not None and s.sink is not None:
        d_sinks = _d_sinks(ops, pair.divide(ops, s.sink, s.total), rest, given.sinks, shape)

    if s.slope is not None:
        d_logits = pair.multiply(ops, d_logits, pair.where(ops, s.allowed, s.slope, 0.0))
    terms = pair.pieces(ops, d_logits, dtype)
    d_query = pair.matmul(ops, terms, pair.input_pieces(ops, x.key, dtype))
    d_key = pair.matmul(ops, [ops.moveaxis(t, -1, -2) for t in terms], pair.input_pieces(ops, x.query, dtype))
    d_query, d_key = pair.scaled(ops, d_query, options.scale), pair.scaled(ops, d_key, options.scale)
    d_query = pair.where(ops, ~s.empty, d_query, 0.0)
    kv_shape = (shape[0], kv_heads, shape[3])
    return (
        bits.narrow(ops, _by_head(ops, d_query.hi, shape), _by_head(ops, d_query.lo, shape), dtype),
        bits.narrow(ops, _by_head(ops, d_key.hi, kv_shape), _by_head(ops, d_key.lo, kv_shape), dtype),
        bits.narrow(ops, _by_head(ops, d_value.hi, kv_shape), _by_head(ops, d_value.lo, kv_shape), dtype),
        d_bias,
        d_sinks,
    )


def _d_bias(ops: Ops, d_logits: Pair, bias: Array, shape: tuple[int, ...]) -> Array:
    """The logits' gradient summed over the axes along which the bias was broadcast, first axis first."""
    x = pair.total_to(ops, Pair(ops.reshape(d_logits.hi, shape), ops.reshape(d_logits.lo, shape)), bias.shape)
    return bits.narrow(ops, x.hi, x.lo, ops.dtype(bias))


def _d_sinks(ops: Ops, share: Pair, rest: Pair, sinks: Array, shape: tuple[int, ...]) -> Array:
    """The sinks' gradient: share * (dlse - sum p dp), summed over the batch, then over queries."""
    x = pair.multiply(ops, share, rest)
    x = Pair(ops.reshape(x.hi, shape[:3]), ops.reshape(x.lo, shape[:3]))
    x = pair.total(ops, pair.total(ops, x, 0), 2)
    return bits.narrow(ops, x.hi[0, :, 0], x.lo[0, :, 0], ops.dtype(sinks))
