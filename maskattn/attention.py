"""`Call`, the one description of a call of attention; how it is checked, prepared and run: once, for both twins.

attend(call)       prepare, choose, run: what `attention` of a twin does, given what its `Framework` says
prepare(call)      checked, bound to the framework, every option settled: what a kernel is given
choose(call)       which kernel runs it, and why
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, cast, get_args

import numpy as np

from maskattn._call import Call as Call, Dropout as Dropout, PartOfCall as PartOfCall
from maskattn._fields import broadcasts, dtype_name, peek
from maskattn._pairs import Pairwise
from maskattn._problems import Problems, show, zero_one
from maskattn.arrays import is_int
from maskattn.biases import Bias, DenseBias
from maskattn.masks import Dense, Full, Mask
from maskattn.numerics.dropout import check_dropout
from maskattn.schedule.reach import empty_rows
from maskattn.typing import Array, EmptyRows, KernelName, NumPyArray, Precision, SharedAxis

if TYPE_CHECKING:
    from jaxtyping import Float, UInt32

EMPTY_ROWS: tuple[EmptyRows, ...] = get_args(EmptyRows)
FLOAT_DTYPES = ("float64", "float32", "bfloat16", "float16")

#: So many facts of calls are kept.
_MOST_PASSED = 4096

Shape = tuple[int, ...]
A = TypeVar("A", bound=Array)
Node = TypeVar("Node", bound=Pairwise)


class Options(TypedDict, Generic[A], total=False):
    """The keywords of `attention`, but for `return_lse`: what they mean is said there."""

    bias: Bias | Float[A | NumPyArray, "#B #H #L #S"] | None
    scale: float | None
    softcap: float | None
    sinks: Float[A, " H"] | None
    dropout_rate: float
    dropout_key: int | UInt32[A | NumPyArray, " 2"] | None
    dropout_broadcast: tuple[SharedAxis, ...]
    empty_rows: EmptyRows
    kernel: KernelName
    precision: Precision
    blocks: tuple[int, int] | None


@dataclass(frozen=True)
class Framework(Generic[A]):
    """What the functions here ask of a framework; each twin's `functional.py` has its own.

    Attributes:
        kernels: by name, modules with `attention(call) -> (output, lse)` and `unsupported(call) -> list[str]`.
        auto: (kernel, why) for a prepared call that names none.
        operand, operands: what query, key, value and sinks must be, in words and as types.
        keys, arrays: what `dropout_key` may be, in words, and the types of arrays it, mask and bias may be.
        check: notes what only this framework asks of operands, given by name.
        convert: an operand as the framework's array.
        bind: (a mask or bias, the query) -> it, with its data in the framework's arrays, where the query is.
        words: (key, the query) -> its two words, where the query is.
        concrete: an array as NumPy, or None where it is traced.
        compiling: whether a compiler reads along: values, those of NumPy data too, cannot be read then.
        facts: all that the checks of a call's operands and options depend on, hashable: calls in which they are alike
            are checked once. None: check this one.
        passed: the facts of calls that were right.
        given: a call as this framework takes it to be meant, before it is checked.
        short: `attend_anew`, quicker for calls like one before; None: there is no such.
        spread: what does a call whose arrays lie on several devices, as calls of their parts; None of any other call.
    """

    kernels: Mapping[str, ModuleType]
    auto: Callable[[Call[A]], tuple[str, str]]
    operand: str
    operands: tuple[Any, ...]
    keys: str
    arrays: tuple[type, ...]
    check: Callable[[Problems, dict[str, Any]], None]
    convert: Callable[[Any], A]
    bind: Callable[[Any, Any], Any]
    words: Callable[[Any, Any], A]
    concrete: Callable[[Any], NumPyArray | None]
    compiling: Callable[[], bool]
    facts: Callable[[Call[Any]], Hashable | None] = lambda call: None
    passed: set[Hashable] = field(default_factory=set, compare=False, repr=False)
    given: Callable[[Call[Any]], Call[Any]] = lambda call: call
    spread: Callable[[Call[Any]], Callable[[Call[Any]], Any] | None] = lambda call: None
    short: Callable[..., object] | None = None


class KernelCannot(ValueError):
    """A kernel that was asked for by name cannot run a call; `reasons` has every reason."""

    def __init__(self, kernel: str, reasons: list[str]) -> None:
        self.reasons = reasons
        listed = reasons[0] if len(reasons) == 1 else "".join(f"\n  {reason}" for reason in reasons)
        super().__init__(f"attention: kernel {kernel!r} cannot run this call: {listed}")


def attend(call: Call[Array], framework: Framework[A]) -> A | tuple[A, A]:
    """The output of a call, or (output, lse), by the kernel that it names or `auto` chooses.

    Raises:
        TypeError, ValueError: as `prepare` and `choose`.
    """
    if framework.short is not None:
        return cast("A | tuple[A, A]", framework.short(call, framework))
    return attend_anew(call, framework)


def attend_anew(call: Call[Array], framework: Framework[A]) -> A | tuple[A, A]:
    """What `attend` gives, checked and chosen for this call alone. Errors as there."""
    spread = framework.spread(call)
    if spread is not None:
        return cast("A | tuple[A, A]", spread(call))
    prepared = prepare(call, framework)
    output, lse = framework.kernels[choose(prepared, framework)[0]].attention(prepared)
    return (output, lse) if call.return_lse else output


def choose(call: Call[A], framework: Framework[A]) -> tuple[str, str]:
    """The kernel that runs a prepared call, and why.

    Raises:
        KernelCannot: a ValueError: a kernel asked for by name cannot run the call; lists every reason.
    """
    if call.kernel == "auto":
        return framework.auto(call)
    reasons = framework.kernels[call.kernel].unsupported(call)
    if reasons:
        raise KernelCannot(call.kernel, reasons)
    return call.kernel, "it was asked for by name"


def prepare(call: Call[Array], framework: Framework[A]) -> Call[A]:
    """The call as kernels take it: see `Call`.

    Raises:
        TypeError, ValueError: one error that lists everything wrong with the arguments.
    """
    call = framework.given(call)
    check_attention(call, framework)
    query, sinks, policy = call.query, call.sinks, call.empty_rows
    rate = call.dropout_rate.__float__()  # `float` would leave open what PyTorch's compiler does
    mask = call.mask if call.mask is None or isinstance(call.mask, Mask) else _dense(call.mask)
    bias = call.bias if call.bias is None or isinstance(call.bias, Bias) else DenseBias(call.bias)
    if policy == "error":
        if sinks is None and framework.compiling():
            raise ValueError('attention: empty_rows="error" cannot be checked inside a compiled graph: check outside')
        if sinks is None and not call.is_sized:
            raise ValueError(
                f'attention: empty_rows="error" cannot be checked for sizes that are left open, {call.sizes}'
            )
        if sinks is None:
            refuse_empty_rows(mask, bias, call.sizes, framework.concrete)
        policy = "zero"
    made: Any = type(call)
    prepared: Call[A] = object.__new__(made)  # `replace` takes as long as all checks
    fields = prepared.__dict__
    fields.update(call.__dict__)
    convert = framework.convert
    fields["query"], fields["key"], fields["value"] = convert(query), convert(call.key), convert(call.value)
    fields["dropout_rate"], fields["empty_rows"] = rate, policy
    fields["scale"] = 1.0 / math.sqrt(query.shape[-1]) if call.scale is None else float(call.scale)
    if call.softcap is not None:
        fields["softcap"] = float(call.softcap)
    if mask is not None:
        fields["mask"] = framework.bind(mask, query)
    if bias is not None:
        fields["bias"] = framework.bind(bias, query)
    if sinks is not None:
        fields["sinks"] = framework.convert(sinks)
    fields["dropout_key"] = framework.words(call.dropout_key, query) if rate else None
    return prepared


def _dense(array: Array) -> Dense:
    """The mask of a bool array that was checked."""
    if len(array.shape) != 4 or isinstance(array, np.ndarray):  # NumPy's is copied, so that it cannot change
        return Dense(array)
    dense = object.__new__(Dense)
    dense._set(keep=array)
    return dense


def check_attention(call: Call[Array], framework: Framework[A]) -> None:
    """Raise one error that names everything wrong with a call.

    Raises:
        TypeError: an argument of the wrong type (an additive mask given as `mask`, say).
        ValueError: anything else.
    """
    facts = framework.facts(call)
    try:
        if facts is not None and facts in framework.passed and _fits(call, framework):
            return
    except TypeError:  # an option that is a list, say, or a size that is a symbol
        facts = None
    _check_all(call, framework)
    if facts is not None:
        if len(framework.passed) >= _MOST_PASSED:
            framework.passed.clear()
        framework.passed.add(facts)


def _fits(call: Call[Array], framework: Framework[A]) -> bool:
    """Whether nothing is wrong with the mask, in a call without a bias whose operands and options are right."""
    mask: Any = call.mask
    sizes = call.sizes
    if call.bias is not None:
        return False
    if mask is None:
        return True
    if isinstance(mask, Mask):
        batch, heads, q_len, kv_len = sizes
        return not mask.conflicts({"batch": batch, "heads": heads, "q_len": q_len, "kv_len": kv_len})
    given: bool = isinstance(mask, framework.arrays)
    return given and dtype_name(mask) == "bool" and broadcasts(mask.shape, sizes)


def _check_all(call: Call[Array], framework: Framework[A]) -> None:
    problems = Problems("attention")
    _check_types(problems, call, framework)
    problems.raise_if_any()
    shapes, dtypes, parts = {}, {}, []
    for name in ("query", "key", "value", "sinks", "mask", "bias"):
        x = getattr(call, name)
        if isinstance(x, Pairwise):
            parts.append(x)
        elif x is not None:
            shapes[name], dtypes[name] = tuple(x.shape), dtype_name(x)
    _check_arrays(problems, shapes, dtypes, call.mask)
    if len(shapes["query"]) == len(shapes["key"]) == len(shapes["value"]) == 4:
        # compiled code cannot read the values of NumPy data, only shapes
        parts = [framework.bind(x, call.query) for x in parts] if framework.compiling() else parts
        _check_against_full(problems, shapes, parts, call.sizes)
    for name, value in (("scale", call.scale), ("softcap", call.softcap)):
        if value is not None:
            problems.finite(name, problems.number(name, value), positive=name == "softcap")
    check_dropout(problems, call.dropout_rate, call.dropout_key, call.dropout_broadcast)
    problems.choice("empty_rows", call.empty_rows, EMPTY_ROWS)
    problems.choice("precision", call.precision, get_args(Precision))
    problems.choice("kernel", call.kernel, ("auto", *framework.kernels))
    return_lse: object = call.return_lse
    if not isinstance(return_lse, bool):
        problems.type(f"return_lse must be True or False, got {show(return_lse)}")
    _check_blocks(problems, call.blocks)
    problems.raise_if_any()


def _check_blocks(problems: Problems, blocks: object) -> None:
    if isinstance(blocks, tuple) and len(blocks) == 2:
        problems.integers("blocks", blocks, minimum=1)
    elif blocks is not None:
        problems.type(f"blocks must be two ints, the queries and keys of a tile, got {show(blocks)}")


def _check_types(problems: Problems, call: Call[Array], framework: Framework[A]) -> None:
    operands = {"query": call.query, "key": call.key, "value": call.value}
    if call.sinks is not None:
        operands["sinks"] = call.sinks
    for name, x in operands.items():
        if not isinstance(x, framework.operands):
            problems.type(f"{name} must be {framework.operand}, got {type(x).__name__}")
    framework.check(problems, operands)
    mask, bias, key = call.mask, call.bias, call.dropout_key
    if mask is not None and not isinstance(mask, Mask) and not isinstance(mask, framework.arrays):
        problems.type(f"mask must be a Mask or a bool array (True = may attend), got {type(mask).__name__}")
    if bias is not None and not isinstance(bias, Bias) and not isinstance(bias, framework.arrays):
        problems.type(f"bias must be a Bias or a float array, got {type(bias).__name__}")
    if (
        not is_int(key)
        and hasattr(key, "dtype")
        and not isinstance(key, np.generic)
        and not isinstance(key, framework.arrays)
    ):
        problems.type(f"dropout_key must be {framework.keys}, got {type(key).__name__}")


def _check_arrays(problems: Problems, shapes: Mapping[str, Shape], dtypes: Mapping[str, str], mask: Array) -> None:
    layouts = {"query": "[B, L, H, D]", "key": "[B, S, K, D]", "value": "[B, S, K, Dv]"}
    for name, layout in layouts.items():
        if len(shapes[name]) != 4:
            problems.value(f"{name} must have the four axes {layout}, got shape {shapes[name]}")
    for name in ("query", "key", "value", "sinks", "bias"):
        if name in dtypes and dtypes[name] not in FLOAT_DTYPES:
            hint = "; a bool array is a mask: pass it as mask" if name == "bias" and dtypes[name] == "bool" else ""
            problems.type(f"{name} must be one of {', '.join(FLOAT_DTYPES)}, got {dtypes[name]}{hint}")
    if "mask" in dtypes and dtypes["mask"] != "bool":
        hint = zero_one("mask", mask)
        hint += ", or masks.from_flax(mask)" if hint else ""
        hint += "; a tokenizer's, [B, S]? masks.from_hf(mask)" if hint and len(shapes["mask"]) == 2 else ""
        values = peek(mask)
        # all 0 may be either
        if dtypes["mask"] in FLOAT_DTYPES and (values is None or not hint or not values.any()):
            hint += "; an additive mask is a bias: pass it as bias"
        problems.type(
            f"mask must be a Mask or a bool array (True = may attend), got an array of {dtypes['mask']}{hint}"
        )
    if not dtypes["query"] == dtypes["key"] == dtypes["value"]:
        given = ", ".join(f"{name} {dtypes[name]}" for name in layouts)
        problems.value(f"query, key and value must have one dtype, got {given}")
    if "sinks" in shapes and len(shapes["sinks"]) != 1:
        problems.value(f"sinks must have the one axis [H], got shape {shapes['sinks']}")


def _check_against_full(
    problems: Problems, shapes: Mapping[str, Shape], parts: Sequence[Pairwise], full: Shape
) -> None:
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
    if query[2] % key[2] if key[2] else query[2]:
        problems.value(f"query heads must be a multiple of key heads, got {query[2]} and {key[2]}")
    if "sinks" in shapes and len(shapes["sinks"]) == 1 and shapes["sinks"][0] != query[2]:
        problems.value(f"sinks must have one entry per query head, {query[2]}, got {shapes['sinks'][0]}")
    for name in ("mask", "bias"):
        if name in shapes and not broadcasts(shapes[name], full):
            hint = _axes_meant(shapes["mask"], full) if name == "mask" else ""
            problems.value(f"{name} must broadcast to [B, H, L, S] = {full}, got shape {shapes[name]}{hint}")
    for part in parts:
        for reason in part.conflicts({"batch": full[0], "heads": full[1], "q_len": full[2], "kv_len": full[3]}):
            problems.value(reason)


def _axes_meant(shape: Shape, full: Shape) -> str:
    """What to do with a mask of the batch that has no axis of heads, as most libraries write it."""
    batch, _, q_len, kv_len = full
    if shape == (batch, kv_len):
        return "; True for each key that counts? masks.KeyMask(mask)"
    return "; [B, L, S]? mask[:, None]" if shape == (batch, q_len, kv_len) else ""


def refuse_empty_rows(
    mask: Mask | None, bias: Bias | None, full: Shape, concrete: Callable[[Any], NumPyArray | None]
) -> None:
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


def _untraced(name: str, node: Node, concrete: Callable[[Any], NumPyArray | None]) -> Node:
    def convert(x: Array) -> NumPyArray:
        array = concrete(x)
        if array is None:
            raise ValueError(
                f'attention: empty_rows="error" cannot be checked where the data of {name} are traced '
                f'(jit, vmap, compile): check outside, or use "zero", "nan" or "mean"'
            )
        return array

    return node.map_data(convert)


def check_merge(given: Mapping[str, Any], kinds: tuple[type, ...], operand: str) -> None:
    """Check "out" and "out2" [B, L, H, Dv], "lse" and "lse2" [B, L, H], which are to be `kinds`, in words `operand`.

    Raises:
        TypeError, ValueError: one error that lists everything wrong with them.
    """
    problems = Problems("merge")
    for name, x in given.items():
        if not isinstance(x, kinds):
            problems.type(f"{name} must be {operand}, got {type(x).__name__}")
    problems.raise_if_any()
    shapes, dtypes = {n: tuple(x.shape) for n, x in given.items()}, {n: dtype_name(x) for n, x in given.items()}
    if len(shapes["out"]) != 4:
        problems.value(f"out must have the four axes [B, L, H, Dv], got shape {shapes['out']}")
    for name in ("out2", "lse", "lse2"):
        expected = shapes["out"] if name == "out2" else shapes["out"][:-1]
        if shapes[name] != expected:
            problems.value(f"{name} must have the shape {expected}, as out has {shapes['out']}, got {shapes[name]}")
    for name, allowed in (("out", FLOAT_DTYPES), ("lse", FLOAT_DTYPES[:2])):
        if dtypes[name] not in allowed:
            problems.type(f"{name} must be one of {', '.join(allowed)}, got {dtypes[name]}")
        if dtypes[f"{name}2"] != dtypes[name]:
            problems.value(f"{name} and {name}2 must have one dtype, got {dtypes[name]} and {dtypes[f'{name}2']}")
    problems.raise_if_any()
