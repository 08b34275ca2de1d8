"""The JAX half of gpu.py, which starts it: attention of this library, cuDNN's by jax.nn, and XLA's."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import jax.numpy as jnp
from gpu_problems import MASKS, Run, Size, arguments, lengths_of, mask_of, pairs, window_of

import maskattn_jax

Array = Any
Job = tuple[str, str, Size]


class Half:
    def __init__(self, run: Run) -> None:
        self.run, self.dry = run, run.dry
        self.pool = ThreadPoolExecutor(2 if run.dry else 8)
        self.compiling: dict[Job, Future[Any]] = {}

    def inputs(self, size: Size) -> list[Array]:
        keys = jax.random.split(jax.random.key(0), 4)
        shape = (size.batch, size.length, size.heads, size.width)
        return [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]

    def seconds(self, call: Callable[[], Any], budget: float = 0.1) -> float:
        """The median of three groups of calls."""
        jax.block_until_ready(call())
        start = time.perf_counter()
        jax.block_until_ready(call())
        count = max(1, min(40, int(budget / 3 / max(1e-6, time.perf_counter() - start))))
        found = []
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(count):
                out = call()
            jax.block_until_ready(out)
            found.append((time.perf_counter() - start) / count)
        return statistics.median(found)

    def function(self, who: str, name: str, size: Size) -> tuple[Callable[..., Array], tuple[Array, ...]]:
        """f(q, k, v, *data), and the data of the mask."""
        if who not in ("cudnn", "xla"):
            mask = mask_of(name, size, jnp.asarray)
            return (lambda q, k, v, mask: maskattn_jax.attention(q, k, v, mask, kernel=who)), (mask,)  # type: ignore[arg-type]
        words: dict[str, Any] = {"implementation": None if self.dry and who == "cudnn" else who}
        data: tuple[Array, ...] = ()
        if name == "window":
            words |= {"is_causal": True, "local_window_size": (window_of(size) - 1, 0)}
        elif name == "causal":
            words |= {"is_causal": True}
        elif name == "padding":
            data = (jnp.asarray(lengths_of(size)),)
        elif name == "documents":
            dense = maskattn_jax.lower.allowed(
                mask_of(name, size, jnp.asarray), size.batch, size.heads, size.length, size.length
            )
            data = (dense,)

        def function(q: Array, k: Array, v: Array, *data: Array) -> Array:
            given = {"padding": "key_value_seq_lengths", "documents": "mask"}.get(name)
            return jax.nn.dot_product_attention(q, k, v, **words, **({given: data[0]} if given else {}))

        return function, data

    def compiled(self, who: str, name: str, size: Size) -> tuple[Any, Any, tuple[Array, ...], dict[str, Any]]:
        """Forward, forward and backward, the data of the mask, and what was found on the way. In a thread."""
        function, data = self.function(who, name, size)
        q, k, v, cotangent = self.inputs(size)

        def both(q: Array, k: Array, v: Array, cotangent: Array, *data: Array) -> Any:
            out, pull = jax.vjp(lambda *qkv: function(*qkv, *data), q, k, v)
            return out, pull(cotangent)

        start = time.perf_counter()
        forward = jax.jit(function).lower(q, k, v, *data).compile()
        backward = jax.jit(both).lower(q, k, v, cotangent, *data).compile()
        found: dict[str, Any] = {"first_s": round(time.perf_counter() - start, 3)}
        for word, program in (("forward", forward), ("both", backward)):
            memory = program.memory_analysis()
            found[f"{word}_mb"] = None if memory is None else round(memory.temp_size_in_bytes / 2**20, 1)
        if who == "auto":
            found["chosen"] = maskattn_jax.explain(q, k, v, mask_of(name, size, jnp.asarray))[0]
        return forward, backward, data, found

    def measured(self, job: Job, expected: Array) -> dict[str, Any]:
        """Milliseconds of both, and how far from cuDNN's result."""
        future = self.compiling[job]
        forward, backward, data, found = future.result(timeout=max(0.1, self.run.left() - 3))
        _, name, size = job
        q, k, v, cotangent = self.inputs(size)
        out = forward(q, k, v, *data)
        if expected is not None:
            found["apart"] = float(jnp.abs(out.astype(jnp.float32) - expected.astype(jnp.float32)).max())
        jax.block_until_ready(backward(q, k, v, cotangent, *data))
        with self.run.alone():
            seconds = self.seconds(lambda: forward(q, k, v, *data))
            found |= {"forward_ms": 1e3 * seconds, "tflops": 4 * pairs(name, size) * size.width / seconds / 1e12}
            found["both_ms"] = 1e3 * self.seconds(lambda: backward(q, k, v, cotangent, *data))
        return found

    def one(self, job: Job, expected: dict[str, Array]) -> None:
        (who, name, size), right = job, expected.get(job[1]) if job[2] is self.run.sizes[0] else None
        self.run.case("speed", 3.0, lambda: self.measured(job, right), size=size.name, mask=name, who=who)

    def tiny(self) -> dict[str, Any]:
        """Microseconds of a compiled call whose kernel takes almost none."""
        size = Size(1, 64, 8, 64)
        q, k, v, _ = self.inputs(size)
        found = {}
        for who in ("auto", "cudnn"):
            function, data = self.function(who, "causal", size)
            jitted = jax.jit(function)
            with self.run.alone():
                found[f"{who}_us"] = 1e6 * self.seconds(lambda jitted=jitted, data=data: jitted(q, k, v, *data))
        return found


def main() -> None:
    warnings.simplefilter("ignore")
    run = arguments()
    half = Half(run)
    run.say(what="versions", jax=jax.__version__, device=jax.devices()[0].device_kind)
    small, large = run.sizes
    expected: dict[str, Array] = {}
    for name in MASKS:
        try:
            function, data = half.function("cudnn", name, small)
            expected[name] = jax.jit(function)(*half.inputs(small)[:3], *data)
        except Exception as error:
            run.say(what="expected", mask=name, error=str(error)[:200])
    order = [(who, small) for who in ("auto", "cudnn", "blockwise")] + [("auto", large), ("cudnn", large)]
    order += [("fused", small), ("xla", small), ("blockwise", large)]
    jobs = [(who, name, size) for who, size in order for name in MASKS]
    jobs.remove(("cudnn", "documents", large))  # a dense mask of this length has no answer
    for job in jobs:
        half.compiling[job] = half.pool.submit(half.compiled, *job)
    # tracing in the threads would keep timed calls from being made in time
    wait(half.compiling.values(), timeout=0.6 * run.left())
    for job in jobs:
        half.one(job, expected)
    run.case("tiny", 3.0, half.tiny)
    os._exit(0)  # threads that still compile are not waited for


if __name__ == "__main__":
    main()
