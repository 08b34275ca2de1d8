"""The suite is itself tested: known mistakes, planted in either twin one at a time; each must be caught.

A fault either changes what the twin is given (another mask, exchanged weights) or patches the twin's own code while it
runs (its reference kernel, or a function inside it). Nothing stays changed afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from maskattn import masks
from maskattn.parity.attention import adapters, run
from maskattn.parity.attention.adapters import Arrays
from maskattn.parity.attention.case import Case
from maskattn.parity.attention.cases import get
from maskattn.typing import NumPyArray as Array


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
      name, description: what is done wrong.
      cases: ids of the registry's cases that are run; at least one must fail.
      mask: changes the case's mask (bound to no framework yet); None leaves it.
      weights: changes a module's canonical weights.
      results: changes what the twin returns.
      kernel: (true kernel, framework) -> a kernel to run in its place.
      internals: names in the twin's reference kernel -> what replaces them, given the framework and what was there.
      module: the same for names in the twin's modules.
      uses: the kernel that is run.
    """

    name: str
    description: str
    cases: tuple[str, ...]
    mask: Callable[[masks.Mask, Case], masks.Mask] | None = None
    weights: Callable[[dict[str, Array]], dict[str, Array]] | None = None
    results: Callable[[dict[str, Array]], dict[str, Array]] | None = None
    kernel: Callable[[Any, Any], Callable[..., Any]] | None = None
    internals: dict[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    module: dict[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    uses: str = "reference"


class TwinArrays:
    """The few array functions that a planted kernel needs, of a twin's framework."""

    def __init__(self, twin: str) -> None:
        self.name = twin
        self.arrays = importlib.import_module({"torch": "torch", "jax": "jax.numpy"}[twin])
        self.lower = importlib.import_module(f"maskattn_{twin}.lower")
        self.dropout = importlib.import_module(f"maskattn_{twin}.dropout")

    def exp(self, x: object) -> Any:
        """The exponential."""
        return self.arrays.exp(x)

    def matmul(self, a: object, b: object, precision: str) -> Any:
        """a @ b."""
        return self.arrays.matmul(a, b)

    def through_float16(self, x: Any) -> Any:
        """x rounded to float16 and back."""
        if self.name == "torch":
            return x.half().to(x.dtype)
        return x.astype("float16").astype(x.dtype)

    def bind(self, given: Any, like: Any) -> Any:
        """A mask or bias bound to the framework, on the device of `like`."""
        return self.lower.bind(given, device=like.device) if self.name == "torch" else self.lower.bind(given)


class Faulty:
    """A twin's adapter with a fault planted in it, under the twin's own name: a fault does not declare itself."""

    def __init__(self, adapter: Any, fault: Fault) -> None:
        self.adapter, self.fault = adapter, fault
        self.name: str = adapter.name
        self.conventions: dict[str, str] = adapter.conventions

    def unsupported(self, case: Case) -> list[str]:
        """As the twin."""
        return list(self.adapter.unsupported(case))

    def run(self, case: Case, inputs: Arrays, weights: Arrays | None = None, cotangent: Arrays | None = None) -> Arrays:
        """As the twin, wrongly."""
        if self.fault.mask is not None and case.mask is not None:
            case = replace(case, mask=self.fault.mask(case.mask, case))
        if self.fault.weights is not None and weights is not None:
            weights = self.fault.weights(weights)
        with _patched(self.adapter.name, self.adapter.kernel, self.fault):
            results = self.adapter.run(case, inputs, weights, cotangent)
        results.pop("mask", None)  # a wrong mask must show in the numbers, not only where it is printed
        return results if self.fault.results is None else self.fault.results(results)


@contextlib.contextmanager
def _patched(twin: str, kernel: str, fault: Fault) -> Iterator[None]:
    functional = importlib.import_module(f"maskattn_{twin}.functional")
    framework, original = TwinArrays(twin), functional.KERNELS[kernel]
    multihead = importlib.import_module(f"maskattn_{twin}.multihead")
    made = [(original, name, make) for name, make in fault.internals.items()]
    made += [(multihead, name, make) for name, make in fault.module.items()]
    kept = [(place, name, getattr(place, name)) for place, name, _ in made]
    try:
        for place, name, make in made:
            setattr(place, name, make(framework, getattr(place, name)))
        if fault.kernel is not None:
            attend = fault.kernel(original.attention, framework)
            functional.KERNELS[kernel] = SimpleNamespace(attention=attend, unsupported=original.unsupported)
        yield
    finally:
        functional.KERNELS[kernel] = original
        for place, name, value in kept:
            setattr(place, name, value)


def _adapter(fault: Fault, twin: str) -> Any:
    """The twin, run eagerly where a compiled program would hide what is patched (or outlive it)."""
    patched = fault.kernel is not None or fault.internals or fault.module or fault.weights is not None
    return adapters.twin(twin, fault.uses, **({"mode": "eager"} if patched else {}))


def caught(fault: Fault, twin: str) -> list[str]:
    """The checks that saw the fault in this twin, each once; [] where it went unseen."""
    adapter = _adapter(fault, twin)
    other = [] if fault.uses == "reference" else [adapters.NumpyExact()]
    seen: dict[str, None] = {}
    for case_id in fault.cases:
        for outcome in run.run_case(get(case_id), [*other, Faulty(adapter, fault)], fault.uses):
            if outcome.status == "error":
                seen["error"] = None
            seen |= {finding.check: None for finding in outcome.findings if not finding.held}
    return list(seen)


def clean(fault: Fault, twin: str) -> list[str]:
    """The same cases in the same way with nothing planted: what fails (nothing should)."""
    adapter = _adapter(fault, twin)
    nothing = Fault(fault.name, "nothing", fault.cases)
    outcomes = [o for name in fault.cases for o in run.run_case(get(name), [Faulty(adapter, nothing)], fault.uses)]
    return [line for outcome in outcomes for line in outcome.failures]
