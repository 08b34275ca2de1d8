"""A JAX program's operations, each run by itself as it comes: loops are entered, and so is what is compiled."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core, source_info_util
from jax.tree_util import keystr, tree_flatten_with_path

from maskattn.diagnose.tables import sharpened
from maskattn.diagnose.trace import Kind, Node, Trace, Where, here, numbers, of_program
from maskattn.typing import NumPyArray
from maskattn_jax.tracing.evaluate import evaluate
from maskattn_jax.tracing.held import LIBRARIES, held, home, module_types, wraps
from maskattn_jax.tracing.rounding import rounded as rounded_to_its_dtypes

_NARROW = tuple(np.dtype(name) for name in ("float32", "bfloat16", "float16"))
_DTYPES = ("new_dtype", "dtype", "preferred_element_type")
#: Operations that hold a program: it is gone through.
_HELD = ("jit", "pjit", "closed_call", "core_call", "remat2", "remat", "checkpoint", "custom_lin")


class _Tape(core.EvalTrace):
    """Writes down each primitive.

    With `wide`, floating-point numbers are float64 throughout; with `rounded`, each result is computed in float64 and
    rounded to the dtype that the program has it in.
    """

    def __init__(self, paths: Mapping[int, str], wide: bool, rounded: bool = False) -> None:
        super().__init__()
        self._rounded = rounded
        self.trace = Trace()
        self._paths = paths
        self.wide = wide
        self._of: dict[int, int] = {}
        self._sharp: dict[int | None, jax.Array] = {}  # tables of more digits than they were stored with
        self._plain: dict[tuple[tuple[int, ...], int], int] = {}  # parameters that are arrays of NumPy
        self._plain_of: dict[int, int] = {}  # the same by their nodes
        self._homes: dict[int, str] = {}  # paths of modules that were made anew
        self._modules: dict[str, str] = {}  # lines -> the module that ran there first
        self._kept: list[object] = []  # so that no id is given twice

    def add(self, array: object, node: Node) -> int:
        """An array as a node."""
        number = len(self.trace.nodes)
        self.trace.nodes.append(node)
        self._kept.append(array)
        self._of[id(array)] = number
        return number

    def leaf(self, array: Any, kind: Kind, name: str, instead: NumPyArray | None = None) -> int:
        """An array that no primitive has made; `instead`: the numbers that it is taken to have."""
        value = _numbers(array)
        if instead is not None:
            value = instead
            self._sharp[id(array)] = jax.device_put(instead if self.wide else instead.astype(array.dtype))
        elif self.wide and array.dtype == np.float32:
            sharp = sharpened(np.asarray(array))
            if not np.array_equal(sharp, value):
                value, self._sharp[id(array)] = sharp, jax.device_put(sharp)
        if kind == "parameter" and isinstance(array, np.ndarray) and array.size > 1:
            self._plain.setdefault(_key(array), id(array))
            self._plain_of[len(self.trace.nodes)] = id(array)
        return self.add(array, Node(kind, name, value, dtype=str(array.dtype)))

    def plain(self, array: Any) -> int | None:
        """The id of the parameter, an array of NumPy, that JAX has made this array of; None: of none."""
        if not self._plain or not isinstance(array, (jax.Array, np.ndarray)) or isinstance(array, core.Tracer):
            return None
        known = self._of.get(id(array))
        if known is not None:
            return self._plain_of.get(known)
        return self._plain.get(_key(array)) if array.size > 1 and array.dtype.kind == "f" else None

    def number(self, array: Any) -> int | None:
        """Which node an array is; None of what is no array, or a Python number."""
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            return None
        found = self._of.get(id(array))
        parameter = self.plain(array) if found is None else None
        if parameter is not None:
            found = self._of[id(array)] = self._of[parameter]
            self._kept.append(array)
        if found is None:
            if jnp.issubdtype(array.dtype, jax.dtypes.extended) or (
                array.size < 2 and not isinstance(array, jax.Array)
            ):
                return None
            found = self.leaf(array, "constant", "")
        return found

    def process_primitive(self, primitive: Any, args: Sequence[Any], params: Any, /) -> Any:
        inner = _program(primitive, params)
        if inner is not None:
            with core.set_current_trace(self):
                return core.eval_jaxpr(*inner, *args)
        where = self._where()
        inputs = tuple(number for number in map(self.number, args) if number is not None)
        args, params = self.widened(primitive, args, params, where)
        if primitive.name == "stage":
            out = args[0]
            if not isinstance(out, jax.Array):
                out = core.eval_trace.process_primitive(primitive, args, params)
        else:
            out = self._result(primitive, args, params)
        random = primitive.name.startswith("random_bits") or primitive.name == "threefry2x32"
        for one in out if primitive.multiple_results else [out]:
            if isinstance(one, jax.Array) and not jnp.issubdtype(one.dtype, jax.dtypes.extended):
                if id(one) not in self._of:
                    node = Node("operation", primitive.name, _numbers(one), inputs, where, str(one.dtype))
                    number = self.add(one, node)
                    if random:
                        self.trace.random.append(number)
        return out

    def process_custom_jvp_call(self, primitive: Any, fun: Any, jvp: Any, tracers: Any, /, **_: Any) -> Any:
        with core.set_current_trace(self):
            return fun.call_wrapped(*tracers)

    def process_custom_vjp_call(self, primitive: Any, fun: Any, fwd: Any, bwd: Any, tracers: Any, /, **_: Any) -> Any:
        with core.set_current_trace(self):
            return fun.call_wrapped(*tracers)

    def _result(self, primitive: Any, args: Sequence[Any], params: Any) -> Any:
        if self.wide and all(
            hasattr(one, "dtype") and not jnp.issubdtype(one.dtype, jax.dtypes.extended) for one in args
        ):
            made = evaluate(primitive.name, [np.asarray(one) for one in args], params)
            if made is not None:
                arrays = [jax.device_put(one) for one in made]
                return arrays if primitive.multiple_results else arrays[0]
        if self._rounded:
            narrow = rounded_to_its_dtypes(primitive, args, params)
            if narrow is not None:
                return narrow if primitive.multiple_results else narrow[0]
        return core.eval_trace.process_primitive(primitive, args, params)

    def leafed(self, array: Any) -> Any:
        """What is differentiated by in an array's place: the same node."""
        made = self._sharp.get(id(array), jnp_wide(array) if self.wide else jnp.array(array))
        self._kept.append(made)
        self._of[id(made)] = self._of[id(array)]
        return made

    def known(self, array: object) -> int | None:
        """Which node an array is, where it is one already."""
        return self._of.get(id(array))

    def widened(
        self, primitive: Any, args: Sequence[Any], params: Any, where: Where | None = None
    ) -> tuple[list[Any], Any]:
        """What a primitive is to be given; `where`: its place, to be noted where it would round to fewer bits."""
        taken = [self._sharp.get(id(one), self._sharp.get(self.plain(one), one)) for one in args]
        if not self.wide or primitive.name == "bitcast_convert_type":
            return taken, params
        narrow = {name: np.dtype("float64") for name in _DTYPES if name in params and _narrow(params[name])}
        fewer = sorted({str(np.dtype(params[name])) for name in narrow} - {"float32"})
        if where is not None and fewer and any(getattr(one, "dtype", None) == np.float64 for one in args):
            self.trace.narrowed.setdefault(str(where), ", ".join(fewer))
        return [jnp_wide(one) for one in taken], {**params, **narrow} if narrow else params

    def _where(self) -> Where:
        context: Any = source_info_util._source_info_context.context
        if context.traceback is None:
            found = here(self._path, LIBRARIES, depth=3)
            self._modules.setdefault(found.line, found.module)
            return found
        backward = "transpose(" in str(context.name_stack)
        for frame in source_info_util.user_frames(context.traceback):
            if of_program(frame.file_name, LIBRARIES):
                line = f"{os.path.basename(frame.file_name)}:{frame.start_line}"
                return Where(self._modules.get(line, ""), line, frame.function_name, backward)
        return Where(backward=backward)

    def _path(self, it: object) -> str | None:
        if id(it) in self._paths:
            return self._paths[id(it)]
        if not isinstance(it, module_types()) or wraps(it):
            return None
        path = getattr(it, "path", None)
        if isinstance(path, tuple):  # Linen, bound
            return "/".join(map(str, path))
        if id(it) not in self._homes:
            found = home(it, self._parameter)
            self._homes[id(it)] = f"<{type(it).__name__}>" if found is None else found
            self._kept.append(it)
        return self._homes[id(it)]

    def _parameter(self, array: object) -> str | None:
        """The name of an array that is a parameter."""
        number = self._of.get(id(array))
        node = None if number is None else self.trace.nodes[number]
        return node.name if node is not None and node.kind == "parameter" else None


