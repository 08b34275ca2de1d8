"""What the adapters of both twins share: which arrays of a case they differentiate, and the arguments that it sets."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

from maskattn.parity.attention.adapters import CONVENTIONS, Arrays
from maskattn.parity.attention.case import Case


@dataclass(frozen=True)
class TwinAdapter:
    """The adapter of a twin, but for its arrays: a twin defines `_run_attention` and `_run_module`.

    Attributes:
        kernel: handed to attention and modules.
        mode: how the twin's framework runs it.
        device: "cpu" or "gpu": where it runs, whatever the framework would choose.
        blocks: the size of tiles, queries by keys, in calls of attention; modules and None leave it to the kernel.
        conventions: the library's own, but for what the kernel declares.
    """

    kernel: str = "reference"
    mode: str = "eager"
    name: str = ""
    blocks: tuple[int, int] | None = None
    device: str = "cpu"
    conventions: dict[str, str] = field(default_factory=lambda: dict(CONVENTIONS), hash=False)

    kernels: ClassVar[Mapping[str, ModuleType]]

    def __post_init__(self) -> None:
        declared = getattr(self.kernels[self.kernel], "CONVENTIONS", {})
        vars(self)["conventions"] = {**self.conventions, **declared}

    def unsupported(self, case: Case) -> list[str]:
        """Every reason why this case cannot be run: it runs every case, or its kernel says why not."""
        return []

    def without(self) -> str:
        """Why there is no such device for this twin, "" where there is."""
        raise NotImplementedError

    def run(self, case: Case, inputs: Arrays, weights: Arrays | None = None, cotangent: Arrays | None = None) -> Arrays:
        """As `maskattn.parity.attention.adapters.Adapter.run`."""
        with self._settings(case):
            if case.config is not None:
                return self._run_module(case, inputs, weights or {}, cotangent)
            names = ["query", "key", "value", *(["bias"] if isinstance(case.bias, str) else []), "sinks", "table"]
            return self._run_attention(case, {name: inputs[name] for name in names if name in inputs}, cotangent)

    def options(self, case: Case) -> dict[str, Any]:
        """The keyword arguments of attention that are no arrays."""
        return {
            "scale": case.scale,
            "softcap": case.softcap,
            "dropout_rate": case.dropout_rate,
            "dropout_broadcast": case.dropout_broadcast,
            "empty_rows": case.empty_rows,
            "kernel": self.kernel,
            "return_lse": self.conventions["lse"] == "given",
            "blocks": self.blocks,
        }

    def _settings(self, case: Case) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _run_attention(self, case: Case, differentiated: Arrays, cotangent: Arrays | None) -> Arrays:
        raise NotImplementedError

    def _run_module(self, case: Case, inputs: Arrays, weights: Arrays, cotangent: Arrays | None) -> Arrays:
        raise NotImplementedError
