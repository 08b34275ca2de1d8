"""What the suite runs: adapters. One speaks NumPy at its boundary and keeps no state.

    class Adapter:
        name: str
        conventions: dict[str, str]
        def unsupported(self, case) -> list[str]: ...
        def run(self, case, inputs, weights=None, cotangent=None) -> dict[str, numpy.ndarray]: ...

`inputs` holds query, key, value, mask (dense bool [B, H, L, S], True = may attend) and, where the case has them, bias,
sinks and keep (dense bool, True = not dropped; the rate and the key are the case's); `weights` the canonical parameters
of a module's case. Results: output, lse and, where a cotangent is given, d_query, d_key, d_value, d_bias, d_sinks and
d_table (for a module: output, d_query, where they are separate inputs d_key and d_value, and `d_` + name for each of
its weights). What a case asks for by mistake must raise, not return.

`conventions` declares where an implementation is known to differ: `empty_rows` (the policy it has whatever is asked),
`causal_alignment` ("start" or "end"), `nan_masked` ("kept out" or "leaks"), `lse` ("given" or "none"), `narrow`
("float32 inside", or "rounded inside": what bfloat16 and float16 are computed in).
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, Protocol, runtime_checkable

import numpy as np

from maskattn.parity.attention.case import Case
from maskattn.typing import NumPyArray

Arrays = dict[str, NumPyArray]

#: What the library itself promises.
CONVENTIONS = {
    "empty_rows": "as asked",
    "causal_alignment": "start",
    "nan_masked": "kept out",
    "lse": "given",
    "narrow": "float32 inside",
}

#: The implementations that are judged when none is named: loaded when used, so that nothing imports both by itself.
TWINS = {"torch": "maskattn_torch.testing.adapter:ADAPTER", "jax": "maskattn_jax.testing.adapter:ADAPTER"}

#: The tiles in which the twins' blockwise kernels are judged, queries by keys; by themselves they would take a case of
#: the suite in one. Every shape of `cases` but the smallest has several, and the last of a row or column is padded.
TILES = (7, 5)


@runtime_checkable
class Adapter(Protocol):
    """An implementation of attention as the suite sees it."""

    name: str
    conventions: dict[str, str]

    def unsupported(self, case: Case) -> list[str]:
        """Every reason why this case cannot be run; [] where it can."""
        ...

    def run(self, case: Case, inputs: Arrays, weights: Arrays | None = None, cotangent: Arrays | None = None) -> Arrays:
        """The results of a case, NumPy arrays of the case's dtype (lse: float64 for float64, else float32)."""
        ...


def load(spec: str) -> Adapter:
    """The adapter that `pkg.mod:ATTRIBUTE` names (an instance, or a class that is then called without arguments).

    Raises:
        ValueError: the text has another form.
        ImportError, AttributeError: there is no such module or attribute.
        TypeError: it is no adapter: what is missing is named.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"an adapter is named pkg.mod:ATTRIBUTE, got {spec!r}")
    loaded = getattr(importlib.import_module(module_name), attribute)
    adapter = loaded() if isinstance(loaded, type) else loaded
    if not hasattr(adapter, "name"):
        adapter = _Named(adapter, spec)
    missing = [name for name in ("conventions", "unsupported", "run") if not hasattr(adapter, name)]
    if missing:
        raise TypeError(f"{spec} is no adapter: it has no {', '.join(missing)}")
    unknown = set(adapter.conventions) - set(CONVENTIONS)
    if unknown:
        known = ", ".join(CONVENTIONS)
        raise TypeError(f"{spec} declares unknown conventions {', '.join(sorted(unknown))}; known: {known}")
    return adapter


class _Named:
    """An adapter that has no name, under the text that it was loaded by."""

    def __init__(self, adapter: object, name: str) -> None:
        self._adapter, self.name = adapter, name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._adapter, attribute)


def twin(name: str, kernel: str = "reference", **options: object) -> Adapter:
    """One of `TWINS` with this kernel, blockwise in small tiles on a CPU; `options` are fields of its adapter."""
    on_gpu = options.get("device") == "gpu"
    if kernel == "blockwise" and not on_gpu:
        options = {"blocks": TILES, **options}
    if kernel == "blockwise" and on_gpu:  # as the vendors do, weights of 16 bits go into the product with values
        options = {"conventions": {**CONVENTIONS, "narrow": "rounded inside"}, **options}
    if name == "jax" and on_gpu and kernel not in ("exact", "reference"):
        options = {"mode": "jit-mask", **options}  # kernels that read more of a mask than its entries
    return dataclasses.replace(load(TWINS[name]), kernel=kernel, **options)  # type: ignore[type-var]


def twins(kernel: str = "reference", **options: object) -> list[Adapter]:
    """Both twins: see `twin`."""
    return [twin(name, kernel, **options) for name in TWINS]


class NumpyExact:
    """The shared exact arithmetic run by NumPy itself: the third party to tier 1, with no framework in it."""

    name = "numpy"
    conventions = CONVENTIONS

    def unsupported(self, case: Case) -> list[str]:
        """Every reason why this case cannot be run: it runs every case."""
        return []

    def run(self, case: Case, inputs: Arrays, weights: Arrays | None = None, cotangent: Arrays | None = None) -> Arrays:
        """As `Adapter.run`."""
        from maskattn.numerics import exact
        from maskattn.numerics.exact.table import row_sums
        from maskattn.parity.attention import numpy_module
        from maskattn.parity.attention.arrays import bias_rows
        from maskattn.parity.attention.checks import options

        if case.config is not None:
            return numpy_module.run(case, inputs, weights or {}, cotangent)
        if case.must_raise:
            raise ValueError("empty_rows='error': a row may attend to nothing")
        given = options(case, inputs) | {"dropout_rate": case.dropout_rate, "dropout_key": case.dropout_key}
        given["dropout_broadcast"] = case.dropout_broadcast
        arrays = (inputs["query"], inputs["key"], inputs["value"], inputs["mask"])
        output, lse = exact.attention(*arrays, **given)
        results = {"output": np.asarray(output), "lse": np.asarray(lse)}
        if cotangent is None:
            return results
        gradients = exact.attention_backward(*arrays, cotangent["output"], cotangent["lse"], **given)
        for name, gradient in zip(("d_query", "d_key", "d_value", "d_bias", "d_sinks"), gradients, strict=True):
            if gradient is not None and (name != "d_bias" or isinstance(case.bias, str)):
                results[name] = np.asarray(gradient)
        if case.table is not None:
            numbers = np.arange(len(case.table))
            rows = bias_rows(case.bias, case.shape)
            results["d_table"] = np.asarray(row_sums(exact.NumpyOps(), gradients[3], rows, numbers))
        return results


def standard(kernel: str, device: str = "cpu") -> list[Adapter]:
    """What is judged when nothing is named: both twins on this device, and for "exact" NumPy as the third party."""
    return [*twins(kernel, device=device), *([NumpyExact()] if kernel == "exact" else [])]
