"""The state dictionaries of torch.optim.Adam, AdamW and SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskattn._problems import Problems
from maskattn.optimizers._state import SLOTS, Array, OptimizerState, as_array, same_targets

# Where PyTorch keeps each slot.
KEYS = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer"}
# A step count is a float32 there, exact up to here.
LARGEST_STEP = 2**24
_FLAGS = ("foreach", "fused", "capturable", "differentiable")


def from_torch(state_dict: Mapping[str, Any], names: Sequence[str] | None = None) -> OptimizerState:
    """``optimizer.state_dict()`` with NumPy arrays in place of tensors -> the moments by parameter name.

    ``state_dict`` is that of PyTorch's Adam, AdamW or SGD.
    PyTorch numbers parameters in the order in which the optimizer was given them; ``names`` are their names in that
    order, and may be left out where the optimizer was built from ``named_parameters()``.

    Raises:
        ValueError: one error that lists everything that has no counterpart: ``amsgrad``, ``maximize``, ``dampening``,
            parameters that have taken different numbers of steps, state of an unknown optimizer, or no state at all.
    """
    problems = Problems("optimizer state of PyTorch")
    groups, named = _read(state_dict, names, problems)
    rule = _rule(groups, problems)
    slots: dict[str, dict[str, Array]] = {slot: {} for slot in SLOTS[rule]}
    steps: dict[int, str] = {}
    without = []
    for number, name in named.items():
        entry = {key: value for key, value in state_dict["state"].get(number, {}).items() if value is not None}
        if not entry:
            without.append(name)
            continue
        if "step" in entry:
            steps.setdefault(int(np.asarray(entry.pop("step"))), name)
        for slot in SLOTS[rule]:
            if KEYS[slot] in entry:
                slots[slot][name] = as_array(problems, f"{KEYS[slot]} of {name}", entry.pop(KEYS[slot]))
            else:
                problems.value(f"{name}: {KEYS[slot]} is missing")
        for key in entry:
            problems.value(f"{name}: {key} has no counterpart in optax's {rule}")
    for number in state_dict["state"]:
        if number not in named:
            problems.value(f"state of parameter {number!r}, which is in no group")
    if len(without) == len(named):
        problems.value(
            "no parameter has state: the optimizer has made no update, or keeps nothing (SGD without momentum)"
        )
    if len(steps) > 1:
        listed = ", ".join(f"{name} {step}" for step, name in sorted(steps.items()))
        problems.value(f"parameters have taken different numbers of steps, where optax keeps one count: {listed}")
    problems.raise_if_any()
    notes = tuple(_notes(groups, rule)) + tuple(f"{name}: no state, it was never given a gradient" for name in without)
    return OptimizerState(rule, next(iter(steps), None), slots, notes)


def to_torch(
    state: OptimizerState,
    template: Mapping[str, object],
    held: Mapping[str, object],
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The moments as a dictionary for PyTorch's ``load_state_dict``, with NumPy arrays in place of tensors.

    ``template`` is the ``state_dict()`` of the optimizer that is to go on, whose hyperparameters are kept; ``held``
    maps its parameters' names to anything with their shape and dtype, which moments must have (PyTorch casts others in
    silence); ``state`` are the moments, ``names`` as in ``from_torch``.

    Raises:
        ValueError: one error that lists every parameter that does not fit, another rule, ``amsgrad``, ``maximize`` or
            ``dampening``, Adam without a step count, a count that float32, which PyTorch keeps it in, cannot hold.
    """
    problems = Problems("optimizer state for PyTorch")
    groups, named = _read(template, names, problems)
    rule = _rule(groups, problems)
    if rule != state.rule:
        problems.value(f"the optimizer's rule is {rule}, the state's is {state.rule}")
        problems.raise_if_any()
    if rule == "adam" and state.step is None:
        problems.value("Adam needs the number of steps taken, and the state has none")
    if state.step is not None and state.step > LARGEST_STEP:
        problems.value(f"step is {state.step}, but PyTorch keeps it in float32, which is exact up to {LARGEST_STEP}")
    for slot, arrays in state.slots.items():
        same_targets(problems, slot, arrays, {name: held[name] for name in named.values() if name in held})
    for name in named.values():
        if name not in held:
            problems.value(f"{name}: its shape and dtype are not among those given")
    problems.raise_if_any()
    entries: dict[int, dict[str, Any]] = {}
    for number, name in named.items():
        entry: dict[str, Any] = {} if rule == "sgd" else {"step": np.asarray(state.step, np.float32)}
        entries[number] = entry | {KEYS[slot]: state.slots[slot][name] for slot in SLOTS[rule]}
    return {"state": entries, "param_groups": [dict(group) for group in groups]}


