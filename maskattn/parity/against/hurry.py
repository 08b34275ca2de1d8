"""How JAX compiles what runs once or twice: in a hurry, since compiling takes longer than running."""

from __future__ import annotations

#: `compiler_options` of `jax.jit`.
HURRY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
