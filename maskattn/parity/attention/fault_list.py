"""The faults themselves: every one that has been met in real attention code, and that this library can have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from maskattn import biases, masks
from maskattn.attention import Call
from maskattn.parity.attention.case import Case
from maskattn.parity.attention.faults import Array, Fault, TwinArrays

Kernel = Callable[[Call], tuple[Any, Any]]


def on(kind: type[masks.Mask], change: Callable[[Any, Case], masks.Mask]) -> Callable[[masks.Mask, Case], masks.Mask]:
    """A change of one class of masks, wherever in an expression it stands."""
    return lambda mask, case: masks.rebuild(mask, lambda part: change(part, case) if isinstance(part, kind) else None)


def option(name: str, change: Callable[[Call], Any]) -> Callable[[Kernel, TwinArrays], Kernel]:
    """A kernel that runs with one argument of the call changed."""
    return lambda kernel, _: lambda call: kernel(replace(call, **{name: change(call)}))


def _mask_after_softmax(kernel: Kernel, framework: TwinArrays) -> Kernel:
    """softmax over everything, then weights times mask: the rows no longer sum to 1."""

    def attend(call: Call) -> tuple[Any, Any]:
        output, lse = kernel(call)
        _, full = kernel(replace(call, mask=None))
        return output * framework.exp(lse - full)[..., None], lse

    return attend


def _fill(number: float) -> Callable[[Kernel, TwinArrays], Kernel]:
    """Masked logits get `number` added in place of being forbidden: 0 is a bool mask added as a number."""

    def plant(kernel: Kernel, framework: TwinArrays) -> Kernel:
        def attend(call: Call) -> tuple[Any, Any]:
            return kernel(replace(call, mask=None, bias=framework.bind(biases.Additive(call.mask, number), call.query)))

        return attend

    return plant


def _dropout_before_softmax(kernel: Kernel, framework: TwinArrays) -> Kernel:
    """Logits are dropped, not weights: what is left sums to 1."""

    def attend(call: Call) -> tuple[Any, Any]:
        kept = masks.Dense(framework.dropout.dense(call.dropout, call.sizes))
        return kernel(replace(call, mask=kept if call.mask is None else call.mask & kept, dropout_rate=0.0))

    return attend


def _dropout_unscaled(kernel: Kernel, _: TwinArrays) -> Kernel:
    """Kept weights are not divided by 1 - rate."""

    def attend(call: Call) -> tuple[Any, Any]:
        output, lse = kernel(call)
        return output * (1 - call.dropout_rate), lse

    return attend


def _tiled(kernel: Kernel, framework: TwinArrays) -> Kernel:
    """Query head h reads kv head h % K, not h // (H // K)."""

    def attend(call: Call) -> tuple[Any, Any]:
        index = framework.arrays.arange(call.query.shape[2]) % call.key.shape[2]
        return kernel(replace(call, key=call.key[:, :, index], value=call.value[:, :, index]))

    return attend


def _exchanged(first: str, second: str) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """A module's weights with two projections exchanged."""

    def change(weights: dict[str, Array]) -> dict[str, Array]:
        swap = {f"{first}.{part}": f"{second}.{part}" for part in ("kernel", "bias")}
        swap |= {there: here for here, there in swap.items()}
        return {name: weights[swap.get(name, name)] for name in weights}

    return change


def _changed(name: str, change: Callable[[Array], Array]) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """A module's weights with one array changed."""
    return lambda weights: {**weights, name: np.ascontiguousarray(change(weights[name]))}


