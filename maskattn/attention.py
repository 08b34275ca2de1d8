"""`Call`, the one description of a call of attention, and its checks: written once for both twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn._problems import Problems, show
from maskattn.masks.full import Full
from maskattn.schedule.reach import empty_rows

EMPTY_ROWS = ("zero", "mean", "nan", "error")
PRECISIONS = ("default", "high", "highest")
FLOAT_DTYPES = ("float64", "float32", "bfloat16", "float16")
DROPOUT_AXES = ("batch", "heads")

Array = Any  # of NumPy, JAX (also traced) or PyTorch
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dropout:
    """Dropout of attention weights: each is multiplied by keep / (1 - rate) after the softmax.

    A pytree in both twins: `words` is its leaf.

    Attributes:
        rate: the probability of being dropped, in (0, 1).
        words: the key, uint32 [2], where the call's arrays are.
        shared: the axes, of "batch" and "heads", whose entries all share one draw.
    """

    rate: float
    words: Array
    shared: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Call:
    """One call of attention: what a kernel is given, and what `auto` and `explain` are asked about.

    Its fields are the arguments of `attention`, by the same names. As `prepared` returns it, they are checked, arrays
    are the framework's, `mask` and `bias` are a Mask and a Bias bound to it (or None), `scale` is a number, "error" in
    `empty_rows` is settled, and `dropout_key` is the key's two words.

    Attributes:
        query: [B, L, H, D]. key: [B, S, K, D]. value: [B, S, K, Dv]. sinks: [H], or None.
        mask: which pairs may attend; True = may. None allows all.
        blocks: (queries, keys) of a tile, for kernels that work in tiles; None leaves them the choice.
    """

    query: Array
    key: Array
    value: Array
    mask: Any = None
    bias: Any = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Array | None = None
    dropout_rate: float = 0.0
    dropout_key: Any = None
    dropout_broadcast: tuple[str, ...] = ()
    empty_rows: str = "zero"
    kernel: str = "auto"
    precision: str = "highest"
    return_lse: bool = False
    blocks: tuple[int, int] | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(B, H, L, S)."""
        batch, q_len, heads, _ = self.query.shape
        return batch, heads, q_len, self.key.shape[1]

    @property
    def dropout(self) -> Dropout | None:
        """What is dropped; None where nothing is."""
        return Dropout(self.dropout_rate, self.dropout_key, self.dropout_broadcast) if self.dropout_rate else None


class KernelCannot(ValueError):
    """A kernel that was asked for by name cannot run a call; `reasons` has every reason."""

    def __init__(self, kernel: str, reasons: list[str]) -> None:
        self.reasons = reasons
        listed = reasons[0] if len(reasons) == 1 else "".join(f"\n  {reason}" for reason in reasons)
        super().__init__(f"attention: kernel {kernel!r} cannot run this call: {listed}")


def check_attention(
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, str],
    *,
    objects: Sequence[Any] = (),
    scale: Any = None,
    softcap: Any = None,
    dropout_rate: Any = 0.0,
    dropout_key: Any = None,
    dropout_broadcast: Any = (),
    empty_rows: Any = "zero",
    precision: Any = "highest",
    return_lse: Any = False,
    kernel: Any = "auto",
    kernels: Sequence[str] = (),
) -> None:
    """Check a call of attention(...) and raise one error that names everything wrong with it.

    Args:
        shapes: shapes of "query" [B, L, H, D], "key" [B, S, K, D], "value" [B, S, K, Dv] and, where given, of
            "sinks" [H], and of "mask" and "bias" where they are arrays (broadcastable to [B, H, L, S]).
        dtypes: their dtype names.
        objects: the Mask and the Bias, where mask and bias are not arrays; asked whether the sizes conflict with them.
        kernels: the names that `kernel` may take besides "auto".

    Raises:
        TypeError: an argument of the wrong type (an additive mask given as `mask`, say).
        ValueError: anything else.
    """
    problems = Problems("attention")
    _check_arrays(problems, shapes, dtypes)
    full = _full_shape(shapes)
    if full is not None:
        _check_against_full(problems, shapes, objects, full)
    for name, value in (("scale", scale), ("softcap", softcap)):
        if value is not None:
            problems.finite(name, problems.number(name, value), positive=name == "softcap")
    check_dropout(problems, dropout_rate, dropout_key, dropout_broadcast)
    problems.choice("empty_rows", empty_rows, EMPTY_ROWS)
    problems.choice("precision", precision, PRECISIONS)
    problems.choice("kernel", kernel, ("auto", *kernels))
    if not isinstance(return_lse, bool):
        problems.type(f"return_lse must be True or False, got {show(return_lse)}")
    problems.raise_if_any()


