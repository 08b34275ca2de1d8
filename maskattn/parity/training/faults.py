"""Known mistakes, planted in one framework's training; each must be caught."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskattn.numerics import rng
from maskattn.optimizers import OptimizerState
from maskattn.parity.training import run
from maskattn.parity.training.run import Setting, Trainer, TrainingOutcome
from maskattn.parity.training.tasks import Optimizer
from maskattn.typing import NumPyArray as Array

#: Every fault is planted in this one; few steps show it.
SETTING = Setting("mlm", "adamw", "float64")
STEPS = 6

Replacement = Callable[[str, Any], Any]


@dataclass(frozen=True)
class TrainingFault:
    """One mistake.

    Attributes:
        name, description: what is done wrong.
        trainer: a twin's trainer -> one that does it wrong.
        patches: (module of the twin, name) -> (twin, what was there) -> what replaces it.
    """

    name: str
    description: str
    trainer: Callable[[Trainer], Any] | None = None
    patches: tuple[tuple[str, str, Replacement], ...] = ()


class _Wrong:
    """A trainer in which one method is another."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


class _SameKeyTwice(_Wrong):
    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._steps = 0

    def step(self, batch: Mapping[str, Array]) -> float:
        key = self._trainer.key
        loss = float(self._trainer.step(batch))
        self._steps += 1
        if self._steps % 2:
            self._trainer.key = key
        return loss


class _LosesOnLoad(_Wrong):
    def __init__(self, trainer: Trainer, lose: Callable[..., tuple[OptimizerState | None, Array]]) -> None:
        super().__init__(trainer)
        self._lose = lose

    def load(self, tensors: Mapping[str, Array], moments: OptimizerState | None, key: Array) -> None:
        self._trainer.load(tensors, *self._lose(moments, key))


def _losing(lose: Callable[..., tuple[OptimizerState | None, Array]]) -> Callable[[Trainer], Any]:
    return lambda trainer: _LosesOnLoad(trainer, lose)


def _unscaled(twin: str, drop: Any) -> Callable[..., Any]:
    return lambda x, rate, key: drop(x, rate, key) * (1.0 - rate)


def _by_all_positions(twin: str, cross_entropy: Any) -> Callable[..., Any]:
    def wrong(logits: Any, labels: Any) -> Any:
        return cross_entropy(logits, labels, reduction="sum") / float(np.prod(labels.shape))

    return wrong


def _coupled(twin: str, make_optimizer: Any) -> Callable[..., Any]:
    """Adam with the decay in the gradient, where moments see it, in place of AdamW."""

    def in_torch(settings: Optimizer, model: Any) -> Any:
        import torch

        rate, betas, decay = settings.learning_rate, settings.betas, settings.weight_decay
        return torch.optim.Adam(list(model.named_parameters()), rate, betas, settings.epsilon, decay)

    def in_jax(settings: Optimizer, model: object) -> Any:
        import optax
        from flax import nnx

        b1, b2 = settings.betas
        adam = optax.adam(settings.learning_rate, b1=b1, b2=b2, eps=settings.epsilon)
        return nnx.Optimizer(model, optax.chain(optax.add_decayed_weights(settings.weight_decay), adam), wrt=nnx.Param)

    return {"torch": in_torch, "jax": in_jax}[twin]


FAULTS: tuple[TrainingFault, ...] = (
    TrainingFault("key-twice", "a key serves two steps", trainer=_SameKeyTwice),
    TrainingFault(
        "moments-dropped", "the run goes on without its moments", trainer=_losing(lambda moments, key: (None, key))
    ),
    TrainingFault(
        "count-dropped",
        "the run goes on with its moments, from step 0",
        trainer=_losing(lambda moments, key: (moments and replace(moments, step=0), key)),
    ),
    TrainingFault(
        "key-dropped",
        "the run goes on with the key it began with",
        trainer=_losing(lambda moments, key: (moments, rng.key(0))),
    ),
    TrainingFault(
        "decay-coupled",
        "weight decay goes through the moments",
        patches=(("testing.training", "make_optimizer", _coupled),),
    ),
    TrainingFault("dropout-unscaled", "what dropout keeps is not scaled", patches=(("dropout", "drop", _unscaled),)),
    TrainingFault(
        "ignored-counted",
        "the mean divides by ignored positions too",
        patches=(("losses", "cross_entropy", _by_all_positions),),
    ),
)


@contextlib.contextmanager
def planted(fault: TrainingFault, twin: str) -> Iterator[Callable[[str, Setting], Trainer]]:
    """While it lasts, the twin's code is wrong; gives what makes trainers. Nothing stays changed afterwards."""
    patches = [(f"maskattn_{twin}.{name}", attribute, wrong) for name, attribute, wrong in fault.patches]
    if twin == "jax" and patches:  # what is compiled already would not see it, and what is compiled now must not stay
        patches.append(("maskattn_jax.testing.training", "_gradient", lambda twin, old: _fresh()))
    places = [(importlib.import_module(name), attribute, wrong) for name, attribute, wrong in patches]
    kept = [getattr(module, attribute) for module, attribute, _ in places]

    def make(name: str, setting: Setting) -> Trainer:
        trainer = run.trainer(name, setting)
        return fault.trainer(trainer) if fault.trainer is not None and name == twin else trainer

    try:
        for (module, attribute, wrong), original in zip(places, kept, strict=True):
            setattr(module, attribute, wrong(twin, original))
        yield make
    finally:
        for (module, attribute, _), original in zip(places, kept, strict=True):
            setattr(module, attribute, original)


def _fresh() -> Any:
    return importlib.import_module("maskattn_jax.testing.training")._compiled_gradient()


def caught(fault: TrainingFault, twin: str) -> list[str]:
    """The checks that saw the fault in this twin; [] where it went unseen."""
    with planted(fault, twin) as make:
        return failed(run.run_setting(SETTING, STEPS, make=make))


def failed(outcome: TrainingOutcome) -> list[str]:
    """The checks that did not hold, each once; "learned" is none of them, since so few steps prove nothing."""
    if outcome.error is not None:
        return [f"error: {outcome.error}"]
    seen = {f"{f.check} [{f.subject}]": None for f in outcome.findings if not f.held and f.check != "learned"}
    return list(seen)


def with_nothing_planted() -> list[str]:
    """What fails in the run that faults are planted in (nothing should)."""
    return failed(run.run_setting(SETTING, STEPS))