def _read(
    state_dict: Mapping[str, Any], names: Sequence[str] | None, problems: Problems
) -> tuple[list[Mapping[str, Any]], dict[int, str]]:
    """The groups, and each parameter's number and name; raises where there is no telling."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        problems.type("expected the dictionary that optimizer.state_dict() gives, with 'state' and 'param_groups'")
        problems.raise_if_any()
    groups = list(state_dict["param_groups"])
    numbers = [number for group in groups for number in group["params"]]
    stored = [name for group in groups for name in group.get("param_names", ())]
    given = stored if names is None else list(names)
    if names is None and not stored:
        problems.value("names: the state names no parameters: give them, in the order the optimizer was given them")
    elif len(given) != len(numbers) or len(set(given)) != len(given):
        problems.value(
            f"names: expected {len(numbers)} different names, got {len(given)} of which {len(set(given))} differ"
        )
    problems.raise_if_any()
    if names is not None and stored and given != stored:
        problems.value(
            f"names: the optimizer was built with other names: {stored[:3]}... where {given[:3]}... are given"
        )
        problems.raise_if_any()
    return groups, dict(zip(numbers, given, strict=True))


def _rule(groups: Sequence[Mapping[str, object]], problems: Problems) -> str:
    """Which optimizer it is, told by its hyperparameters; notes those that no state of optax could go with."""
    keys = set.intersection(*(set(group) for group in groups)) if groups else set()
    if {"amsgrad", "betas"} <= keys:
        rule = "adam"
    elif {"momentum", "dampening", "nesterov"} <= keys:
        rule = "sgd"
    else:
        problems.value(f"expected Adam, AdamW or SGD, got an optimizer with {', '.join(sorted(keys - {'params'}))}")
        problems.raise_if_any()
    for flag, why in (
        ("amsgrad", "the largest second moment so far has no place in optax's adam"),
        ("maximize", "the moments have the opposite sign of optax's"),
        ("dampening", "optax's trace adds gradients undamped"),
    ):
        if any(group.get(flag) for group in groups):
            problems.value(f"{flag} is set: {why}")
    return rule


def _notes(groups: Sequence[Mapping[str, Any]], rule: str) -> list[str]:
    """What a group's hyperparameters are in optax, and which flags say only how PyTorch computes."""
    notes = []
    for i, group in enumerate(groups):
        decay = group["weight_decay"]
        if rule == "adam":
            b1, b2 = group["betas"]
            common = f"learning_rate={group['lr']}, b1={b1}, b2={b2}, eps={group['eps']}"
            same = f"optax.adam({common})"
            if group.get("decoupled_weight_decay"):
                same, decay = f"optax.adamw({common}, weight_decay={decay})", 0
        else:
            same = f"optax.sgd(learning_rate={group['lr']}, momentum={group['momentum']}, nesterov={group['nesterov']})"
        if decay:  # added to the gradient, before the moments
            same = f"optax.chain(optax.add_decayed_weights({decay}), {same})"
        set_flags = [flag for flag in _FLAGS if group.get(flag)]
        without = f"; {', '.join(set_flags)}: how PyTorch computes, nothing in optax" if set_flags else ""
        notes.append(f"group {i} goes on as {same}{without}")
    return notes
