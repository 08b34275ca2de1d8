"""This twin as the parity suite sees it: NumPy in, NumPy out, gradients by jax.vjp. Stateless."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskattn.parity.attention.adapters import CONVENTIONS
from maskattn.parity.attention.case import Case
from maskattn_jax import functional, lower, multihead, params
from maskattn_jax.dropout import Dropout
from maskattn_jax.kernels import KERNELS

__all__ = ["ADAPTER", "Adapter", "from_numpy", "to_numpy"]


def from_numpy(array: np.ndarray[Any, Any]) -> jax.Array:
    """A JAX array of the array's dtype (float64 within `jax.enable_x64` only)."""
    return jnp.asarray(np.ascontiguousarray(array))


def to_numpy(array: jax.Array) -> np.ndarray[Any, Any]:
    """The array's bytes as a NumPy array, bfloat16 as that of ml_dtypes."""
    return np.asarray(array)


@dataclass(frozen=True)
class Adapter:
    """`kernel` is handed to attention and modules. `mode`: "eager"; "jit", the call and its gradients under one
    `jax.jit`, given the mask as the bool array this twin lowers it to, so that masks of one shape share a compilation;
    "jit-mask", the same with the mask object itself as the argument; or "disable_jit". `blocks`: the size of tiles,
    queries by keys, in calls of attention (modules choose); None leaves it to the kernel.

    `empty_rows="error"` cannot be checked under a jit whose argument is the mask: such cases run eagerly.
    """

    kernel: str = "reference"
    mode: str = "jit"
    name: str = "jax"
    blocks: tuple[int, int] | None = None
    conventions: dict[str, str] = field(default_factory=lambda: dict(CONVENTIONS), hash=False)

    def __post_init__(self) -> None:
        declared = getattr(KERNELS[self.kernel], "CONVENTIONS", {})
        object.__setattr__(self, "conventions", {**self.conventions, **declared})

    def unsupported(self, case: Case) -> list[str]:
        """Every reason why this case cannot be run: it runs every case, or its kernel says why not."""
        return []

    def run(
        self,
        case: Case,
        inputs: dict[str, np.ndarray[Any, Any]],
        weights: dict[str, np.ndarray[Any, Any]] | None = None,
        cotangent: dict[str, np.ndarray[Any, Any]] | None = None,
    ) -> dict[str, np.ndarray[Any, Any]]:
        """As `maskattn.parity.attention.adapters.Adapter.run`."""
        with self._settings(case):
            if case.config is not None:
                return self._run_module(case, inputs, weights or {}, cotangent)
            arrays = self._differentiated(case, inputs)
            given = None
            if cotangent is not None:
                given = tuple(from_numpy(cotangent[name]) for name in ("output", "lse"))
            s, mask = case.shape, case.mask
            dense = None if mask is None else _lowered(mask, s.q_len, s.kv_len, s.batch, s.heads)
            jitted = self.mode in ("jit", "jit-mask") and case.empty_rows != "error"
            if self.mode == "jit" and jitted:
                mask = dense
            bias = None if "bias" in arrays else case.bias
            wants_lse = self.conventions["lse"] == "given"
            options = (case.scale, case.softcap, case.empty_rows, self.kernel, wants_lse, self.blocks)
            dropout = Dropout(case.dropout_rate, from_numpy(case.dropout_key), case.dropout_broadcast)
            found, gradients = (_compiled if jitted else _attend)(arrays, mask, bias, dropout, given, options)
            results = {name: to_numpy(x) for name, x in zip(("output", "lse"), found, strict=False)}
            results |= {} if dense is None else {"mask": to_numpy(dense)}
            return results | {f"d_{name}": to_numpy(grad) for name, grad in gradients.items()}

    def _differentiated(self, case: Case, inputs: dict[str, np.ndarray[Any, Any]]) -> dict[str, jax.Array]:
        names = ["query", "key", "value", *(["bias"] if isinstance(case.bias, str) else []), "sinks", "table"]
        return {name: from_numpy(inputs[name]) for name in names if name in inputs}

    @contextlib.contextmanager
    def _settings(self, case: Case) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if case.dtype == "float64":
                stack.enter_context(jax.enable_x64(True))
            if self.mode == "disable_jit":
                stack.enter_context(jax.disable_jit())
            yield

    def _run_module(
        self,
        case: Case,
        inputs: dict[str, np.ndarray[Any, Any]],
        weights: dict[str, np.ndarray[Any, Any]],
        cotangent: dict[str, np.ndarray[Any, Any]] | None,
    ) -> dict[str, np.ndarray[Any, Any]]:
        assert case.config is not None
        dtype = jnp.dtype(case.numpy_dtype)
        module = multihead.MultiHeadAttention(case.config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
        params.load(module, weights)
        names = ["query"] if inputs["key"] is inputs["query"] else ["query", "key", "value"]
        arrays = {name: from_numpy(inputs[name]) for name in names}
        graph, state, rest = nnx.split(module, nnx.Param, ...)

        def forward(state: Any, arrays: dict[str, jax.Array]) -> jax.Array:
            module = nnx.merge(graph, state, rest)
            key = from_numpy(case.dropout_key)
            given = {"mask": case.mask, "bias": case.bias, "dropout_key": key, "kernel": self.kernel}
            return module(*(arrays[name] for name in names), **given)

        def both(state: Any, arrays: dict[str, jax.Array], d_output: jax.Array | None) -> tuple[jax.Array, Any]:
            output, pull = jax.vjp(forward, state, arrays)
            return output, None if d_output is None else pull(d_output)

        d_output = None if cotangent is None else from_numpy(cotangent["output"])
        output, gradients = (jax.jit(both) if self.mode.startswith("jit") else both)(state, arrays, d_output)
        results = {"output": to_numpy(output)}
        if gradients is not None:
            d_state, d_arrays = gradients
            results |= {f"d_{name}": to_numpy(grad) for name, grad in d_arrays.items()}
            d_weights = params.dump(nnx.merge(graph, d_state, rest))
            results |= {f"d_{name}": np.asarray(grad) for name, grad in d_weights.items()}
        return results


def _attend(
    arrays: dict[str, jax.Array], mask: Any, bias: Any, dropout: Dropout, cotangent: Any, options: tuple[Any, ...]
) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
    """((output, lse) or (output,), gradients by name: {} without a cotangent)."""
    scale, softcap, empty_rows, kernel, wants_lse, blocks = options

    def forward(arrays: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        added = replace(bias, table=arrays["table"]) if "table" in arrays else bias
        found = functional.attention(
            arrays["query"],
            arrays["key"],
            arrays["value"],
            mask,
            bias=arrays.get("bias", added),
            scale=scale,
            softcap=softcap,
            sinks=arrays.get("sinks"),
            dropout_rate=dropout.rate,
            dropout_key=dropout.words,
            dropout_broadcast=dropout.shared,
            empty_rows=empty_rows,
            kernel=kernel,
            return_lse=wants_lse,
            blocks=blocks,
        )
        return found if wants_lse else (found,)

    if cotangent is None:
        return forward(arrays), {}
    results, pull = jax.vjp(forward, arrays)
    return results, pull(cotangent[: len(results)])[0]


_compiled = functools.partial(jax.jit, static_argnums=5)(_attend)

#: One compilation a mask, where every operation of it would be one.
_lowered = jax.jit(lower.to_dense, static_argnums=(1, 2, 3, 4))

ADAPTER = Adapter()
