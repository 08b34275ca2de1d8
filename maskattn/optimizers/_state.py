"""The framework-free form of an optimizer's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskattn._problems import Problems
from maskattn.config import AttentionConfig
from maskattn.typing import NumPyArray as Array

if TYPE_CHECKING:
    from maskattn.models import WholeModel

Slots = Mapping[str, Mapping[str, Array]]

# The slots of each rule, by optax's names, which are those of the papers.
SLOTS = {"adam": ("mu", "nu"), "sgd": ("trace",)}


@dataclass(frozen=True)
class OptimizerState:
    """Moments by parameter.

    Attributes:
        rule: ``"adam"`` (Adam and AdamW, which remember the same) or ``"sgd"`` (with momentum).
        step: updates made so far; None where the optimizer keeps no count (SGD of PyTorch).
        slots: ``{"mu": {...}, "nu": {...}}`` or ``{"trace": {...}}``, each a mapping of parameter names to arrays of
            the parameters' shapes: the first and second moment of Adam (Kingma and Ba 2015, algorithm 1) before bias
            correction, or the decayed sum of gradients.
        notes: what belongs to the optimizer and is not state: hyperparameters, and flags without a counterpart.

    Raises:
        ValueError: slots are not those of the rule, a parameter is not in each, step is negative or no int, or the
            rule is unknown. TypeError: it is not a str.
    """

    rule: str
    step: int | None
    slots: Slots
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = Problems("OptimizerState")
        problems.choice("rule", self.rule, tuple(SLOTS))
        if self.rule in SLOTS and tuple(self.slots) != SLOTS[self.rule]:
            problems.value(f"slots of {self.rule} must be {', '.join(SLOTS[self.rule])}, got {', '.join(self.slots)}")
        if self.step is not None and (not isinstance(self.step, int) or isinstance(self.step, bool) or self.step < 0):
            problems.value(f"step must be None or an int of at least 0, got {self.step!r}")
        problems.raise_if_any()
        names = [list(slot) for slot in self.slots.values()]
        for slot in names[1:]:
            for name in dict.fromkeys([*names[0], *slot]):
                if (name in names[0]) != (name in slot):
                    problems.value(f"{name} is not in every slot")
        problems.raise_if_any()

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that have moments."""
        return tuple(next(iter(self.slots.values())))

    def map(self, conversion: Callable[[dict[str, Array]], Mapping[str, Array]]) -> OptimizerState:
        """The state with ``conversion``, a function of parameter names and arrays, applied to each slot.

        For whatever converts the weights by moving numbers; one that changes them would be wrong for moments.
        """
        return replace(self, slots={slot: dict(conversion(dict(held))) for slot, held in self.slots.items()})


def convert(
    state: OptimizerState, *, source: str, target: str, config: AttentionConfig | WholeModel, others: str = "error"
) -> OptimizerState:
    """Moments of attention layers from one layout to another: ``convert_tensors`` of each slot.

    ``state`` are the moments. Arguments are those of ``convert_tensors``, except that ``source`` must be named. What
    the target stores and does not train (buffers) has no moments and is left out. Where ``config`` is the table of a
    whole model (``model.table``), the moments are the model's, and its forms are those of ``maskattn.models.renamed``:
    ``"maskattn-torch"``, ``"flax-nnx"``, ``"published"``.

    Raises:
        ValueError: as ``convert_tensors``; and where the conversion does more than move numbers, as when a scale is
            folded into weights: Adam's steps would not be the same steps, whatever became of the moments.
    """
    from maskattn.convert import convert_tensors, layouts

    if not isinstance(config, AttentionConfig):
        from maskattn.models.renamed import renamed

        return state.map(lambda held: renamed(held, config, source, target))
    to = layouts.get(target)
    buffers = {buffer.name for buffer in to.buffers}
    problems = Problems(f"moments from {source} to {target}")
    for step in layouts.steps(source, target, config):
        if step.name not in {f"build {name}" for name in buffers}:
            problems.value(f"the conversion does more than move numbers: {step}")
    problems.raise_if_any()

    def conversion(held: dict[str, Array]) -> dict[str, Array]:
        out = convert_tensors(held, source=source, target=target, config=config, others=others)
        owned = [(name, full) for layer in to.match(out).values() for name, full in layer.items()]
        unwanted = {full for name, full in owned if name in buffers}
        return {name: array for name, array in out.items() if name not in unwanted}

    return state.map(conversion)


def as_array(problems: Problems, where: str, leaf: object) -> Array:
    """A leaf of a tree as a NumPy array of its own dtype; notes what is none."""
    try:
        array = np.asarray(leaf)
    except (TypeError, ValueError, RuntimeError):  # a torch.Tensor of bfloat16, or one that is on a device
        array = np.empty(0, object)
    if array.dtype == object:
        problems.type(f"{where}: expected a NumPy array, got {type(leaf).__module__}.{type(leaf).__qualname__}")
    return array


def same_targets(problems: Problems, slot: str, given: Mapping[str, Array], held: Mapping[str, Any]) -> None:
    """Notes every parameter for which what is given and what the optimizer holds differ in name, shape or dtype."""
    for name in held:
        if name not in given:
            problems.value(f"{name}: the optimizer holds it, but the state has no {slot} for it")
    for name, array in given.items():
        if name not in held:
            problems.value(f"{name}: the state has {slot} for it, but the optimizer holds no such parameter")
            continue
        shape, dtype = tuple(held[name].shape), str(held[name].dtype).removeprefix("torch.")
        if tuple(array.shape) != shape:
            problems.value(f"{slot} of {name}: expected shape {list(shape)}, got {list(array.shape)}")
        if str(array.dtype) != dtype:
            problems.value(f"{slot} of {name}: expected dtype {dtype}, got {array.dtype}")
