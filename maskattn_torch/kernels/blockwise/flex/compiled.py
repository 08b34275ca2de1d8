"""What is compiled, how often, and for how long it is kept: no function that was to be compiled runs as it is.

PyTorch counts recompilations by the code of a function, and after 8 of them runs it uncompiled: FlexAttention would
then make the whole score matrix, with no more than a warning. So each kind of call has a function with code of its own
here, compiled once for each of the first few sizes and once more for all others, and bounded in number.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from types import FunctionType
from typing import NamedTuple

import torch
from torch import Tensor as Array

from maskattn.attention import KernelCannot

__all__ = ["Compiled", "CompileFailed", "KERNELS", "Kind", "refuse_uncompiled", "switched_off"]

#: What compiles: PyTorch's own compiler; tests put a quick one in its place.
BACKEND: str | Callable[..., Callable[..., object]] = "inductor"
#: So many sizes of a kind of call have a kernel of their own; all others share one.
SIZES = 3
#: So many layouts in memory of a kind of call; all others are copied.
LAYOUTS = 2
#: So many kernels are kept.
MOST = 64

_LOG = logging.getLogger("maskattn_torch")


class CompileFailed(KernelCannot):
    """FlexAttention could not be compiled for a call that it takes."""


class Kind(NamedTuple):
    """All that a kernel is compiled for, but for sizes and layouts."""

    what: str
    mask: Hashable
    scores: Hashable = None
    scale: float = 1.0
    softcap: float | None = None
    dtype: torch.dtype | None = None
    device: str = ""
    heads: tuple[int, ...] = ()
    gradients: tuple[bool, ...] = ()
    precision: str = ""


class Compiled:
    """Functions that are compiled, at most `MOST` of them: the ones that were used last.

    Attributes:
        counts: how many were "compiled", and how many of these "dropped".
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._functions: OrderedDict[_Place, Callable[..., tuple[Array, ...]]] = OrderedDict()
        self._sizes: dict[Kind, list[_Exact]] = {}
        self._lock = threading.RLock()
        self._warned = False

    def __call__(
        self, kind: Kind, function: Callable[..., tuple[Array, ...]], arrays: tuple[Array, ...], *rest: object
    ) -> tuple[Array, ...]:
        """`function(*arrays, *rest)`, compiled for calls of this kind, of which `arrays` may have any sizes.

        Raises:
            CompileFailed: PyTorch's compiler failed. KernelCannot: it did not compile, or too often.
        """
        place, arrays = self._place(kind, arrays)
        found = self._functions.get(place)
        if found is not None:
            with contextlib.suppress(KeyError):  # another thread has dropped it
                self._functions.move_to_end(place)
            return _run(kind, found, arrays, rest)
        with self._lock, _settings():
            found = self._functions.get(place)
            if found is not None:  # another thread has compiled it meanwhile
                return _run(kind, found, arrays, rest)
            self._announce()
            of_any_size = place.exact is None
            made = torch.compile(_own(function, place), fullgraph=True, dynamic=of_any_size, backend=BACKEND)
            results = _run(kind, made, arrays, rest)
            self.counts["compiled"] += 1
            self._functions[place] = made
            while len(self._functions) > MOST:
                self._drop()
        return results

    def __len__(self) -> int:
        return len(self._functions)

    def is_full(self) -> bool:
        """Whether as many are compiled as are kept."""
        return len(self._functions) >= MOST

    def has(self, kind: Kind) -> bool:
        """Whether a kernel for calls of this kind is kept."""
        return any([place.kind == kind for place in list(self._functions)])

    def clear(self) -> None:
        """Drop everything."""
        self._functions.clear()
        self._sizes.clear()

    def _place(self, kind: Kind, arrays: tuple[Array, ...]) -> tuple[_Place, tuple[Array, ...]]:
        """Which function serves these arrays, and the arrays as it takes them."""
        exact = _exact(arrays)
        sizes = self._sizes.setdefault(kind, [])
        if exact in sizes:
            return _Place(kind, exact), arrays
        layouts = {each.layout for each in (*sizes, exact)}
        if len(sizes) < SIZES and len(layouts) <= LAYOUTS:
            sizes.append(exact)
            return _Place(kind, exact), arrays
        arrays = tuple([_whole(x) for x in arrays])
        exact = _exact(arrays)
        if exact in sizes:
            return _Place(kind, exact), arrays
        return _Place(kind, None, tuple([_facts(x) for x in arrays])), arrays

    def _drop(self) -> None:
        place, _ = self._functions.popitem(last=False)
        if not self.has(place.kind):
            self._sizes.pop(place.kind, None)
        elif place.exact is not None and place.exact in self._sizes.get(place.kind, ()):
            self._sizes[place.kind].remove(place.exact)
        self.counts["dropped"] += 1
        if self._warned:
            return
        self._warned = True
        kinds = {place.kind for place in self._functions}
        differ = [name for name in Kind._fields if len({getattr(each, name) for each in kinds}) > 1]
        warnings.warn(
            f"{MOST} FlexAttention kernels are compiled, and the one that was not used for longest is dropped: calls "
            f"differ in {', '.join(differ) or 'their sizes'}",
            stacklevel=3,
        )

    def _announce(self) -> None:
        if not self.counts["compiled"]:
            _LOG.info(
                "FlexAttention is compiled, which takes some seconds for each kind of call; "
                'maskattn_torch.compile_flex = "never" keeps kernel="auto" from it'
            )


