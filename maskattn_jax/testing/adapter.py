"""This twin as the parity suite sees it: NumPy in, NumPy out, gradients by jax.vjp. Stateless."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskattn.arrays import to_numpy
from maskattn.parity.attention.adapters import Arrays
from maskattn.parity.attention.case import Case
from maskattn.parity.attention.twin_adapter import TwinAdapter
from maskattn.typing import NumPyArray
from maskattn_jax import functional, lower, multihead, params
from maskattn_jax.kernels import KERNELS

__all__ = ["ADAPTER", "Adapter", "from_numpy", "to_numpy"]


def from_numpy(array: NumPyArray) -> jax.Array:
    """A JAX array of the array's dtype (float64 within `jax.enable_x64` only)."""
    return jnp.asarray(np.ascontiguousarray(array))


@dataclass(frozen=True)
class Adapter(TwinAdapter):
    """See `TwinAdapter`. `mode`: "eager"; "jit", the call and its gradients under one `jax.jit`, given the mask as the
    bool array this twin lowers it to, so that masks of one shape share a compilation; "jit-mask", the same with the
    mask object itself as the argument; or "disable_jit".

    "gpu" is the first that JAX names.

    `empty_rows="error"` cannot be checked under a jit whose argument is the mask: such cases run eagerly.
    """

    mode: str = "jit"
    name: str = "jax"

    kernels = KERNELS

    def without(self) -> str:
        """Why there is no such device for JAX, "" where there is."""
        try:
            return "" if jax.devices(self.device) else f"JAX sees no {self.device}"
        except RuntimeError:
            return f"JAX {jax.__version__} sees no GPU, but {', '.join(map(str, jax.devices()))}"

    def _run_attention(self, case: Case, differentiated: Arrays, cotangent: Arrays | None) -> Arrays:
        arrays = {name: from_numpy(array) for name, array in differentiated.items()}
        given = None
        if cotangent is not None:
            given = tuple(from_numpy(cotangent[name]) for name in ("output", "lse"))
        s, mask = case.shape, case.mask
        dense = None if mask is None else _lowered(mask, s.q_len, s.kv_len, s.batch, s.heads)
        jitted = self.mode in ("jit", "jit-mask") and case.empty_rows != "error"
        if self.mode == "jit" and jitted:
            mask = dense
        bias, key, options = None if "bias" in arrays else case.bias, from_numpy(case.dropout_key), self.options(case)
        outputs, gradients = (_compiled if jitted else _attend)(arrays, mask, bias, key, given, tuple(options.items()))
        results = {name: to_numpy(x) for name, x in zip(("output", "lse"), outputs, strict=False)}
        results |= {} if dense is None else {"mask": to_numpy(dense)}
        return results | {f"d_{name}": to_numpy(grad) for name, grad in gradients.items()}

    @contextlib.contextmanager
    def _settings(self, case: Case) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if case.dtype == "float64":
                stack.enter_context(jax.enable_x64(True))
            if self.mode == "disable_jit":
                stack.enter_context(jax.disable_jit())
            if self.device != jax.default_backend():
                stack.enter_context(jax.default_device(jax.devices(self.device)[0]))
            yield

    def _run_module(self, case: Case, inputs: Arrays, weights: Arrays, cotangent: Arrays | None) -> Arrays:
        assert case.config is not None
        dtype = jnp.dtype(case.numpy_dtype)
        module = multihead.MultiHeadAttention(case.config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
        params.load(module, weights)
        names = ["query"] if inputs["key"] is inputs["query"] else ["query", "key", "value"]
        arrays = {name: from_numpy(inputs[name]) for name in names}
        graph, state, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

        def forward(state: object, arrays: dict[str, jax.Array]) -> jax.Array:
            module = nnx.merge(graph, state, rest)
            key = from_numpy(case.dropout_key)
            given: Any = {"mask": case.mask, "bias": case.bias, "dropout_key": key, "kernel": self.kernel}
            return module(*(arrays[name] for name in names), **given)

        def both(state: object, arrays: dict[str, jax.Array], d_output: jax.Array | None) -> tuple[jax.Array, Any]:
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
    arrays: dict[str, jax.Array], mask: Any, bias: Any, key: jax.Array, cotangent: Any, options: tuple[Any, ...]
) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
    """((output, lse) or (output,), gradients by name: {} without a cotangent)."""

    def forward(arrays: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        added = replace(bias, table=arrays["table"]) if "table" in arrays else bias
        given = {"bias": arrays.get("bias", added), "sinks": arrays.get("sinks"), "dropout_key": key, **dict(options)}
        outputs = functional.attention(arrays["query"], arrays["key"], arrays["value"], mask, **given)
        return outputs if given["return_lse"] else (outputs,)

    if cotangent is None:
        return forward(arrays), {}
    results, pull = jax.vjp(forward, arrays)
    return results, pull(cotangent[: len(results)])[0]


_compiled = functools.partial(jax.jit, static_argnums=5)(_attend)

#: One compilation a mask, where every operation of it would be one.
_lowered = jax.jit(lower.to_dense, static_argnums=(1, 2, 3, 4))

ADAPTER = Adapter()
