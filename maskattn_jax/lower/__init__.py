"""Masks and biases as JAX arrays, as pytrees, and as what JAX's own attention functions take."""

from __future__ import annotations

from maskattn_jax.lower._binding import bind, check, opaque, register
from maskattn_jax.lower._dense import allowed, bias, to_additive, to_dense
from maskattn_jax.lower.backends import to_dot_product_attention, to_splash_mask

__all__ = [
    "allowed",
    "bias",
    "bind",
    "check",
    "opaque",
    "register",
    "to_additive",
    "to_dense",
    "to_dot_product_attention",
    "to_splash_mask",
]
