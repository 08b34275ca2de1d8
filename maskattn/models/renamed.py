"""A model's tensors, or what has their shapes, from the names and shapes of one twin's modules to another's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from maskattn._problems import Problems
from maskattn.models.leaves import Linear, Tensor
from maskattn.models.model import WholeModel
from maskattn.typing import NumPyArray

#: What tensors may be called: as published, as the parameters of `maskattn_torch.models.Model` are, and as those of
#: `maskattn_jax.models.Model`.
FORMS = ("published", "maskattn-torch", "flax-nnx")


def renamed(tensors: Mapping[str, NumPyArray], table: WholeModel, source: str, target: str) -> dict[str, NumPyArray]:
    """The tensors by other names, their axes in another order: numbers move, and nothing else.

    Args:
        tensors: of all parameters, or of some.
        table: of the model; in JAX not one that was made with `scan_layers`, whose parameters are stacked.
        source, target: of `FORMS`.

    Raises:
        ValueError: a form that is not known; tensors that the model has not.
    """
    problems = Problems("names of a model")
    problems.choice("source", source, FORMS)
    problems.choice("target", target, FORMS)
    problems.raise_if_any()
    places = {}
    for path, leaf in table.leaves():
        for name, tensor in leaf.tensors().items():
            turned = isinstance(leaf, Linear) and leaf.turned and name == "weight"
            places[_place(source, path, name, tensor, turned)[0]] = (path, name, tensor, turned)
    made = {}
    for own, array in tensors.items():
        if own not in places:
            problems.value(f"{own}: the model has no such tensor")
            continue
        order, (there, wanted) = _place(source, *places[own])[1], _place(target, *places[own])
        made[there] = array.transpose(np.argsort(order)).transpose(wanted)
    problems.raise_if_any()
    return made


def _place(form: str, path: str, name: str, tensor: Tensor, turned: bool) -> tuple[str, tuple[int, ...]]:
    """What a tensor is called in a form, and which axes of the published one it has, in order."""
    if form == "flax-nnx":
        return f"{path}.{tensor.flax}" if name else path, tensor.order
    order = tuple(range(len(tensor.shape)))
    return f"{path}.{name}" if name else path, order[::-1] if turned and form == "maskattn-torch" else order
