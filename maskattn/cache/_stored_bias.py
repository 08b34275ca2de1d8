"""A bias whose tokens lie in the slots of a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from maskattn._arithmetic import maximum
from maskattn._declared import data, declared, part
from maskattn._fields import Array
from maskattn._lookup import gather, wide
from maskattn._pairs import fixed, restrict
from maskattn.biases import Bias

if TYPE_CHECKING:
    from jaxtyping import Int


@declared
class StoredBias(Bias):
    """A bias where query q is token q_tokens[b, q] of its sequence, and key k is token k_tokens[b, k].

    A negative token is none: what is added for it means nothing.
    """

    part: Bias = part(Bias, meaning="the bias of whole sequences")
    q_tokens: Int[Array, "#B L"] = data("int", "[B, L]", meaning="the token of each query")
    k_tokens: Int[Array, "#B S"] = data("int", "[B, S]", meaning="the token of each key")

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        q_at, _ = gather(wide(self.q_tokens), b, q)
        k_at, _ = gather(wide(self.k_tokens), b, k)
        return self.part.values(*restrict(self.part, b, h, maximum(q_at, q_at * 0), maximum(k_at, k_at * 0)))

    @property
    def depends(self) -> frozenset[str]:
        return self.part.depends | frozenset("bqk")

    def sizes(self) -> dict[str, int]:
        inner = {axis: size for axis, size in self.part.sizes().items() if axis not in ("q_len", "kv_len")}
        return (
            inner | fixed(self.q_tokens.shape[0]) | {"q_len": self.q_tokens.shape[1], "kv_len": self.k_tokens.shape[1]}
        )

    def conflicts(self, sizes: Mapping[str, int | None]) -> list[str]:
        own = fixed(self.q_tokens.shape[0]) | {"q_len": self.q_tokens.shape[1], "kv_len": self.k_tokens.shape[1]}
        faults = [
            f"{self!r} expects {axis} {n}, got {sizes[axis]}" for axis, n in own.items() if sizes[axis] not in (None, n)
        ]
        return faults + self.part.conflicts({**sizes, "q_len": None, "kv_len": None})


def replaced(bias: Bias, **fields: object) -> Bias:
    """The bias with other data in these fields; nothing is checked."""
    made = object.__new__(type(bias))
    made._set(**{**{name: value for name, value in vars(bias).items() if name != "_leaves"}, **fields})
    return made
