"""The twins' models of a table, run on NumPy's arrays: what they give, and gradients by published names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np

from maskattn.arrays import to_numpy
from maskattn.models import Output, WholeModel
from maskattn.models.leaves import Leaf, Linear, Tensor
from maskattn.models.part import find
from maskattn.parity.models.peer import GIVEN, WORDS, given_by
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
        """What the model makes of a batch; and, by published names, gradients of the sum of `projections` times what
        has their names, where they are given."""


class Torch:
    """The model of the torch twin: see `Twin`."""

    name = "torch"

    def __init__(self, table: WholeModel, tensors: Given, dtype: str = "float32", compiled: bool = True) -> None:
        import torch

        from maskattn_torch.models import Model
        from maskattn_torch.testing.adapter import from_numpy

        def start(name: str, tensor: Tensor) -> Any:
            made = from_numpy(tensors[name])
            return made.to(getattr(torch, dtype)) if made.is_floating_point() else made

        self.table, self.model = table, Model(table, start).eval()

    def run(self, batch: Given, projections: Given | None = None) -> tuple[Arrays, Arrays]:
        """See `Twin`."""
        import torch

        from maskattn_torch.testing.adapter import from_numpy

        given: dict[str, Any] = {WORDS[name]: from_numpy(x) for name, x in batch.items() if name in WORDS}
        with torch.set_grad_enabled(projections is not None):
            found = outputs_of(self.model(**given, hidden_states=True))
        gradients: Arrays = {}
        if projections is not None:
            held = list(parameters(self.table))
            numbers = [find(self.model, path) for path, *_ in held]
            loss = sum((torch.tensor(x) * found[name]).sum() for name, x in projections.items())
            made = torch.autograd.grad(loss, numbers, allow_unused=True, materialize_grads=True)
            for (path, leaf, _), x in zip(held, made, strict=True):
                turned = isinstance(leaf, Linear) and leaf.turned and path.endswith("weight")
                gradients[path] = to_numpy(x.T if turned else x)
        return {name: to_numpy(x.detach()) for name, x in found.items()}, gradients


class Jax:
    """The model of the NNX twin: see `Twin`."""

    name = "jax"

    def __init__(self, table: WholeModel, tensors: Given, dtype: str = "float32", compiled: bool = True) -> None:
        import jax
        import jax.numpy as jnp
        from flax import nnx

        from maskattn.parity.against.hurry import HURRY
        from maskattn_jax.models import Model

        def start(name: str, tensor: Tensor) -> Any:
            made = jnp.asarray(tensors[name].transpose(tensor.order))
            return made.astype(dtype) if jnp.issubdtype(made.dtype, jnp.floating) else made

        self.table = table
        parts: Any = nnx.split(Model(table, start), nnx.Param, ...)
        self.graph, self.trained, self.rest = parts

        def whole(trained: Any, given: dict[str, Any]) -> dict[str, Any]:
            return outputs_of(nnx.merge(self.graph, trained, self.rest)(**given, hidden_states=True))

        def loss(trained: Any, given: dict[str, Any], by: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            found = whole(trained, given)
            return sum((by[name] * found[name]).sum() for name in by), found

        as_asked: Callable[[Any], Any] = partial(jax.jit, compiler_options=HURRY) if compiled else (lambda f: f)
        self.whole, self.slopes = as_asked(whole), as_asked(jax.grad(loss, has_aux=True))

    def run(self, batch: Given, projections: Given | None = None) -> tuple[Arrays, Arrays]:
        """See `Twin`."""
        import jax.numpy as jnp
        from flax import nnx

        given = {WORDS[name]: jnp.asarray(x) for name, x in batch.items() if name in WORDS}
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


def outputs_of(out: Output[Any]) -> dict[str, Any]:
    """What a model gave, by name: hidden states of each layer by number."""
    return given_by(out, {name: name for name in GIVEN.values()})


def parameters(table: WholeModel) -> Iterator[tuple[str, Leaf, Tensor]]:
    """(published name, leaf, tensor) of all that is trained."""
    for path, leaf in table.leaves():
        for name, tensor in leaf.tensors().items():
            if tensor.trained:
                yield f"{path}.{name}" if name else path, leaf, tensor
