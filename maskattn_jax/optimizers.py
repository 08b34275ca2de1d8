"""What a live optimizer remembers <-> ``maskattn.optimizers.OptimizerState``, with no file between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import PyTree

from maskattn.optimizers import OptimizerState, from_optax, to_optax
from maskattn.typing import NumPyArray
from maskattn_jax._placed import placed

__all__ = ["dump", "load"]


def dump(optimizer: nnx.Optimizer | PyTree, names: Sequence[str] | None = None) -> OptimizerState:
    """The moments of a state of optax's adam, adamw or sgd by parameter name: new NumPy arrays.

    Args:
        optimizer: the state, or an ``nnx.Optimizer``. names: names for the parameters in the order of
            ``jax.tree.leaves(params)``; by default their paths, joined by a slash in nested dicts and by a dot in
            modules (NNX, Equinox), as ``flax-linen`` and ``flax-nnx`` spell them.

    Raises:
        ValueError: one error that lists everything that has no counterpart, see ``maskattn.optimizers.from_optax``.
        TypeError: not a state of optax.
    """
    state = _plain(optimizer.opt_state) if isinstance(optimizer, nnx.Optimizer) else optimizer
    dumped = from_optax(state, leaves=_leaves(names))
    return dumped.map(lambda held: {name: np.array(array, copy=True) for name, array in held.items()})


def load(optimizer: nnx.Optimizer | PyTree, state: OptimizerState, names: Sequence[str] | None = None) -> PyTree | None:
    """Writes moments and counts of ``state`` into an ``nnx.Optimizer``, in place; of a state of optax returns another.

    Args as for ``dump``; a state of optax is one that ``init`` made for these parameters. Names, shapes and dtypes must
    be those of its parameters; everything is checked before anything is written.

    Raises:
        ValueError: one error that lists everything that does not fit, see ``maskattn.optimizers.to_optax``.
        TypeError: not a state of optax.
    """
    live = isinstance(optimizer, nnx.Optimizer)
    template = _plain(optimizer.opt_state) if live else optimizer
    new = to_optax(state, template, leaves=_leaves(names), rebuild=lambda tree, named: _rebuilt(tree, named, names))
    new = jax.tree.map(lambda leaf, held: _like(leaf, held), new, template)
    if not live:
        return new
    variables = jax.tree.leaves(optimizer.opt_state, is_leaf=_is_variable)
    for variable, leaf in zip(variables, jax.tree.leaves(new), strict=True):
        variable.set_value(leaf)
    if state.step is not None:
        optimizer.step.set_value(jnp.asarray(state.step, optimizer.step.get_value().dtype))
    return None


def _like(leaf: Array | NumPyArray, held: Array) -> Array | NumPyArray:
    if leaf is held or not isinstance(held, jax.Array):
        return leaf
    return placed(leaf, held)


def _is_variable(node: object) -> bool:
    return isinstance(node, nnx.Variable)


def _plain(tree: object) -> Any:
    """Arrays in the place of NNX variables."""
    return jax.tree.map(lambda leaf: leaf.get_value() if _is_variable(leaf) else leaf, tree, is_leaf=_is_variable)


def _is_parameter(node: object) -> bool:
    return _is_variable(node) or type(node).__name__ == "MaskedNode"


def _flat(tree: object, names: Sequence[str] | None) -> tuple[dict[str, Any], Any]:
    """Every parameter of a tree by its name, masked ones too, and how to build the tree from them."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_parameter)
    if names is None:
        keys = [
            [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in p] for p, _ in pairs
        ]
        nested = all(isinstance(key, jax.tree_util.DictKey) for path, _ in pairs for key in path)
        separator = "/" if nested and not isinstance(tree, nnx.State) else "."
        flat_names = [separator.join(path) for path in keys]
    else:
        flat_names = list(names)
    if len(flat_names) != len(pairs) or len(set(flat_names)) != len(flat_names):
        raise ValueError(f"names: expected {len(pairs)} different names, got {len(flat_names)}: {flat_names[:3]}...")
    return {name: leaf for name, (_, leaf) in zip(flat_names, pairs, strict=True)}, structure


def _leaves(names: Sequence[str] | None) -> Callable[[Any], Mapping[str, Array]]:
    def leaves(tree: object) -> dict[str, Array]:
        flat = _flat(tree, names)[0]
        return {name: _plain(leaf) for name, leaf in flat.items() if type(leaf).__name__ != "MaskedNode"}

    return leaves


def _rebuilt(tree: object, named: Mapping[str, Array], names: Sequence[str] | None) -> Any:
    flat, structure = _flat(tree, names)
    new = [leaf.replace(named[name]) if _is_variable(leaf) else named.get(name, leaf) for name, leaf in flat.items()]
    return jax.tree_util.tree_unflatten(structure, new)