def _check_arrays(problems: Problems, shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> None:
    layouts = {"query": "[B, L, H, D]", "key": "[B, S, K, D]", "value": "[B, S, K, Dv]"}
    for name, layout in layouts.items():
        if len(shapes[name]) != 4:
            problems.value(f"{name} must have the four axes {layout}, got shape {shapes[name]}")
    for name in ("query", "key", "value", "sinks", "bias"):
        if name in dtypes and dtypes[name] not in FLOAT_DTYPES:
            hint = "; a bool array is a mask: pass it as mask" if name == "bias" and dtypes[name] == "bool" else ""
            problems.type(f"{name} must be one of {', '.join(FLOAT_DTYPES)}, got {dtypes[name]}{hint}")
    if "mask" in dtypes and dtypes["mask"] != "bool":
        hint = "; an additive mask is a bias: pass it as bias" if dtypes["mask"] in FLOAT_DTYPES else ""
        problems.type(
            f"mask must be a Mask or a bool array (True = may attend), got an array of {dtypes['mask']}{hint}"
        )
    if not dtypes["query"] == dtypes["key"] == dtypes["value"]:
        given = ", ".join(f"{name} {dtypes[name]}" for name in layouts)
        problems.value(f"query, key and value must have one dtype, got {given}")
    if "sinks" in shapes and len(shapes["sinks"]) != 1:
        problems.value(f"sinks must have the one axis [H], got shape {shapes['sinks']}")


def _full_shape(shapes: Mapping[str, Shape]) -> Shape | None:
    """[B, H, L, S], where the ranks allow it to be read."""
    query, key = shapes["query"], shapes["key"]
    if len(query) != 4 or len(key) != 4 or len(shapes["value"]) != 4:
        return None
    return (query[0], query[2], query[1], key[1])


def _check_against_full(problems: Problems, shapes: Mapping[str, Shape], objects: Sequence[Any], full: Shape) -> None:
    query, key, value = shapes["query"], shapes["key"], shapes["value"]
    if not query[0] == key[0] == value[0]:
        problems.value(f"query, key and value must agree in batch, got {query[0]}, {key[0]} and {value[0]}")
    if query[3] != key[3]:
        problems.value(f"query and key must agree in head_dim, got {query[3]} and {key[3]}")
    if query[3] == 0:
        problems.value(f"head_dim must be at least 1, got query of shape {query}")
    if key[1] != value[1]:
        problems.value(f"key and value must agree in length, got {key[1]} and {value[1]}")
    if key[2] != value[2]:
        problems.value(f"key and value must agree in heads, got {key[2]} and {value[2]}")
    if key[2] == 0 or query[2] % key[2]:
        problems.value(f"query heads must be a multiple of key heads, got {query[2]} and {key[2]}")
    if "sinks" in shapes and len(shapes["sinks"]) == 1 and shapes["sinks"][0] != query[2]:
        problems.value(f"sinks must have one entry per query head, {query[2]}, got {shapes['sinks'][0]}")
    for name in ("mask", "bias"):
        if name in shapes and not broadcasts(shapes[name], full):
            problems.value(f"{name} must broadcast to [B, H, L, S] = {full}, got shape {shapes[name]}")
    sizes = {"batch": full[0], "heads": full[1], "q_len": full[2], "kv_len": full[3]}
    for part in objects:
        for reason in part.conflicts(sizes):
            problems.value(reason)


def broadcasts(shape: Shape, full: Shape) -> bool:
    """Whether an array of a shape broadcasts to another, without making it larger."""
    if len(shape) > len(full):
        return False
    aligned = full[len(full) - len(shape) :]
    return all(n == 1 or n == m for n, m in zip(shape, aligned, strict=True))


def check_dropout(problems: Problems, rate: Any, key: Any, broadcast: Any) -> None:
    """Note what is wrong with a rate, the key that a rate above 0 needs, and the axes that share a draw."""
    number = problems.number("dropout_rate", rate)
    if number is not None and not 0.0 <= number < 1.0:
        problems.value(f"dropout_rate must lie in [0, 1), got {number}")
    elif number and key is None:
        problems.value(f"dropout_key must be given where dropout_rate is above 0, got None and {number}")
    if key is not None:
        check_key(problems, "dropout_key", key)
    if not isinstance(broadcast, tuple) or not all(isinstance(axis, str) for axis in broadcast):
        problems.type(f"dropout_broadcast must be a tuple of axis names, got {show(broadcast)}")
    elif not set(broadcast) <= set(DROPOUT_AXES) or len(set(broadcast)) != len(broadcast):
        problems.value(f"dropout_broadcast may hold {' and '.join(DROPOUT_AXES)}, each once, got {broadcast}")


def check_key(problems: Problems, name: str, key: Any) -> None:
    """Note what is wrong with a key of random numbers: a seed, two uint32 words, or a `jax.random.key`."""
    wanted = f"{name} must be a seed in [0, 2**31) or two uint32 words"
    shape, dtype = getattr(key, "shape", ()), str(getattr(key, "dtype", "")).removeprefix("torch.")
    if dtype.startswith("key<"):
        if dtype != "key<fry>" or shape != ():
            problems.value(f"{name} must be one key of the implementation threefry2x32, got {dtype}{list(shape)}")
    elif dtype == "uint32" and shape:
        if tuple(shape) != (2,):
            problems.value(f"{wanted}, got shape {tuple(shape)}")
    elif shape or isinstance(key, bool) or not isinstance(key, (int, np.integer)):
        problems.type(f"{wanted}, got {f'{dtype}{list(shape)}' if dtype else show(key)}")
    elif not 0 <= key < 2**31:
        problems.value(f"{wanted}, got {key}")


def refuse_empty_rows(mask: Any, bias: Any, full: Shape, concrete: Callable[[Any], Any]) -> None:
    """Carry out empty_rows="error": raise where a row of [B, H, L, S] = `full` may attend to nothing.

    Args:
        mask, bias: a Mask, a Bias, or None.
        concrete: gives one array of their data as NumPy, or None where it is traced.

    Raises:
        ValueError: there is such a row; names the first, and how many there are. Or the data are traced.
    """
    mask = Full() if mask is None else _untraced("mask", mask, concrete)
    bias = None if bias is None else _untraced("bias", bias, concrete)
    empty = np.broadcast_to(empty_rows(mask, *full, bias=bias), full[:3])
    if empty.any():
        first = tuple(int(i) for i in np.unravel_index(np.argmax(empty), empty.shape))
        raise ValueError(
            f'attention: empty_rows="error": {int(empty.sum())} of {empty.size} rows may attend to no key; '
            f"the first is (batch, head, query) = {first}"
        )


def _untraced(name: str, node: Any, concrete: Callable[[Any], Any]) -> Any:
    def convert(x: Any) -> Any:
        array = concrete(x)
        if array is None:
            raise ValueError(
                f'attention: empty_rows="error" cannot be checked where the data of {name} are traced '
                f'(jit, vmap, compile): check outside, or use "zero", "nan" or "mean"'
            )
        return array

    return node.map_data(convert)


def check_inputs(where: str, config: Any, shapes: Mapping[str, Shape], dropout_key: Any, deterministic: bool) -> None:
    """Check the inputs of a module: "query" [B, L, embed_dim], "key" [B, S, kdim], "value" [B, S, vdim], and the key of
    its dropout.

    Raises:
        TypeError, ValueError: lists every wrong shape, a bad key, and a key that is missing where dropout is on.
    """
    problems = Problems(where)
    widths = {"query": config.embed_dim, "key": config.key_dim, "value": config.value_dim}
    for name, width in widths.items():
        if len(shapes[name]) != 3 or shapes[name][2] != width:
            problems.value(f"{name} must be [batch, length, {width}], got shape {shapes[name]}")
    rates = [f"{name} {rate}" for name in ("dropout_rate", "out_dropout_rate") if (rate := getattr(config, name))]
    if dropout_key is not None:
        check_key(problems, "dropout_key", dropout_key)
    elif rates and not deterministic:
        problems.value(
            f"dropout_key must be given where dropout is on, got None and {', '.join(rates)}; in eval mode, or with "
            "deterministic=True, it is off"
        )
    problems.raise_if_any()


def complete_inputs(where: str, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """A module's key defaults to its query and its value to its key; a value without a key is an error."""
    if key is None and value is not None:
        raise ValueError(f"{where}: value is given without key: give both, or only key")
    key = query if key is None else key
    return query, key, key if value is None else value


def check_config(where: str, config: Any) -> None:
    """Raise a TypeError unless `config` is an AttentionConfig."""
    from maskattn.config import AttentionConfig

    if not isinstance(config, AttentionConfig):
        raise TypeError(f"{where}: config must be an AttentionConfig, got {show(config)}")


def check_attention_mask(shape: Shape, inputs: Shape, heads: int) -> None:
    """Check the mask of the seed module: [B, N], or broadcastable to [B, H, N, N], for inputs [B, N, dim]; 1 = keep.

    Raises:
        ValueError: any other shape.
    """
    if len(inputs) != 3:
        raise ValueError(f"Attention: x must be [batch, length, dim], got shape {inputs}")
    batch, length, _ = inputs
    expanded = (shape[0], 1, 1, shape[1]) if len(shape) == 2 else shape
    if not broadcasts(expanded, (batch, heads, length, length)):
        raise ValueError(
            f"Attention: attention_mask must be [B, N] = {(batch, length)} or broadcast to [B, H, N, N] = "
            f"{(batch, heads, length, length)}, got shape {shape}"
        )