def _one_ulp(results: dict[str, Array]) -> dict[str, Array]:
    """One number of the output one ulp larger."""
    output = results["output"].copy()
    output.flat[output.size // 2] = np.nextafter(output.flat[output.size // 2], np.float32(np.inf))
    return {**results, "output": output}


def _negative_zero(results: dict[str, Array]) -> dict[str, Array]:
    """Zeros of the output with the other sign."""
    return {**results, "output": np.where(results["output"] == 0, -results["output"], results["output"])}


def _grid_shift(mask: Any, case: Case) -> masks.Mask:
    """The roll in the other direction: by window - shift."""
    shift = tuple((w - s) % w for w, s in zip(mask.window, mask.shift, strict=True))
    return replace(mask, shift=shift)


_CAUSAL = ("Causal/square/float32/0",)
_WINDOW = ("SlidingWindow/square/float32/0",)
_PLAIN = ("options/plain/float32",)
_DROPOUT = ("options/dropout/float32",)
_SELF = ("MultiHeadAttention/self/float32",)
_EQUAL_HEADS = ("MultiHeadAttention/equal-heads/float32",)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "causal-late", "causal one key too far", _CAUSAL, mask=on(masks.Causal, lambda m, c: masks.Causal(m.offset + 1))
    ),
    Fault(
        "causal-early", "causal one key short", _CAUSAL, mask=on(masks.Causal, lambda m, c: masks.Causal(m.offset - 1))
    ),
    Fault(
        "causal-end",
        "causal aligned at the end where L differs from S",
        ("Causal/wide/float32/0", "Causal/tall/float32/0"),
        mask=on(masks.Causal, lambda m, c: masks.Causal.end_aligned(c.shape.q_len, c.shape.kv_len)),
    ),
    Fault("polarity", "True taken for masked", ("KeyPadding/square/float32/0",), mask=lambda m, c: ~m),
    Fault(
        "window-wide",
        "window one key too wide",
        _WINDOW,
        mask=on(masks.SlidingWindow, lambda m, c: masks.SlidingWindow(m.left + 1, m.right)),
    ),
    Fault(
        "window-narrow",
        "window one key too narrow",
        ("SlidingWindow/square/float32/2",),
        mask=on(masks.SlidingWindow, lambda m, c: masks.SlidingWindow(m.left - 1, m.right)),
    ),
    Fault(
        "swin-roll",
        "Swin's windows rolled in the other direction",
        ("ShiftedWindow/square/float32/0",),
        mask=on(masks.ShiftedWindow, _grid_shift),
    ),
    Fault(
        "segment-zero",
        "segment id 0 taken for padding",
        ("Segments/square/float32/0",),
        mask=on(masks.Segments, lambda m, c: masks.Segments(np.where(np.asarray(m.q_ids) == 0, -1, m.q_ids))),
    ),
    Fault("mask-after-softmax", "weights masked after they were normalised", _PLAIN, kernel=_mask_after_softmax),
    Fault("fill-zero", "masked logits get 0", _PLAIN, kernel=_fill(0.0)),
    Fault("fill-1e4", "masked logits get -1e4, so an empty row attends to all", _PLAIN, kernel=_fill(-1e4)),
    Fault(
        "empty-mean",
        "an empty row is the average of the values",
        _PLAIN,
        kernel=option("empty_rows", lambda call: "mean"),
    ),
    Fault("scale-missing", "no scale", _PLAIN, kernel=option("scale", lambda call: 1.0)),
    Fault("scale-twice", "scale applied twice", _PLAIN, kernel=option("scale", lambda call: call.scale**2)),
    Fault(
        "scale-embed",
        "scale by the embedding's width, not the head's",
        _PLAIN,
        kernel=option("scale", lambda call: float(call.query.shape[2] * call.query.shape[3]) ** -0.5),
    ),
    Fault(
        "softcap-dropped", "softcap ignored", ("options/softcap/float32",), kernel=option("softcap", lambda call: None)
    ),
    Fault(
        "bias-dropped", "attention bias ignored", ("options/bias/float32",), kernel=option("bias", lambda call: None)
    ),
    Fault("sinks-dropped", "sinks ignored", ("options/sinks/float32",), kernel=option("sinks", lambda call: None)),
    Fault("dropout-before", "dropout before the softmax", _DROPOUT, kernel=_dropout_before_softmax),
    Fault("dropout-unscaled", "kept weights not divided by 1 - rate", _DROPOUT, kernel=_dropout_unscaled),
    Fault(
        "dropout-shared",
        "one draw for all heads and rows of the batch",
        _DROPOUT,
        kernel=option("dropout_broadcast", lambda call: ("batch", "heads")),
    ),
    Fault(
        "dropout-inverted",
        "kept and dropped exchanged",
        _DROPOUT,
        internals={"dense": lambda _, kept: lambda *given: ~kept(*given)},
    ),
    Fault(
        "key-twice",
        "one key used for the draws of weights and output",
        ("MultiHeadAttention/dropout/float32",),
        module={"module_keys": lambda _, kept: lambda key: kept(key)[:1] * 2},
    ),
    Fault("heads-tiled", "kv heads tiled, not repeated", _PLAIN, kernel=_tiled),
    Fault(
        "float16-overflow",
        "q.k rounded to float16",
        ("options/overflow/float16",),
        internals={"pair_products": lambda f, kept: lambda a, b, precision: f.through_float16(kept(a, b, precision))},
    ),
    Fault(
        "nan-leak",
        "0 * NaN reaches the output",
        ("planted/nan/padding/float32",),
        internals={"weighted_sum": lambda f, kept: f.matmul},
    ),
    Fault("qk-exchanged", "query and key projections exchanged", _EQUAL_HEADS, weights=_exchanged("query", "key")),
    Fault("qv-exchanged", "query and value projections exchanged", _EQUAL_HEADS, weights=_exchanged("query", "value")),
    Fault("kv-exchanged", "key and value projections exchanged", _EQUAL_HEADS, weights=_exchanged("key", "value")),
    Fault(
        "kernel-transposed",
        "query kernel read transposed",
        _SELF,
        weights=_changed("query.kernel", lambda w: w.reshape(w.shape[0], -1).T.reshape(w.shape)),
    ),
    Fault(
        "heads-swapped",
        "query kernel read as [D, H], not [H, D]",
        _SELF,
        weights=_changed("query.kernel", lambda w: w.reshape(w.shape[0], w.shape[2], w.shape[1]).swapaxes(1, 2)),
    ),
    Fault("query-bias-dropped", "query bias ignored", _SELF, weights=_changed("query.bias", np.zeros_like)),
    Fault("value-bias-dropped", "value bias ignored", _SELF, weights=_changed("value.bias", np.zeros_like)),
    Fault("out-bias-dropped", "output bias ignored", _SELF, weights=_changed("out.bias", np.zeros_like)),
    Fault("one-ulp", "one number of the exact output one ulp off", _PLAIN, results=_one_ulp, uses="exact"),
    Fault("negative-zero", "an empty row gives -0 in exact", _PLAIN, results=_negative_zero, uses="exact"),
)