def _narrow(dtype: object) -> bool:
    try:
        return dtype is not None and np.dtype(dtype) in _NARROW  # type: ignore[call-overload]
    except TypeError:
        return False


def jnp_wide(one: Any) -> Any:
    """Floating-point arrays in float64."""
    if getattr(one, "dtype", None) in _NARROW:
        if isinstance(one, core.Tracer):
            with core.set_current_trace(one._trace):
                return one.astype(np.float64)
        return jax.device_put(np.asarray(one).astype(np.float64))
    return one


def _program(primitive: Any, params: Any) -> tuple[Any, Sequence[Any]] | None:
    """The program that a primitive holds, and its constants; None of others."""
    program = params.get("jaxpr", params.get("call_jaxpr"))
    if primitive.name not in _HELD or program is None:
        return None
    return (program.jaxpr, program.consts) if hasattr(program, "consts") else (program, ())


def _key(array: Any) -> tuple[tuple[int, ...], int]:
    return array.shape, hash(np.asarray(array, np.float64).tobytes())


def _numbers(array: Any) -> NumPyArray:
    return numbers(np.asarray(array))


def record(
    function: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    wide: bool,
    rounded: bool = False,
    instead: Mapping[str, NumPyArray] = MappingProxyType({}),
    cotangents: Mapping[str, NumPyArray] = MappingProxyType({}),
) -> Trace:
    """Runs a program and gives what it did.

    Args:
        function: a module of NNX, Linen (bound) or Equinox, or a function of arrays.
        args, kwargs: NumPy arrays and other values, which it is called with.
        wide: whether what is floating-point is computed in float64, whatever the program asks for.
        rounded: whether, where it is not, results are float64's rounded to the program's dtypes: nothing is compiled.
        instead: other numbers for parameters, by name.
        cotangents: names of outputs and what they are multiplied by, summed, before the gradients of all parameters
            are computed; none: no gradients are.
    """
    names, modules = held(function)
    tape = _Tape(modules, wide, rounded)
    with (
        jax.enable_x64(wide or jax.dtypes.canonicalize_dtype(np.float64) == np.float64),
        jax.disable_jit(),
        jax.default_matmul_precision("highest"),
    ):
        for name, array in names:
            if id(array) not in tape._of:
                tape.leaf(array, "parameter", name, instead.get(name))
        given, spec = jax.tree.flatten((tuple(args), dict(kwargs)))
        arrays = [jnp.asarray(one) if hasattr(one, "__array__") else one for one in given]
        if wide:  # else what is promoted to the inputs' dtype would seem to be rounded
            arrays = [jnp_wide(one) for one in arrays]
        for name, one in zip(_paths((tuple(args), dict(kwargs))), arrays, strict=True):
            if isinstance(one, jax.Array):
                tape.leaf(one, "input", name[2:] if name[:2] in ("0.", "1.") else name)
        taken, named = jax.tree.unflatten(spec, arrays)
        with core.set_current_trace(tape):
            if cotangents:
                _backward(tape, lambda: function(*taken, **named), dict(names), cotangents)
                return tape.trace
            out = function(*taken, **named)
        for name, one in _outputs(out).items():
            number = tape.number(one)
            assert number is not None
            tape.trace.outputs[name] = number
    return tape.trace


