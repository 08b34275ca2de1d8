"""The twins' models of a table, run on what transformers' models are given: what they give, and gradients by published
names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np

from maskattn.arrays import dtype_named, to_numpy, to_torch
from maskattn.convert.twins import JaxModel, Numbers, TorchModel
from maskattn.models import WholeModel
from maskattn.models.leaves import Leaf, Linear, Tensor
from maskattn.models.part import find
from maskattn.parity.models.peer import WORDS
from maskattn.typing import NumPyArray as Array

#: What something gave, by its name.
Arrays = dict[str, Array]
#: Several of the same.
Given = Mapping[str, Array]


class Twin(Protocol):
    """A twin's model.

    Args:
        table: of the model. tensors: by published names.
        dtype: of the parameters, and so of all that is computed.
        compiled: whether JAX compiles it whole; otherwise it runs one operation after the other.
    """

    name: str

    def __init__(self, table: WholeModel, tensors: Given, dtype: str = "float32", compiled: bool = True) -> None: ...

    def run(self, batch: Given, projections: Given | None = None) -> tuple[Arrays, Arrays]:
        """What the model makes of a batch, by the names of `maskattn.convert.twins.named`; and, by published names,
        gradients of the sum of `projections` times what has their names, where they are given."""


class Torch(TorchModel):
    """The model of the torch twin: see `Twin`."""

    def __init__(self, table: WholeModel, tensors: Given, dtype: str = "float32", compiled: bool = True) -> None:
        super().__init__(table, _cast(tensors, dtype))

    def run(self, batch: Given, projections: Given | None = None) -> tuple[Arrays, Arrays]:
        """See `Twin`."""
        import torch

        given = renamed(batch)
        if projections is None:
            return self(given), {}
        found = self.called({name: to_torch(x) for name, x in given.items()}, None)
        held = list(parameters(self.table))
        numbers = [find(self.model, path) for path, *_ in held]
        loss = sum((torch.tensor(x) * found[name]).sum() for name, x in projections.items())
        made = torch.autograd.grad(loss, numbers, allow_unused=True, materialize_grads=True)
        gradients: Arrays = {}
        for (path, leaf, _), x in zip(held, made, strict=True):
            turned = isinstance(leaf, Linear) and leaf.turned and path.endswith("weight")
            gradients[path] = to_numpy(x.T if turned else x)
        return {name: to_numpy(x.detach()) for name, x in found.items()}, gradients


class Jax(JaxModel):
    """The model of the NNX twin: see `Twin`."""

    def __init__(self, table: WholeModel, tensors: Given, dtype: str = "float32", compiled: bool = True) -> None:
        import jax
        from flax import nnx

        from maskattn.parity.against.hurry import HURRY

        super().__init__(table, _cast(tensors, dtype))
        parts: Any = nnx.split(self.model, nnx.Param, ...)
        self.graph, self.trained, self.rest = parts

        def whole(trained: Any, given: dict[str, Any]) -> dict[str, Any]:
            return self.called(nnx.merge(self.graph, trained, self.rest), given)

        def loss(trained: Any, given: dict[str, Any], by: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            found = whole(trained, given)
            return sum((by[name] * found[name]).sum() for name in by), found

        as_asked: Callable[[Any], Any] = partial(jax.jit, compiler_options=HURRY) if compiled else (lambda f: f)
        self.whole, self.slopes = as_asked(whole), as_asked(jax.grad(loss, has_aux=True))

    def run(self, batch: Given, projections: Given | None = None) -> tuple[Arrays, Arrays]:
        """See `Twin`."""
        import jax.numpy as jnp
        from flax import nnx

        given = {name: jnp.asarray(x) for name, x in renamed(batch).items()}
        gradients: Arrays = {}
        if projections is None:
            found = self.whole(self.trained, given)
        else:
            by = {name: jnp.asarray(x) for name, x in projections.items()}
            slopes, found = self.slopes(self.trained, given, by)
            at = nnx.merge(self.graph, slopes, self.rest)
            for path, leaf, tensor in parameters(self.table):
                place = path if leaf.tensors().get("") else f"{path.rpartition('.')[0]}.{tensor.flax}"
                gradients[path] = to_numpy(find(at, place)[...]).transpose(np.argsort(tensor.order))
        return {name: to_numpy(x) for name, x in found.items()}, gradients


#: Both.
TWINS: tuple[type[Twin], ...] = (Torch, Jax)


def _cast(tensors: Given, dtype: str) -> Numbers:
    """Floating-point tensors in a dtype, in memory of their own."""

    def numbers(name: str, tensor: Tensor) -> Array:
        held = tensors[name]
        return np.array(held, held.dtype if held.dtype.kind in "biu" else dtype_named(dtype), order="C")

    return numbers


def renamed(batch: Given) -> Arrays:
    """Inputs by transformers' names as a twin's model is called with them."""
    return {WORDS[name]: x for name, x in batch.items() if name in WORDS}


def parameters(table: WholeModel) -> Iterator[tuple[str, Leaf, Tensor]]:
    """(published name, leaf, tensor) of all that is trained."""
    for path, leaf in table.leaves():
        for name, tensor in leaf.tensors().items():
            if tensor.trained:
                yield f"{path}.{name}" if name else path, leaf, tensor
