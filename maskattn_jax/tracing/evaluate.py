"""Primitives of JAX by NumPy, in float64: a program that is run once, operation by operation, compiles nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maskattn.typing import NumPyArray

_ONE: Mapping[str, Callable[[NumPyArray], NumPyArray]] = {
    "neg": np.negative,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "square": np.square,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "is_finite": np.isfinite,
    "copy": np.array,
    "copy_p": np.array,
    "stop_gradient": np.array,
    "reduce_precision": np.array,
}
_TWO: Mapping[str, Callable[[NumPyArray, NumPyArray], NumPyArray]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "atan2": np.arctan2,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_REDUCED: Mapping[str, Callable[..., NumPyArray]] = {
    "reduce_sum": np.sum,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_and": np.all,
    "reduce_or": np.any,
}


def evaluate(name: str, args: Sequence[NumPyArray], params: Mapping[str, Any]) -> list[NumPyArray] | None:
    """The results of a primitive; None where it is left to XLA.

    Args:
        name: of the primitive. args: its operands. params: as JAX calls them.
    """
    if any(one.dtype.kind not in "fiub" or one.dtype.name == "bfloat16" for one in args):
        return None
    with np.errstate(all="ignore"):
        found = _evaluate(name, args, params)
    if found is None:
        return None
    several = found if isinstance(found, list) else [found]
    return [np.asarray(one) for one in several]


def _evaluate(name: str, args: Sequence[NumPyArray], params: Mapping[str, Any]) -> NumPyArray | list[NumPyArray] | None:
    x = args[0] if args else np.zeros(())
    if name in _ONE and x.dtype.kind == "f":
        return _ONE[name](x)
    if name in _TWO and (
        x.dtype.kind in "fb" or name in ("add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge", "max", "min")
    ):
        return _TWO[name](x, args[1]).astype(np.result_type(*args) if name not in _TRUTHS else bool)
    if name in _REDUCED:
        kept = x.dtype if name in ("reduce_sum", "reduce_prod") else None
        return _REDUCED[name](x, axis=tuple(params["axes"]), **({"dtype": kept} if kept else {}))
    match name:
        case "not" if x.dtype.kind == "b":
            return np.logical_not(x)
        case "integer_pow" if x.dtype.kind == "f":
            return x ** params["y"]
        case "convert_element_type" if params["new_dtype"] != x.dtype:
            return _converted(x, np.dtype(params["new_dtype"]))
        case "convert_element_type":
            return x.copy()
        case "reshape":
            return x.reshape(params["new_sizes"]).copy()
        case "transpose":
            return x.transpose(params["permutation"]).copy()
        case "squeeze":
            return np.squeeze(x, tuple(params["dimensions"])).copy()
        case "expand_dims":
            return np.expand_dims(x, tuple(params["dimensions"])).copy()
        case "rev":
            return np.flip(x, tuple(params["dimensions"])).copy()
        case "slice":
            steps = params["strides"] or (1,) * x.ndim
            return x[tuple(map(slice, params["start_indices"], params["limit_indices"], steps))].copy()
        case "concatenate":
            return np.concatenate(args, params["dimension"])
        case "split":
            return [one.copy() for one in np.split(x, np.cumsum(params["sizes"])[:-1], params["axis"])]
        case "broadcast_in_dim" if len(args) == 1:
            shape, places = params["shape"], params["broadcast_dimensions"]
            sizes = [1] * len(shape)
            for size, place in zip(x.shape, places, strict=True):
                sizes[place] = size
            return np.broadcast_to(x.reshape(sizes), shape).copy()
        case "select_n" if x.dtype.kind == "b":
            return np.where(x, args[2], args[1])
        case "iota" if not args:
            shape, axis = params["shape"], params["dimension"]
            row = np.arange(shape[axis]).astype(params["dtype"])
            return np.broadcast_to(row.reshape([-1 if at == axis else 1 for at in range(len(shape))]), shape).copy()
        case "clamp":
            return np.clip(args[1], x, args[2])
        case "cumsum" if x.dtype.kind == "f":
            axis = params["axis"]
            turned = np.flip(x, axis) if params["reverse"] else x
            summed = np.cumsum(turned, axis)
            return np.flip(summed, axis).copy() if params["reverse"] else summed
        case "dot_general" if x.dtype.kind == "f" and args[1].dtype.kind == "f":
            return _product(x, args[1], *params["dimension_numbers"])
    return None


_TRUTHS = ("eq", "ne", "lt", "le", "gt", "ge")


def _converted(x: NumPyArray, dtype: Any) -> NumPyArray | None:
    return x.astype(dtype) if dtype.kind in "fiub" and not (x.dtype.kind == "f" and dtype.kind in "iu") else None


def _product(x: NumPyArray, y: NumPyArray, summed: Any, batch: Any) -> NumPyArray:
    """Axes of a batch first, then those of x alone, then those of y alone."""
    (xs, ys), (xb, yb) = summed, batch
    alone_x = [axis for axis in range(x.ndim) if axis not in (*xs, *xb)]
    alone_y = [axis for axis in range(y.ndim) if axis not in (*ys, *yb)]
    sizes = [x.shape[axis] for axis in xb]
    rows, columns = [x.shape[axis] for axis in alone_x], [y.shape[axis] for axis in alone_y]
    inner = int(np.prod([x.shape[axis] for axis in xs], dtype=np.int64))
    left = (
        x.transpose(*xb, *alone_x, *xs).reshape(*sizes, -1, inner)
        if inner
        else np.zeros((*sizes, int(np.prod(rows)), 0))
    )
    right = (
        y.transpose(*yb, *ys, *alone_y).reshape(*sizes, inner, -1)
        if inner
        else np.zeros((*sizes, 0, int(np.prod(columns))))
    )
    return np.matmul(left, right).reshape(*sizes, *rows, *columns)
