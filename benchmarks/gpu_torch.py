"""The PyTorch half of gpu.py, which starts it: this library, SDPA's back ends, FlexAttention, varlen_attn."""

from __future__ import annotations

import inspect
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_problems import MASKS, Run, Size, arguments, documents_of, lengths_of, mask_of, pairs, window_of
from torch.nn.attention import SDPBackend, sdpa_kernel

import maskattn_torch

Call = Callable[..., torch.Tensor]
BACKENDS = {
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Half:
    def __init__(self, run: Run) -> None:
        self.run, self.dry = run, run.dry
        self.device = torch.device("cpu" if run.dry else "cuda")

    def array(self, x: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.as_tensor(x, device=self.device)

    def inputs(self, size: Size) -> list[torch.Tensor]:
        torch.manual_seed(0)
        shape = (size.batch, size.length, size.heads, size.width)
        made = [torch.randn(shape, device=self.device, dtype=torch.bfloat16) for _ in range(3)]
        return [x.requires_grad_() for x in made]

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], budget: float = 0.1) -> float:
        """The median of three groups of calls."""
        call()
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        count = max(1, min(40, int(budget / 3 / max(1e-6, time.perf_counter() - start))))
        found = []
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(count):
                call()
            self.wait()
            found.append((time.perf_counter() - start) / count)
        return statistics.median(found)

    def memory(self, call: Callable[[], Any]) -> float | None:
        """Megabytes above what was there before, at the peak of a call."""
        if self.dry:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del kept
        return round(peak / 2**20, 1)

    def measured(self, name: str, size: Size, function: Call, expected: torch.Tensor | None) -> dict[str, Any]:
        """Forward, and forward and backward; how far from what SDPA gives with a dense mask, where that fits."""
        qkv = self.inputs(size)
        start = time.perf_counter()
        with torch.no_grad():
            out = function(*qkv)
        self.wait()
        found: dict[str, Any] = {"first_s": round(time.perf_counter() - start, 3)}
        if expected is not None:
            found["apart"] = float((out - expected).abs().max())

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return function(*qkv)

        def both() -> Any:
            out = function(*qkv)
            return out, torch.autograd.grad(out, qkv, cotangent)

        cotangent = torch.randn_like(out)
        both()
        with self.run.alone():
            seconds = self.seconds(forward)
            found |= {"forward_ms": 1e3 * seconds, "tflops": 4 * pairs(name, size) * size.width / seconds / 1e12}
            found["both_ms"] = 1e3 * self.seconds(both)
        return found | {"forward_mb": self.memory(forward), "both_mb": self.memory(both)}

    def ours(self, kernel: str, name: str, size: Size) -> Call:
        mask = mask_of(name, size, self.array)
        return lambda q, k, v: maskattn_torch.attention(q, k, v, mask, kernel=kernel)  # type: ignore[arg-type]

    def sdpa(self, name: str, size: Size) -> Call:
        dense = None
        if name not in ("full", "causal"):
            dense = maskattn_torch.lower.allowed(mask_of(name, size, self.array), *self.sizes(size), device=self.device)

        def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=dense, is_causal=name == "causal"
            ).transpose(1, 2)

        return function

    def backend(self, which: SDPBackend, name: str, size: Size) -> Call:
        plain = self.sdpa(name, size)

        def function(*qkv: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(which):
                return plain(*qkv)

        return function

    def flex(self, name: str, size: Size) -> Call:
        if self.dry:
            raise NotImplementedError("FlexAttention has no backward pass on the CPU")
        from torch.nn.attention.flex_attention import flex_attention

        mask = mask_of(name, size, self.array)
        blocks = None if mask is None else maskattn_torch.lower.to_block_mask(mask, *self.sizes(size))
        compiled = torch.compile(flex_attention, dynamic=False)

        def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return compiled(q, k, v, block_mask=blocks).transpose(1, 2)

        return function

    def varlen(self, name: str, size: Size) -> Call:
        from torch.nn.attention.varlen import varlen_attn

        n, batch = size.length, size.batch
        window = {"window": (window_of(size) - 1, 0), "full": (-1, -1), "padding": (-1, -1)}.get(name, (-1, 0))
        if "window_size" in inspect.signature(varlen_attn).parameters:
            options: dict[str, Any] = {"window_size": window}
        elif name == "window":
            raise NotImplementedError("varlen_attn has no window here")
        else:
            options = {"is_causal": window[1] == 0}
        sizes = documents_of(size).ravel().tolist() if name == "documents" else [n] * batch
        starts = self.array(np.cumsum([0, *sizes]).astype(np.int32))
        key_starts, longest, keep = starts, max(sizes), None
        if name == "padding":  # the keys packed, the queries not
            real = lengths_of(size).tolist()
            key_starts, longest = self.array(np.cumsum([0, *real]).astype(np.int32)), max(real)
            keep = self.array(np.concatenate([np.arange(x) + i * n for i, x in enumerate(real)]))

        def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.reshape(batch * n, *x.shape[2:]) for x in (q, k, v))
            if keep is not None:
                k, v = k.index_select(0, keep), v.index_select(0, keep)
            return varlen_attn(q, k, v, starts, key_starts, max(sizes), longest, **options).view(
                batch, n, -1, size.width
            )

        return function

    def sizes(self, size: Size) -> tuple[int, int, int, int]:
        return size.batch, size.heads, size.length, size.length

    def contender(self, who: str, name: str, size: Size) -> Call:
        if who in BACKENDS:
            return self.backend(BACKENDS[who], name, size)
        made = {"sdpa": self.sdpa, "flex": self.flex, "varlen": self.varlen}
        return made[who](name, size) if who in made else self.ours(who, name, size)

    def one(self, who: str, name: str, size: Size, expected: dict[str, torch.Tensor]) -> None:
        def function() -> dict[str, Any]:
            found = {}
            if who == "auto":
                qkv, mask = self.inputs(size), mask_of(name, size, self.array)
                found["chosen"] = maskattn_torch.explain(*qkv, mask)[0]
            return found | self.measured(name, size, self.contender(who, name, size), expected.get(name))

        cost = 15.0 if who in ("flex", "blockwise", "auto") else 3.0
        self.run.case("speed", 0.0 if self.dry else cost, function, size=size.name, mask=name, who=who)

    def tiny(self) -> dict[str, Any]:
        """Microseconds of a call whose kernel takes almost none: what the host does."""
        shape = (1, 64, 8, 64)
        q, k, v = (torch.randn(shape, device=self.device, dtype=torch.bfloat16) for _ in range(3))
        mask = mask_of("causal", Size(1, 64, 8, 64), self.array)

        def sdpa() -> torch.Tensor:
            given = (x.transpose(1, 2) for x in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(*given, is_causal=True)

        with torch.no_grad(), self.run.alone():
            calls = {"auto": lambda: maskattn_torch.attention(q, k, v, mask), "sdpa": sdpa}
            return {f"{who}_us": 1e6 * self.seconds(call) for who, call in calls.items()}

    def planning(self) -> dict[str, Any]:
        """Documents that differ at each step: what a new layout costs beside one that was seen, and graphs made."""
        from torch._dynamo.utils import counters

        size = self.run.sizes[0]
        qkv = self.inputs(size)
        seen = mask_of("documents", size, self.array)
        new = [mask_of("documents", size, self.array, seed) for seed in range(100, 140)]
        with torch.no_grad(), self.run.alone():
            again = self.seconds(lambda: maskattn_torch.attention(*qkv, seen))
            before = counters["stats"]["unique_graphs"]
            self.wait()
            start = time.perf_counter()
            for mask in new:
                maskattn_torch.attention(*qkv, mask)
            self.wait()
            each = (time.perf_counter() - start) / len(new)
        graphs = counters["stats"]["unique_graphs"] - before
        return {"new_ms": 1e3 * each, "again_ms": 1e3 * again, "new_graphs": graphs, "steps": len(new)}


def main() -> None:
    warnings.simplefilter("ignore")
    run = arguments()
    half = Half(run)
    device = "cpu" if run.dry else torch.cuda.get_device_name()
    run.say(what="versions", torch=torch.__version__, device=device, cudnn=torch.backends.cudnn.version())
    small, large = run.sizes
    expected: dict[str, torch.Tensor] = {}
    for name in MASKS:
        with torch.no_grad():
            expected[name] = half.sdpa(name, small)(*half.inputs(small))
    for who in ("auto", "sdpa"):
        for name in MASKS:
            half.one(who, name, small, expected)
    run.case("tiny", 2.0, half.tiny)
    for who in ("auto", "sdpa"):
        for name in MASKS:
            half.one(who, name, large, {})
    run.case("planning", 5.0, half.planning, size=small.name)
    for who in ("varlen", "blockwise", "fused", *BACKENDS, "flex"):
        for name in MASKS:
            if who not in BACKENDS or name in ("full", "causal"):
                half.one(who, name, small, expected)
    for who in ("varlen", "blockwise"):
        for name in MASKS:
            half.one(who, name, large, {})


if __name__ == "__main__":
    main()
