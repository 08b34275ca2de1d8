"""A PyTorch program's operations, as PyTorch's dispatcher sees them: no hook, and nothing written into a module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from maskattn.arrays import to_numpy
from maskattn.diagnose.tables import sharpened
from maskattn.diagnose.trace import Node, Trace, Where, here, numbers
from maskattn.typing import NumPyArray
from maskattn_torch.tracing.held import LIBRARIES, below, held, names, parameters, tensors
from maskattn_torch.tracing.parts import WIDER, Wider, taken_apart

_NARROW = (torch.float32, torch.bfloat16, torch.float16)

Argument: TypeAlias = object


class Ref(NamedTuple):
    """A tensor of a recorded program, in the place of an argument."""

    number: int


@dataclass(eq=False)
class Called:
    """One call of an operator.

    Attributes:
        operator: of PyTorch's dispatcher.
        args, kwargs: its arguments, tensors as `Ref`.
        outputs: numbers of the tensors that it gave, and None for what is no tensor.
        where: which code called it.
        writes: whether it writes into a tensor that was there.
    """

    operator: torch._ops.OpOverload
    args: tuple[Argument, ...]
    kwargs: dict[str, Argument]
    outputs: tuple[int | None, ...]
    where: Where
    writes: bool = False

    @functools.cached_property
    def flat(self) -> tuple[list[object], pytree.TreeSpec]:
        """The arguments in a row, and how they are arranged."""
        return pytree.tree_flatten((self.args, self.kwargs), is_leaf=lambda one: isinstance(one, Ref))

    @functools.cached_property
    def plain(self) -> bool:
        """Whether no argument holds others."""
        held = (*self.args, *self.kwargs.values())
        return not any(isinstance(one, (list, tuple, dict)) and not isinstance(one, Ref) for one in held)


@dataclass(eq=False)
class Recording(Trace):
    """A run of a PyTorch program, which can be played again (`replay`).

    Attributes:
        calls: of operators, in order.
        held: tensors by their numbers; those of parameters, inputs and constants.
        rounded: leaves that are kept in float32 and are no parameters that a program learns.
        again: nodes of a tensor after it was written into -> its node before.
        shared: nodes of tensors in memory that was written into through another one: they are always computed anew.
    """

    calls: list[Called] = field(default_factory=list)
    held: dict[int, Tensor] = field(default_factory=dict)
    rounded: list[int] = field(default_factory=list)
    again: dict[int, int] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)


class _Tape(TorchDispatchMode):
    """Writes down each operator. With `wide`, floating-point numbers are float64 throughout."""

    def __init__(self, paths: Mapping[int, str], wide: bool) -> None:
        super().__init__()
        self.recording = Recording()
        self._paths = paths
        self._wide = wide
        self._of: dict[int, int] = {}
        self._sharp: dict[int, Tensor] = {}  # tables of more digits than they were stored with
        self._kept: list[Tensor] = []  # so that no id is given twice
        self._forward: dict[int, Where] = {}  # sequence numbers of autograd's nodes

    def add(self, tensor: Tensor, node: Node) -> int:
        """A tensor as a node."""
        number = len(self.recording.nodes)
        self.recording.nodes.append(node)
        self._kept.append(tensor)
        self._of[id(tensor)] = number
        return number

    def leaf(self, tensor: Tensor, kind: str, name: str, dtype: str = "") -> int:
        """A tensor that no operator has made; `dtype`: that the program has it in, where that is another one."""
        value = _numbers(tensor)
        if self._wide and tensor.dtype == torch.float32:
            sharp = sharpened(to_numpy(tensor.detach()))
            if not np.array_equal(sharp, value):
                value, self._sharp[id(tensor)] = sharp, torch.from_numpy(sharp)
        number = self.add(tensor, Node(kind, name, value, dtype=dtype or _dtype(tensor)))  # type: ignore[arg-type]
        self.recording.held[number] = tensor
        if tensor.dtype == torch.float32 and not isinstance(tensor, nn.Parameter) and kind != "input":
            self.recording.rounded.append(number)
        return number

    def number(self, tensor: Tensor) -> int:
        """Which node a tensor is."""
        found = self._of.get(id(tensor))
        return self.leaf(tensor.detach(), "constant", "") if found is None else found

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        where = self._where()
        named = dict(kwargs or {})
        given, spec = pytree.tree_flatten((tuple(args), named))
        refs = [Ref(self._seen(one)) if isinstance(one, Tensor) else one for one in given]
        if self._wide:
            given = [self._sharp.get(id(one), _widened(one)) for one in given]
        taken, named = pytree.tree_unflatten(given, spec)
        if self._wide and named.get("dtype") in _NARROW:
            if named["dtype"] != torch.float32 and any(isinstance(one, Tensor) for one in given):
                self.recording.narrowed.setdefault(str(where), str(named["dtype"]).removeprefix("torch."))
            named["dtype"] = torch.float64
        if self._wide and str(func) in WIDER:
            func = Wider(func, WIDER[str(func)])  # type: ignore[assignment]
        out = func(*taken, **named)
        shown, calls = pytree.tree_unflatten(refs, spec)
        inputs = tuple(ref.number for ref in refs if isinstance(ref, Ref))
        outputs = tuple(
            self._made(one, func, inputs, where) if isinstance(one, Tensor) else None for one in pytree.tree_leaves(out)
        )
        writes = func._schema.is_mutable
        if "dtype" in named:
            calls["dtype"] = named["dtype"]
        self.recording.calls.append(Called(func, shown, calls, outputs, where, writes))
        if writes:
            self._written([one for one in given if isinstance(one, Tensor)], inputs, where)
        if "rand" in func.__name__ or "dropout" in func.__name__ or "bernoulli" in func.__name__:
            self.recording.random += [number for number in outputs if number is not None]
        return out

    def _seen(self, tensor: Tensor) -> int:
        found = self._of.get(id(tensor))
        if found is None:
            found = self.leaf(tensor, "constant", "")
        return found

    def _made(self, tensor: Tensor, func: torch._ops.OpOverload, inputs: tuple[int, ...], where: Where) -> int:
        name = str(func).removeprefix("aten.").removesuffix(".default")
        return self.add(tensor, Node("operation", name, _numbers(tensor), inputs, where, _dtype(tensor)))

    def _written(self, given: Sequence[Tensor], inputs: tuple[int, ...], where: Where) -> None:
        """What else lies in the memory that was written into is another tensor now."""
        places = {one.untyped_storage().data_ptr() for one in given[:1]}
        for tensor in {id(one): one for one in self._kept}.values():
            number = self._of[id(tensor)]
            if number not in inputs and tensor.untyped_storage().data_ptr() in places:
                value = _numbers(tensor)
                if not np.array_equal(value, self.recording.nodes[number].value, equal_nan=value.dtype.kind == "f"):
                    made = self.add(
                        tensor, Node("operation", "written", value, (number, *inputs), where, _dtype(tensor))
                    )
                    self.recording.again[made] = number
                    self.recording.shared |= {made, number, *inputs[:1]}

    def _where(self) -> Where:
        node: Any = torch._C._current_autograd_node()
        if node is not None:
            known = self._forward.get(node._sequence_nr(), Where())
            return Where(known.module, known.line, known.function, backward=True)
        found = here(self._path, LIBRARIES, depth=3)
        self._forward.setdefault(torch._C._autograd._get_sequence_nr() - 1, found)  # of the node that was made last
        return found

    def _path(self, it: object) -> str | None:
        if not isinstance(it, nn.Module):
            return None
        return self._paths.get(id(it), f"<{type(it).__name__}>")


def _widened(one: object) -> object:
    """Floating-point tensors in float64."""
    return one.to(torch.float64) if isinstance(one, Tensor) and one.dtype in _NARROW else one


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _numbers(tensor: Tensor) -> NumPyArray:
    with torch.utils._python_dispatch._disable_current_modes():
        return numbers(to_numpy(tensor.detach().resolve_conj().resolve_neg()))


def record(
    function: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    wide: bool,
    instead: Mapping[str, NumPyArray] = MappingProxyType({}),
    cotangents: Mapping[str, NumPyArray] = MappingProxyType({}),
) -> Recording:
    """Runs a program and gives what it did.

    Args:
        function: a module, or a function of tensors.
        args, kwargs: NumPy arrays and other values, which it is called with.
        wide: whether what is floating-point is computed in float64, whatever the program asks for.
        instead: other numbers for parameters, by name. Nothing is written into a module.
        cotangents: names of outputs and what they are multiplied by, summed, before the gradients of all parameters
            are computed; none: no gradients are.

    Raises:
        ValueError: a module in training mode.
    """
    modules = held(function)
    if any(module.training for module in modules.values()):
        raise ValueError("torch_module: expected evaluation mode, got one that is training: call its eval() first")
    paths = {id(one): below(name, path) for name, it in modules.items() for path, one in it.named_modules()}
    tape = _Tape(paths, wide)
    leaves = _Leaves()
    for kind, name, tensor in parameters(modules):
        # operators may ask for one dtype before they are seen here; buffers are told by theirs
        changed = name in instead or (kind == "parameter" and (wide or bool(cotangents)))
        tape.leaf(leaves.of(tensor, instead.get(name), wide) if changed else tensor, "parameter", name, _dtype(tensor))
        if kind != "parameter":
            tape.recording.buffers |= {name}
        if kind == "computed":
            tape.recording.computed |= {name}
    given, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    paths_given = names((tuple(args), dict(kwargs)))
    arrays = [torch.tensor(one) if hasattr(one, "__array__") else one for one in given]
    if wide:  # operators that are differentiated ask for one dtype before they are seen here
        arrays = [_widened(one) for one in arrays]
    for name, one in zip(paths_given, arrays, strict=True):
        if isinstance(one, Tensor):
            tape.leaf(one, "input", name)
    taken, named = pytree.tree_unflatten(arrays, spec)
    with ExitStack() as stack:
        default = torch.get_default_dtype()
        if wide:
            torch.set_default_dtype(torch.float64)
            stack.callback(torch.set_default_dtype, default)
        stack.enter_context(torch.enable_grad() if cotangents else torch.no_grad())
        stack.enter_context(tape)
        stack.enter_context(taken_apart())
        with leaves if leaves.instead else nullcontext():
            out = function(*taken, **named)
        outputs = {name: one for name, one in tensors(out) if one.is_floating_point()}
        for name, one in outputs.items():
            tape.recording.outputs[name] = tape.number(one)
        if cotangents:
            _backward(tape, {name: outputs[name] for name in cotangents}, cotangents)
    return tape.recording


class _Leaves(TorchFunctionMode):
    """Puts other tensors in the place of parameters, wherever a program names them."""

    def __init__(self) -> None:
        super().__init__()
        self.instead: dict[int, Tensor] = {}

    def of(self, tensor: Tensor, numbers: NumPyArray | None, wide: bool) -> Tensor:
        """What stands in the place of a parameter: its numbers, or others."""
        with torch.no_grad():
            made = tensor.detach().clone() if numbers is None else torch.from_numpy(numbers)
            made = made.to(torch.float64 if wide and tensor.dtype in _NARROW else tensor.dtype)
        self.instead[id(tensor)] = made.requires_grad_(made.is_floating_point())
        return made

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        def replaced(one: object) -> object:
            return self.instead.get(id(one), one) if isinstance(one, Tensor) else one

        taken, named = pytree.tree_map(replaced, (tuple(args), dict(kwargs or {})))
        return func(*taken, **named)


def _backward(tape: _Tape, outputs: Mapping[str, Tensor], cotangents: Mapping[str, NumPyArray]) -> None:
    """Computes the gradients of what parameters there are; an output that depends on none has none."""
    leaves = {name: tape.recording.held[number] for name, number in tape.recording.parameters.items()}
    wanted = {name: one for name, one in leaves.items() if one.requires_grad}
    ends = {name: one for name, one in outputs.items() if one.requires_grad}
    given = [torch.from_numpy(cotangents[name]).to(one.dtype) for name, one in ends.items()]
    for name, one in zip(ends, given, strict=True):
        tape.leaf(one, "input", f"cotangent of {name}".rstrip())
    if not ends or not wanted:
        return
    found = torch.autograd.grad(list(ends.values()), list(wanted.values()), given, allow_unused=True)
    for name, gradient in zip(wanted, found, strict=True):
        if gradient is not None:
            tape.recording.gradients[name] = tape.number(gradient)
