"""What this twin is given, in types; shapes and options are in the words of `maskattn.typing`."""

from __future__ import annotations

from typing import TypeAlias

from jax import Array
from jax.nn.initializers import Initializer
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Float, Key, Num, UInt32

from maskattn.typing import NumPyArray

__all__ = ["Answer", "Array", "DType", "Given", "Initializer", "Operand", "Positions", "RandomKey", "Sharding"]

Operand: TypeAlias = Array | NumPyArray
"""What query, key, value and sinks may be."""

Given: TypeAlias = Array | NumPyArray
"""What masks and biases may be given as."""

RandomKey: TypeAlias = int | UInt32[Given, " 2"] | Key[Array, ""]
"""A seed in [0, 2**31), two uint32 words, or a `jax.random.key`."""

Positions: TypeAlias = Num[Given, "*#B L"] | tuple[Num[Given, "*#B L"], Num[Given, "*#B S"]]
"""Where tokens stand, int [L] or [B, L]; or those of queries, and those of keys."""

Answer: TypeAlias = Float[Array, "*B L out_dim"] | tuple[object, ...]
"""What a module returns: its output, or a tuple of it and what was asked for."""

DType: TypeAlias = DTypeLike
"""What names a dtype."""

Sharding: TypeAlias = NamedSharding | PartitionSpec
"""Where an array is to lie on a mesh with explicit axes."""
