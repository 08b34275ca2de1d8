"""A model that writes token after token, as `maskattn.models.generate` needs it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskattn.models.encoder_decoder import holds, mask_of
from maskattn.models.model import WholeModel
from maskattn.typing import KernelName, NumPyArray

__all__ = ["Writer"]


@dataclass(frozen=True)
class Writer:
    """See `maskattn.models.generate.Steps`.

    Attributes:
        model: a `Model`. table: what it is.
        given: of a model with an encoder and a decoder, what the encoder reads.
        kernel: as in `attention`. multiple: as in `Steps`.
    """

    multiple = 32

    model: Any
    table: WholeModel
    kernel: KernelName = "auto"
    given: Mapping[str, Any] = field(default_factory=dict)

    def start(self, batch: int, size: int) -> tuple[Any, ...]:
        """Caches without tokens, of `size` slots."""
        return tuple(self.model.new_cache(batch, size))

    @functools.cached_property
    def _split(self) -> tuple[Any, Any]:
        graph, state = nnx.split(self.model)
        return _Graph(graph), state

    @property
    def state(self) -> Any:
        """The numbers of the model."""
        return self._split[1]

    def step(
        self, tokens: NumPyArray, valid: NumPyArray, last: NumPyArray, caches: tuple[Any, ...]
    ) -> tuple[NumPyArray, tuple[Any, ...]]:
        """The logits behind the last tokens, and the new caches."""
        told = None if tokens.shape[1] == 1 and valid.all() else jnp.asarray(valid)
        at = jnp.asarray(last, jnp.int32) if tokens.shape[1] > 1 else None
        known: Mapping[str, Any] | None = None
        if self.given:
            known = mask_of(self.given) if holds(caches) else self.given
            known = {name: jnp.asarray(x) for name, x in known.items()}
        given = (jnp.asarray(tokens, jnp.int32), told, at, caches, known)
        logits, grown = _step(self._split[0], self.kernel, self.state, *given)
        return np.asarray(logits), grown


class _Graph:
    """What a model is but for its numbers, hashed once."""

    def __init__(self, graph: Any) -> None:
        self.graph, self._hash = graph, hash(graph)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Graph) and bool(self.graph == other.graph))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=6)
def _step(
    graph: _Graph, kernel: KernelName, state: Any, tokens: Any, valid: Any, last: Any, caches: Any, known: Any
) -> Any:
    model = nnx.merge(graph.graph, state)
    options = {"cache": caches, "valid": valid, "logits_at": last, "deterministic": True, "kernel": kernel}
    out = model(tokens, **options) if known is None else model(decoder_tokens=tokens, **known, **options)
    return out.logits[:, 0].astype(jnp.float32), out.cache
