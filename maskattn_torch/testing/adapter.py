"""This twin as the parity suite sees it: NumPy in, NumPy out, gradients by torch.autograd. Stateless."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from maskattn.arrays import to_numpy, to_torch
from maskattn.parity.attention.adapters import Arrays
from maskattn.parity.attention.case import Case
from maskattn.parity.attention.twin_adapter import TwinAdapter
from maskattn.typing import NumPyArray
from maskattn_torch import functional, lower, multihead, params
from maskattn_torch.kernels import KERNELS

__all__ = ["ADAPTER", "Adapter", "from_numpy", "to_numpy"]


def from_numpy(array: NumPyArray) -> torch.Tensor:
    """A tensor with a copy of the array's bytes, bfloat16 included."""
    tensor: torch.Tensor = to_torch(np.array(array, order="C"))
    return tensor


@dataclass(frozen=True)
class Adapter(TwinAdapter):
    """See `TwinAdapter`; `mode` is "eager" (PyTorch has no other here), "gpu" PyTorch's current CUDA device."""

    mode: str = "eager"
    name: str = "torch"

    kernels = KERNELS

    def without(self) -> str:
        """Why there is no such device for PyTorch, "" where there is."""
        missing = self.device == "gpu" and not torch.cuda.is_available()
        return f"PyTorch {torch.__version__} sees no CUDA device" if missing else ""

    def _array(self, array: NumPyArray) -> torch.Tensor:
        return from_numpy(array).to(self._place)

    @property
    def _place(self) -> torch.device:
        return torch.device("cuda" if self.device == "gpu" else "cpu")

    def _run_attention(self, case: Case, differentiated: Arrays, cotangent: Arrays | None) -> Arrays:
        arrays = {name: self._array(array).requires_grad_() for name, array in differentiated.items()}
        bias: Any = arrays["bias"] if "bias" in arrays else case.bias
        bias = replace(bias, table=arrays["table"]) if "table" in arrays else bias
        options = {"sinks": arrays.get("sinks"), "dropout_key": from_numpy(case.dropout_key), **self.options(case)}
        inputs = (arrays["query"], arrays["key"], arrays["value"])
        outputs: Any = functional.attention(*inputs, case.mask, bias=bias, **options)
        outputs = outputs if options["return_lse"] else (outputs,)
        results = {name: to_numpy(x) for name, x in zip(("output", "lse"), outputs, strict=False)}
        if case.mask is not None:
            s = case.shape
            results["mask"] = to_numpy(
                lower.to_dense(case.mask, s.q_len, s.kv_len, s.batch, s.heads, device=self._place)
            )
        if cotangent is not None:
            given = [self._array(cotangent[name]) for name in ("output", "lse")[: len(outputs)]]
            gradients = torch.autograd.grad(outputs, list(arrays.values()), given, materialize_grads=True)
            results |= {f"d_{name}": to_numpy(grad) for name, grad in zip(arrays, gradients, strict=True)}
        return results

    def _run_module(self, case: Case, inputs: Arrays, weights: Arrays, cotangent: Arrays | None) -> Arrays:
        assert case.config is not None
        dtype = from_numpy(inputs["query"]).dtype
        module = multihead.MultiHeadAttention(case.config, device=self._place, dtype=dtype)
        params.load(module, weights)
        names = ["query"] if inputs["key"] is inputs["query"] else ["query", "key", "value"]
        arrays = {name: self._array(inputs[name]).requires_grad_() for name in names}
        key = from_numpy(case.dropout_key)
        given: dict[str, Any] = {"mask": case.mask, "bias": case.bias, "dropout_key": key, "kernel": self.kernel}
        output = module(*arrays.values(), **given)
        results = {"output": to_numpy(output)}
        if cotangent is not None:
            output.backward(self._array(cotangent["output"]))
            results |= {f"d_{name}": to_numpy(array.grad) for name, array in arrays.items()}
            with torch.no_grad():
                for parameter in module.parameters():
                    assert parameter.grad is not None
                    parameter.copy_(parameter.grad)
            results |= {f"d_{name}": np.asarray(grad) for name, grad in params.dump(module).items()}
        return results


ADAPTER = Adapter()
