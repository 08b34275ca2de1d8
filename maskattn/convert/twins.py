"""One layer's weights in live modules of both twins, called with NumPy at the boundary.

The one place of the core that knows the twins: by name, when they are used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskattn import masks
from maskattn.arrays import to_numpy, to_torch
from maskattn.config import AttentionConfig
from maskattn.convert._tensors import convert_tensors
from maskattn.typing import NumPyArray as Array, NumPyDType


class WithinLimits:
    """An output that was held to limits: ``share``, the largest error / limit, says whether every element kept it."""

    share: float

    @property
    def held(self) -> bool:
        """Whether every element kept its limit (NaN keeps none)."""
        return self.share <= 1


class TorchTwin:
    """``maskattn_torch.MultiHeadAttention`` holding ``tensors``, one layer of layout ``source``."""

    name = "torch"

    def __init__(self, tensors: Mapping[str, Array], source: str, config: AttentionConfig) -> None:
        twin = importlib.import_module("maskattn_torch")
        converted = convert_tensors(tensors, source=source, target="maskattn-torch", config=config)
        state = {name: to_torch(array) for name, array in converted.items()}
        self._module = twin.MultiHeadAttention(config, dtype=next(iter(state.values())).dtype).eval()
        self._module.load_state_dict(state, strict=True)

    def dump(self) -> dict[str, Array]:
        """The canonical tensors that the module holds."""
        return _dumped("maskattn_torch", self._module)

    def __call__(self, inputs: tuple[Array, ...], lengths: Array | masks.Mask | None, kernel: str) -> Array:
        """``inputs``: query [B, L, E] and, where others, key and value. Keys from ``lengths[b]`` on are padding; a mask
        without data may be given instead.
        """
        import torch

        mask = masks.KeyPadding(to_torch(lengths)) if isinstance(lengths, np.ndarray) else lengths
        with torch.inference_mode():
            return to_numpy(self._module(*map(to_torch, inputs), mask=mask, kernel=kernel))


class JaxTwin:
    """``maskattn_jax.MultiHeadAttention`` holding ``tensors``, one layer of layout ``source``; called under jit."""

    name = "jax"

    def __init__(self, tensors: Mapping[str, Array], source: str, config: AttentionConfig) -> None:
        from flax import nnx

        twin = importlib.import_module("maskattn_jax")
        converted = convert_tensors(tensors, source=source, target="flax-nnx", config=config)
        dtype = next(iter(converted.values())).dtype
        self._wide = dtype == np.float64
        with self._settings():
            module = twin.MultiHeadAttention(config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
            twin.params.load(module, converted)
        self._module = module

    def dump(self) -> dict[str, Array]:
        """The canonical tensors that the module holds."""
        return _dumped("maskattn_jax", self._module)

    def __call__(self, inputs: tuple[Array, ...], lengths: Array | masks.Mask | None, kernel: str) -> Array:
        """As ``TorchTwin.__call__``."""
        import jax.numpy as jnp
        from flax import nnx

        with self._settings():
            mask = masks.KeyPadding(jnp.asarray(lengths)) if isinstance(lengths, np.ndarray) else lengths
            graph, state = nnx.split(self._module)
            return np.asarray(_compiled()(graph, kernel, state, tuple(map(jnp.asarray, inputs)), mask))

    def _settings(self) -> Any:
        import jax

        return jax.enable_x64(True) if self._wide else contextlib.nullcontext()


def random_inputs(
    config: AttentionConfig, lengths: Sequence[int], dtype: NumPyDType, seed: int = 0
) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """Padded inputs [B, longest, width] for a layer, one where query, key and value are of one width; and what
    ``standards.module_oracle`` and ``module_limit`` are told beside the first.
    """
    draw = np.random.default_rng(seed)
    widths = [config.embed_dim, config.kdim, config.vdim]
    widths = widths[:1] if len(set(widths)) == 1 else widths
    inputs = tuple(draw.standard_normal((len(lengths), max(lengths), width)).astype(dtype) for width in widths)
    options: dict[str, Any] = {} if len(inputs) == 1 else {"key": inputs[1], "value_input": inputs[2]}
    return inputs, options | config.attention_options()


def both(tensors: Mapping[str, Array], source: str, config: AttentionConfig) -> tuple[TorchTwin, JaxTwin]:
    """Both twins with one layer's ``tensors``, named as in layout ``source`` without prefix."""
    return TorchTwin(tensors, source, config), JaxTwin(tensors, source, config)


def _dumped(twin: str, module: object) -> dict[str, Array]:
    tensors: dict[str, Array] = importlib.import_module(twin).params.dump(module)
    return tensors


@functools.cache
def _compiled() -> Any:
    """One jitted call for all layers: those of equal sizes share their compilation."""
    import jax
    from flax import nnx

    def call(graph: Any, kernel: str, state: Any, inputs: tuple[Any, ...], mask: Any) -> Any:
        return nnx.merge(graph, state)(*inputs, mask=mask, kernel=kernel)

    return jax.jit(call, static_argnums=(0, 1))