def _paths(tree: object) -> list[str]:
    return [keystr(path, simple=True, separator=".") for path, _ in tree_flatten_with_path(tree)[0]]


def _outputs(out: object) -> dict[str, Any]:
    """What a program returned that is floating-point, by its path."""
    leaves = zip(_paths(out), jax.tree.leaves(out), strict=True)
    return {name: one for name, one in leaves if hasattr(one, "dtype") and jnp.issubdtype(one.dtype, jnp.floating)}


def _backward(
    tape: _Tape, program: Callable[[], object], parameters: Mapping[str, Any], cotangents: Mapping[str, NumPyArray]
) -> None:
    """Runs a program and computes the gradients of its parameters, wherever it takes them from."""
    floating = {name: one for name, one in parameters.items() if jnp.issubdtype(one.dtype, jnp.floating)}
    leaves = {name: tape.leafed(array) for name, array in floating.items()}

    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        instead: dict[int | None, Any] = {id(parameters[name]): one for name, one in arrays.items()}
        with core.set_current_trace(_Between(core.trace_ctx.trace, tape, instead)):
            return {name: one for name, one in _outputs(program()).items() if name in cotangents}

    outputs, pull = jax.vjp(run, leaves)
    given = {}
    for name, one in outputs.items():
        given[name] = jnp.asarray(cotangents[name], one.dtype)
        known = tape.known(one)
        tape.trace.outputs[name] = tape.leaf(one, "operation", name) if known is None else known
        tape.leaf(given[name], "input", f"cotangent of {name}".rstrip())
    (gradients,) = pull(given)
    for name, one in gradients.items():
        number = tape.number(one)
        assert number is not None
        tape.trace.gradients[name] = number


class _Between(core.Trace):
    """Stands over a trace that differentiates: parameters are its own, and nothing is rounded to fewer bits.

    Args:
        below: what differentiates. tape: what writes down. instead: ids of parameters -> what is differentiated by.
    """

    def __init__(self, below: Any, tape: _Tape, instead: Mapping[int | None, Any]) -> None:
        super().__init__()
        self._below = below
        self._tape = tape
        self._instead = instead

    def stage_value(self, val: Any) -> Any:
        taken = self._taken([val])[0]
        return self._below.stage_value(jnp_wide(taken) if self._tape.wide else taken)

    def process_primitive(self, primitive: Any, args: Sequence[Any], params: Any, /) -> Any:
        inner = _program(primitive, params)
        if inner is not None:
            with core.set_current_trace(self):
                return core.eval_jaxpr(*inner, *args)
        args, params = self._tape.widened(primitive, self._taken(args), params)
        with core.set_current_trace(self._below):
            return primitive.bind(*args, **params)

    def process_custom_jvp_call(self, primitive: Any, fun: Any, jvp: Any, tracers: Any, /, **params: Any) -> Any:
        return self._below.process_custom_jvp_call(primitive, fun, jvp, self._taken(tracers), **params)

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, tracers: Any, /, **params: Any
    ) -> Any:
        return self._below.process_custom_vjp_call(primitive, fun, fwd, bwd, self._taken(tracers), **params)

    def _taken(self, args: Sequence[Any]) -> list[Any]:
        return [self._instead.get(id(one), self._instead.get(self._tape.plain(one), one)) for one in args]
