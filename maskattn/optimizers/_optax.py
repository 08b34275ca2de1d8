"""The states of optax's adam, adamw and sgd, alone or inside chain, masked, partition and inject_hyperparams.

A state is a tree of named tuples; they are told by the names of their types, so that optax need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from maskattn._problems import Problems
from maskattn.convert.layouts import flatten, unflatten
from maskattn.optimizers._state import SLOTS, Array, OptimizerState, as_array, same_targets

Leaves = Callable[[Any], Mapping[str, Any]]
Rebuild = Callable[[Any, Mapping[str, Any]], Any]

RULES = {"ScaleByAdamState": "adam", "TraceState": "sgd"}
# States that hold others, or nothing that depends on the parameters; a field "count" in them counts updates.
AROUND = {
    "ApplyIfFiniteState",
    "EmptyState",
    "InjectHyperparamsState",
    "InjectStatefulHyperparamsState",
    "MaskedState",
    "MultiTransformState",
    "PartitionState",
    "ScaleByScheduleState",
    "WrappedScheduleState",
}


def _named(tree: object) -> Mapping[str, object]:
    """Nested mappings -> leaves under names joined by a slash; masked parameters are left out."""
    if not isinstance(tree, Mapping):
        raise TypeError(f"expected parameters in nested mappings, got {type(tree).__name__}: other trees need leaves=")
    return {name: leaf for name, leaf in flatten(tree).items() if type(leaf).__name__ != "MaskedNode"}


def _renamed(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """``tree`` with ``leaves`` in the place of its own."""
    return unflatten({name: leaves.get(name, leaf) for name, leaf in flatten(tree).items()})


def from_optax(state: Any, *, leaves: Leaves = _named) -> OptimizerState:
    """A state of optax, whose arrays NumPy can read -> the moments by parameter name.

    ``leaves`` names the arrays of one tree of parameters; by default paths in nested mappings, joined by a slash.
    Several states (of ``optax.partition``) are joined. adamax keeps the same state as adam and cannot be told from it.

    Raises:
        ValueError: one error that lists every state without a counterpart in PyTorch (amsgrad, lion, accumulated
            gradients ...), counts that differ, two rules, a parameter held twice, or no moments at all.
    """
    problems = Problems("optimizer state of optax")
    moments: list[tuple[str, Any]] = []
    counts: dict[int, str] = {}

    def visit(path: str, node: Any) -> Any:
        if type(node).__name__ in RULES:
            moments.append((RULES[type(node).__name__], node))
        if "count" in getattr(node, "_fields", ()):
            counts.setdefault(int(np.asarray(node.count)), path)
        return node

    _walk("state", state, visit, problems)
    if len(counts) > 1:
        listed = ", ".join(f"{path} {count}" for count, path in sorted(counts.items()))
        problems.value(f"counts of updates differ, where PyTorch keeps one for each parameter: {listed}")
    rules = {rule for rule, _ in moments}
    if len(rules) != 1:
        problems.value(f"expected one rule, adam or sgd with momentum, got {' and '.join(sorted(rules)) or 'none'}")
    problems.raise_if_any()
    (rule,) = rules
    slots: dict[str, dict[str, Array]] = {slot: {} for slot in SLOTS[rule]}
    for _, node in moments:
        for slot, held in slots.items():
            for name, leaf in leaves(getattr(node, slot)).items():
                if name in held:
                    problems.value(f"{name}: two parts of the state hold {slot} of it")
                held[name] = as_array(problems, f"{slot} of {name}", leaf)
    problems.raise_if_any()
    return OptimizerState(rule, next(iter(counts), None), slots)


def to_optax(state: OptimizerState, template: Any, *, leaves: Leaves = _named, rebuild: Rebuild = _renamed) -> Any:
    """``template``, a state as ``init`` of optax makes it, with the moments and every count of updates of ``state``.

    Counts of schedules are set too: the next update takes the learning rate of that step. ``leaves`` as in
    ``from_optax``; ``rebuild`` puts named arrays into a tree of parameters.

    Raises:
        ValueError: one error that lists every parameter that does not fit in name, shape or dtype, another rule, states
            without a counterpart, and a count that is needed and not known (SGD of PyTorch keeps none).
    """
    problems = Problems("optimizer state for optax")
    held: dict[str, dict[str, Any]] = {slot: {} for slot in state.slots}
    rules = set()
    counted: list[str] = []

    def look(path: str, node: object) -> Any:
        if type(node).__name__ in RULES:
            rules.add(RULES[type(node).__name__])
            for slot in held:
                held[slot].update(leaves(getattr(node, slot, {})))
        if "count" in getattr(node, "_fields", ()):
            counted.append(path)
        return node

    _walk("state", template, look, problems)
    if rules != {state.rule}:
        problems.value(f"the optimizer's rule is {' and '.join(sorted(rules)) or 'none'}, the state's is {state.rule}")
        problems.raise_if_any()
    if counted and state.step is None:
        problems.value(
            f"{counted[0]} needs the number of updates made, and the state has none: give it by replace(step=)"
        )
    for slot, arrays in state.slots.items():
        same_targets(problems, slot, arrays, held[slot])
    problems.raise_if_any()

    def fill(path: str, node: Any) -> Any:
        new: dict[str, Any] = {}
        if type(node).__name__ in RULES:
            for slot, arrays in state.slots.items():
                tree = getattr(node, slot)
                new[slot] = rebuild(tree, {name: arrays[name] for name in leaves(tree)})
        if "count" in getattr(node, "_fields", ()):
            new["count"] = np.asarray(state.step, node.count.dtype)
        return node._replace(**new) if new else node

    return _walk("state", template, fill, problems)


def _walk(path: str, node: Any, visit: Callable[[str, Any], Any], problems: Problems) -> Any:
    """Rebuilds a state from its parts: ``visit`` is called with each named tuple that is known, parts first."""
    name = type(node).__name__
    if name in RULES:
        return visit(path, node)
    if hasattr(node, "_fields"):
        if name not in AROUND:
            if node:
                problems.value(f"{path}: {name} has no counterpart in the optimizers of PyTorch that are known here")
            return node
        inner = [f for f in node._fields if f in ("inner_state", "inner_states", "hyperparams_states")]
        parts = {field: _walk(f"{path}.{field}", getattr(node, field), visit, problems) for field in inner}
        return visit(path, node._replace(**parts) if parts else node)
    if isinstance(node, tuple | list):
        return type(node)(_walk(f"{path}[{i}]", part, visit, problems) for i, part in enumerate(node))
    if isinstance(node, Mapping):
        return {key: _walk(f"{path}[{key!r}]", part, visit, problems) for key, part in node.items()}
    if node is not None:
        problems.value(f"{path}: expected a state of optax, got {type(node).__module__}.{type(node).__qualname__}")
    return node
