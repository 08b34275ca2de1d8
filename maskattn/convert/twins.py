"""Weights in live modules of both twins, called with NumPy at the boundary: of one layer, and of whole models.

The one place of the core that knows the twins: by name, when they are used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np

from maskattn import masks
from maskattn.arrays import to_numpy, to_torch
from maskattn.config import AttentionConfig
from maskattn.convert._tensors import convert_tensors
from maskattn.models import Inputs, Output, WholeModel
from maskattn.models.exact import refuse
from maskattn.models.leaves import Tensor
from maskattn.models.part import Run
from maskattn.typing import KernelName, NumPyArray as Array, NumPyDType

#: (published name of a tensor, what it is) -> its numbers, in the published order of axes.
Numbers: TypeAlias = Callable[[str, Tensor], Array]
#: `compiler_options` of `jax.jit` of what runs once or twice: compiling would take longer than running.
HURRY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


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


# Whole models ---------------------------------------------------------------------------------------------------------


class TorchModel:
    """A whole model of PyTorch's twin.

    Args:
        table: the model. numbers: of its tensors; each is asked for once.
        dtype: of the computation; None: that of the parameters.
        kernel: of attention; "exact" is of the whole model.
        blocks: whether what each block gives, and the norm behind the last, is given too, by its path, in order, before
            all else; and what the first of a stack reads, "before " and its path.
    """

    name = "torch"

    def __init__(
        self,
        table: WholeModel,
        numbers: Numbers,
        dtype: str | None = None,
        kernel: KernelName = "auto",
        blocks: bool = False,
    ) -> None:
        twin = importlib.import_module("maskattn_torch.models")
        self.table, self.dtype, self.kernel, self.blocks = table, dtype, kernel, blocks
        self.model = twin.Model(table, lambda name, tensor: to_torch(numbers(name, tensor))).eval()

    def __call__(self, given: Mapping[str, Array], dtype: str | None = None) -> dict[str, Array]:
        """What the model makes of inputs, by the names that its call gives them: see `named`.

        Args:
            dtype: of the computation, in place of the model's.
        """
        import torch

        with torch.no_grad():
            made = self.called({name: to_torch(x) for name, x in given.items()}, dtype or self.dtype)
        return {name: to_numpy(x) for name, x in made.items()}

    def called(self, given: dict[str, Any], dtype: str | None) -> dict[str, Any]:
        """The same with PyTorch's tensors."""
        import torch

        kind = None if dtype is None else getattr(torch, dtype)
        return _applied("maskattn_torch", self.table, self.model, given, kind, self.kernel, self.blocks)


class JaxModel:
    """A whole model of JAX's twin, under jit but for the exact arithmetic: see `TorchModel`."""

    name = "jax"

    def __init__(
        self,
        table: WholeModel,
        numbers: Numbers,
        dtype: str | None = None,
        kernel: KernelName = "auto",
        blocks: bool = False,
    ) -> None:
        import jax.numpy as jnp

        def start(name: str, tensor: Tensor) -> Any:
            return jnp.asarray(numbers(name, tensor).transpose(tensor.order))

        twin = importlib.import_module("maskattn_jax.models")
        self.table, self.kernel, self.blocks = table, kernel, blocks
        self.dtype = None if dtype is None else jnp.dtype(dtype)
        self.model = twin.Model(table, start, dtype=self.dtype)

    def __call__(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """See `TorchModel.__call__`."""
        import jax
        import jax.numpy as jnp
        from flax import nnx

        graph, state = nnx.split(self.model)
        names: list[str] = []

        def whole(state: Any, given: dict[str, Any]) -> tuple[Any, ...]:
            made = self.called(nnx.merge(graph, state), given)
            names[:] = made  # of which JAX would lose the order
            return tuple(made.values())

        run = whole if self.kernel == "exact" else jax.jit(whole, compiler_options=HURRY)
        with jax.default_matmul_precision("highest"):
            made = run(state, {name: jnp.asarray(x) for name, x in given.items()})
        return {name: to_numpy(x) for name, x in zip(names, made, strict=True)}

    def called(self, model: object, given: dict[str, Any]) -> dict[str, Any]:
        """The same with JAX's arrays, of the model or one like it; may be traced."""
        return _applied("maskattn_jax", self.table, model, given, self.dtype, self.kernel, self.blocks)


def _applied(
    twin: str, table: WholeModel, model: object, given: dict[str, Any], dtype: Any, kernel: KernelName, blocks: bool
) -> dict[str, Any]:
    if kernel == "exact":
        refuse(table, iter(()))
        use = importlib.import_module(f"{twin}.models.exact").Exact()
    else:
        use = importlib.import_module(f"{twin}.models.ops").Plain(dtype)
    run: Run[Any] = Run(use, kernel, seen=[] if blocks else None)
    out = table.apply(model, Inputs(**given, hidden_states=True), run)
    seen = run.seen or []
    return dict(zip(numbered(path for path, _ in seen), (x for _, x in seen), strict=True)) | named(out)


def numbered(paths: Iterable[str]) -> list[str]:
    """Paths of blocks, those of which there are several told apart: blocks that share their parameters."""
    times: dict[str, int] = {}
    made = []
    for path in paths:
        times[path] = times.get(path, 0) + 1
        made.append(path if times[path] == 1 else f"{path}, time {times[path]}")
    return made


def named(out: Output[Any]) -> dict[str, Any]:
    """What a model gave, by the names of the fields of `Output` that have it: "hidden", "logits"; hidden states by
    number ("hidden_states.2"), those of towers behind the tower's name ("texts.hidden")."""
    found: dict[str, Any] = {}
    for each in fields(out):
        x = getattr(out, each.name)
        if isinstance(x, Output):
            found |= {f"{each.name}.{name}": y for name, y in named(x).items() if name.startswith("hidden")}
        elif isinstance(x, tuple) and each.name != "cache":
            found |= {f"{each.name}.{number}": y for number, y in enumerate(x)}
        elif x is not None and each.name != "cache":
            found[each.name] = x
    return found