#: Those of this process.
KERNELS = Compiled()


def refuse_uncompiled() -> None:
    """Raise where no compiler reads along: FlexAttention would make the whole score matrix.

    Raises:
        KernelCannot: a ValueError.
    """
    if not torch.compiler.is_compiling():
        raise KernelCannot("blockwise", ["PyTorch did not compile FlexAttention: it would make all L x S scores"])


def switched_off() -> list[str]:
    """Why PyTorch compiles nothing now, or not with its own compiler; [] where it does."""
    reasons = []
    dynamo = torch._dynamo
    if getattr(dynamo.config, "disable", False):
        reasons.append("torch.compile is switched off (TORCHDYNAMO_DISABLE, TORCH_COMPILE_DISABLE)")
    stance = getattr(dynamo.eval_frame, "_stance", None)
    name, backend = getattr(stance, "stance", "default"), getattr(stance, "backend", None)
    if name not in ("default", "fail_on_recompile"):
        reasons.append(f"torch.compiler.set_stance({name!r}) keeps FlexAttention from being compiled")
    if backend not in (None, "inductor"):
        reasons.append(f"torch.compiler.set_stance has the backend {backend!r}, which does not compile FlexAttention")
    if not reasons and not dynamo.is_dynamo_supported():
        reasons.append("torch.compile does not run here")
    return reasons


class _Exact(NamedTuple):
    """Sizes and strides of arrays, and their layouts: strides but for the first axis, and whether that is packed."""

    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    layout: tuple[Hashable, ...]


class _Place(NamedTuple):
    """What one function is compiled for: these sizes, or all that have these facts in common."""

    kind: Kind
    exact: _Exact | None
    facts: tuple[Hashable, ...] = ()


def _exact(arrays: tuple[Array, ...]) -> _Exact:
    shapes, strides = tuple([tuple(x.shape) for x in arrays]), tuple([x.stride() for x in arrays])
    packed = [n.ndim < 2 or stride[0] == stride[1] * n.shape[1] for n, stride in zip(arrays, strides, strict=True)]
    return _Exact(shapes, strides, tuple([(stride[1:], one) for stride, one in zip(strides, packed, strict=True)]))


def _whole(x: Array) -> Array:
    """The array as a kernel for all sizes takes it: contiguous, and no part of a larger one, which is looked at too."""
    base = x._base
    if base is not None and (base.numel() != x.numel() or not base.is_contiguous()):
        return x.clone(memory_format=torch.contiguous_format)
    return x.contiguous()


def _facts(x: Array) -> Hashable:
    """What PyTorch's compiler looks at even where sizes are left open: sizes of 1, short ones, and views."""
    length = x.shape[1] if x.ndim > 1 else x.shape[0]
    return x.shape[0] == 1, length == 1, length < 128, length <= 128, None if x._base is None else x._base.ndim


def _own(function: Callable[..., tuple[Array, ...]], place: Hashable) -> Callable[..., tuple[Array, ...]]:
    """The function with code of its own."""
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{abs(hash(place)):x}")
    made = FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Where a function is compiled: numbers are constants, and sizes that are equal now are not taken to stay so."""
    from torch.fx.experimental import _config as sizes

    with contextlib.ExitStack() as stack:
        for config, options in (
            (torch._dynamo.config, {"specialize_int": True, "specialize_float": True}),
            (sizes, {"use_duck_shape": False}),
        ):
            stack.enter_context(config.patch({name: x for name, x in options.items() if hasattr(config, name)}))
        yield


def _run(
    kind: Kind, function: Callable[..., tuple[Array, ...]], arrays: tuple[Array, ...], rest: tuple[object, ...]
) -> tuple[Array, ...]:
    limit = getattr(torch._dynamo.exc, "FailOnRecompileLimitHit", ())
    failed = torch._dynamo.exc.BackendCompilerFailed
    try:
        return function(*arrays, *rest)
    except limit as error:
        said = f"PyTorch compiles no more FlexAttention kernels of {kind}: {error}"
        raise KernelCannot("blockwise", [said]) from error
    except failed as error:
        first = " ".join(str(error).split("\n")[:2])
        raise CompileFailed("blockwise", [f"FlexAttention could not be compiled for {kind}: {first}"]) from error
