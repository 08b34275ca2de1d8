"""JAX programs recorded."""

from maskattn_jax.tracing.record import record

__all__ = ["record"]
