"""What a program did: each operation with its result, what it was made from, and where in the code it stands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import FrameType
from typing import Literal, TypeAlias

import numpy as np

from maskattn.typing import NumPyArray

Kind: TypeAlias = Literal["operation", "parameter", "input", "constant"]


@dataclass(frozen=True)
class Where:
    """A place in a program.

    Attributes:
        module: path of the module that was running, "layers.1.mlp"; class names where it has no path; "".
        line: of the program's own code, outside the framework: "model.py:21".
        function: that the line is in.
        backward: whether it belongs to the pass backward.
    """

    module: str = ""
    line: str = ""
    function: str = ""
    backward: bool = False

    def __str__(self) -> str:
        code = f"{self.line} {self.function}".strip()
        way = "backward of " if self.backward else ""
        return way + (f"{self.module} ({code})" if self.module and code else self.module or code)


@dataclass(eq=False)
class Node:
    """A tensor of a program.

    Attributes:
        kind: what it is; "constant" is one that comes from outside and has no name.
        name: the operation, as the framework calls it, or the name of a parameter or an input.
        value: its numbers; floating-point ones as float64 where that holds them.
        inputs: numbers of the nodes that it was made from, each smaller than its own.
        where: which code made it.
        dtype: that the program has it in; of an operation that was computed in float64 instead, that one.
    """

    kind: Kind
    name: str
    value: NumPyArray
    inputs: tuple[int, ...] = ()
    where: Where = Where()
    dtype: str = ""


@dataclass(eq=False)
class Trace:
    """A program's run.

    Attributes:
        nodes: all tensors, in the order in which they were made.
        outputs: names and numbers of what the program gave; names are paths in the structure that it returned.
        gradients: names of parameters and the numbers of their gradients, where they were asked for.
        buffers: those of the parameters that are not trained. computed: those of the buffers that no checkpoint holds.
        narrowed: places where fewer bits than float32 are asked for and float64 was used, and what is asked for.
        random: numbers of the nodes that were drawn at random.
    """

    nodes: list[Node] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)
    gradients: dict[str, int] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    computed: frozenset[str] = frozenset()
    narrowed: dict[str, str] = field(default_factory=dict)
    random: list[int] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, int]:
        """Names and numbers of the parameters."""
        return {node.name: number for number, node in enumerate(self.nodes) if node.kind == "parameter"}

    @property
    def unread(self) -> list[str]:
        """Parameters that no operation read."""
        read = {number for node in self.nodes for number in node.inputs} | set(self.outputs.values())
        return [name for name, number in self.parameters.items() if number not in read]


def numbers(array: NumPyArray) -> NumPyArray:
    """A copy of an array; floating-point numbers in float64."""
    if array.dtype.kind == "f" or array.dtype.name in ("bfloat16",) or array.dtype.name.startswith("float8"):
        return np.array(array, np.float64)
    return np.array(array)


# Where code stands ----------------------------------------------------------------------------------------------------

_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ROOTS = tuple(os.path.join(path, "") for path in (os.path.dirname(os.__file__), _OWN, f"{_OWN}_torch", f"{_OWN}_jax"))


@lru_cache(maxsize=4096)
def of_program(name: str, libraries: tuple[str, ...]) -> bool:
    """Whether a file is the program's own, or one of Python, of this library, or of these libraries."""
    if name.startswith("<"):
        return not name.startswith("<frozen")
    if any(f"{os.sep}{library}{os.sep}" in name for library in libraries):
        return False
    return "site-packages" in name or not name.startswith(_ROOTS)


def here(path: Callable[[object], str | None], libraries: tuple[str, ...], depth: int = 2) -> Where:
    """Where the program stands that has called this, through a framework.

    Args:
        path: the path of an object, where it is a module of the program; None where it is none.
        libraries: names of packages whose code is not the program's.
        depth: how many frames are the caller's own.
    """
    frame: FrameType | None = sys._getframe(depth)
    line = function = ""
    modules: list[str] = []
    placed = False
    while frame is not None and not (placed and line):
        code = frame.f_code
        if not line and of_program(code.co_filename, libraries):
            line, function = f"{os.path.basename(code.co_filename)}:{frame.f_lineno}", code.co_qualname
        if code.co_argcount and not placed:
            found = path(frame.f_locals.get(code.co_varnames[0]))
            if found is not None and (not modules or modules[-1] != found):
                modules.append(found)
                placed = bool(found) and not found.startswith("<")
        frame = frame.f_back
    return Where(_joined(modules), line, function)


def _joined(modules: Sequence[str]) -> str:
    """A path, and below it the classes of modules that have none."""
    return ".".join(module for module in reversed(modules) if module)
