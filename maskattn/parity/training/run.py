"""The same run in both frameworks, what crosses over half way, and what is compared."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from maskattn.models import files
from maskattn.models.leaves import Tensor
from maskattn.numerics import rng
from maskattn.optimizers import OptimizerState, convert
from maskattn.parity.draws import Draws
from maskattn.parity.findings import Finding
from maskattn.parity.training.tasks import OPTIMIZERS, TASKS
from maskattn.standards import value
from maskattn.typing import NumPyArray as Array

#: Loaded when used, so that nothing imports both frameworks by itself.
TRAINERS = {"torch": "maskattn_torch.testing.training", "jax": "maskattn_jax.testing.training"}

STEPS = 100
#: Over the first steps float32 is held to a limit of its own.
FIRST = 10


@dataclass(frozen=True)
class Setting:
    """What is trained, by which optimizer, in which dtype, with which kernel."""

    task: str
    optimizer: str
    dtype: str
    kernel: str = "reference"

    @property
    def id(self) -> str:
        """task/optimizer/dtype."""
        return f"{self.task}/{self.optimizer}/{self.dtype}"


@dataclass(frozen=True)
class State:
    """A run between two steps, in no framework: names and shapes are those that the model is published with.

    Attributes:
        step: updates made.
        tensors: of the model. moments: what the optimizer remembers; None before the first step.
        key: uint32 [2], from which the keys of the steps to come are split.
    """

    step: int
    tensors: Mapping[str, Array]
    moments: OptimizerState | None
    key: Array


class Trainer(Protocol):
    """One model and its optimizer in one framework, as the twins' `testing.training` have it: NumPy in, NumPy out.

    Attributes:
        form: how this framework names parameters, and so moments: see `maskattn.models.renamed`.
    """

    form: str
    key: Any

    def load(self, tensors: Mapping[str, Array], moments: OptimizerState | None, key: Array) -> None: ...
    def step(self, batch: Mapping[str, Array]) -> float: ...
    def dump(self) -> tuple[dict[str, Array], OptimizerState, Array]: ...


@dataclass(frozen=True)
class TrainingOutcome:
    """One setting, run and judged.

    Attributes:
        curves: the losses of each run, float64: "torch" and "jax" from the start to the end, "torch to jax" and "jax
            to torch" the second half of a run that crossed over.
        apart: for each run but "torch", how far its parameters are at the end from the run that it is compared with:
            the largest relative difference of a tensor by its norm, and the largest of an element.
        error: what was raised, in words; None where nothing was.
    """

    setting: Setting
    curves: dict[str, Array] = field(default_factory=dict)
    apart: dict[str, tuple[float, float]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    error: str | None = None

    @property
    def held(self) -> bool:
        """Whether everything ran and every limit was kept."""
        return self.error is None and bool(self.findings) and all(finding.held for finding in self.findings)

    def difference(self, run: str) -> Array:
        """|loss - other| / |other| at each step, against the run that this one is compared with."""
        other = self.curves[against(run)][-len(self.curves[run]) :]
        return np.asarray(np.abs(self.curves[run] - other) / np.abs(other))


def exit_code(outcomes: Sequence[TrainingOutcome]) -> int:
    """0 only if something ran and everything held."""
    return 0 if outcomes and all(outcome.held for outcome in outcomes) else 1


def settings(kernel: str = "reference") -> list[Setting]:
    """Every task, optimizer and dtype."""
    return [Setting(t, o, d, kernel) for t in TASKS for d in ("float64", "float32") for o in OPTIMIZERS]


def against(run: str) -> str:
    """The run that another one is compared with: PyTorch's, or the one that it left."""
    return run.partition(" to ")[0] if " to " in run else "torch"


def trainer(twin: str, setting: Setting) -> Trainer:
    """A new trainer of `twin` ("torch" or "jax")."""
    module = importlib.import_module(TRAINERS[twin])
    made: Trainer = module.Trainer(TASKS[setting.task], OPTIMIZERS[setting.optimizer], setting.dtype, setting.kernel)
    return made


def train(trainer: Trainer, setting: Setting, state: State, *stops: int) -> tuple[list[float], list[State]]:
    """Goes on from `state` up to the last of `stops` without a break: the losses, and the state at each stop."""
    task, moments, form = TASKS[setting.task], state.moments, trainer.form
    if moments is not None:
        moments = convert(moments, source="published", target=form, config=task.table)
    trainer.load(state.tensors, moments, state.key)
    losses, states = [], []
    for step in range(state.step, stops[-1]):
        batch = {name: x.astype(setting.dtype) if x.dtype == float else x for name, x in task.batch(step).items()}
        losses.append(trainer.step(batch))
        if step + 1 in stops:
            tensors, moments, key = trainer.dump()
            moments = convert(moments, source=form, target="published", config=task.table)
            states.append(State(step + 1, tensors, moments, key))
    return losses, states


def start(setting: Setting) -> State:
    """What both begin from, one NumPy draw by name."""
    tensors = files.tensors_of(TASKS[setting.task].table)
    return State(0, {name: _draw(name, x).astype(setting.dtype) for name, x in tensors.items()}, None, rng.key(0))


def _draw(name: str, tensor: Tensor) -> Array:
    drawn: Array = Draws(name).normal(tensor.shape)
    if len(tensor.shape) > 1:
        return np.asarray(drawn / np.sqrt(tensor.shape[-1]))
    return np.asarray(drawn / 20 + (tensor.begins if isinstance(tensor.begins, float) else 0.0))


def run_setting(
    setting: Setting,
    steps: int = STEPS,
    *,
    make: Callable[[str, Setting], Trainer] = trainer,
    progress: Callable[[str], None] = lambda text: None,
) -> TrainingOutcome:
    """Trains in both frameworks, crosses over half way in both directions, and judges.

    Args:
        steps: of each run; at least 2.
        make: gives the trainer of a twin.
        progress: told what is being run.
    """
    try:
        trainers = {twin: make(twin, setting) for twin in TRAINERS}
        begin, half = start(setting), steps // 2
        curves: dict[str, Array] = {}
        middle: dict[str, State] = {}
        ends: dict[str, State] = {}
        for twin, runner in trainers.items():
            progress(f"{setting.id} in {twin}")
            losses, (middle[twin], ends[twin]) = train(runner, setting, begin, half, steps)
            curves[twin] = np.array(losses)
        for source, target in (("torch", "jax"), ("jax", "torch")):
            name = f"{source} to {target}"
            progress(f"{setting.id}, {name}")
            losses, (ends[name],) = train(trainers[target], setting, middle[source], steps)
            curves[name] = np.array(losses)
    except ImportError:
        raise
    except Exception as error:
        return TrainingOutcome(setting, error=f"{type(error).__name__}: {error}")
    apart = {name: distance(ends[name].tensors, ends[against(name)].tensors) for name in ends if name != "torch"}
    return judge(TrainingOutcome(setting, curves, apart))


def distance(tensors: Mapping[str, Array], others: Mapping[str, Array]) -> tuple[float, float]:
    """The largest |a - b| / |b| of a tensor by its Euclidean norm, and by its largest elements.

    Key biases are left out: their gradient is 0 in exact arithmetic, and AdamW makes steps of its rounding errors.
    """
    norms, elements = [], []
    for name in tensors:
        if name.endswith(("key.bias", "k_proj.bias")):
            continue
        a, b = (np.asarray(held[name], np.float64) for held in (tensors, others))
        norms.append(float(np.linalg.norm(a - b) / np.linalg.norm(b)))
        elements.append(float(np.abs(a - b).max() / np.abs(b).max()))
    # not max(): it would pass over a NaN
    return float(np.max(norms)), float(np.max(elements))


def judge(outcome: TrainingOutcome) -> TrainingOutcome:
    """The outcome with its findings: losses, parameters, and whether there was anything to see."""
    dtype, findings = outcome.setting.dtype, []
    for run, (norm, element) in outcome.apart.items():
        subject = f"{run} = {against(run)}"
        difference = outcome.difference(run)
        limits = {f"{FIRST} steps": value(f"tier3.{dtype}.first")} if " to " not in run else {}
        limits["every step"] = value(f"tier3.{dtype}")
        for quantity, limit in limits.items():
            judged = difference[:FIRST] if quantity != "every step" else difference
            findings.append(_finding("loss", subject, quantity, judged, limit, f"at step {int(judged.argmax()) + 1}"))
        limit = value(f"tier3.{dtype}")
        message = f"by norm, {element:.1e} by element"
        findings.append(_finding("parameters", subject, "at the end", np.array([norm]), limit, message))
    curve = outcome.curves["torch"]
    few = max(1, len(curve) // 10)
    share = float(curve[-few:].mean() / curve[:few].mean())
    learned = _finding(
        "learned", "torch", "loss", np.array([share]), value("tier3.fell"), "the last losses by the first"
    )
    return TrainingOutcome(outcome.setting, outcome.curves, outcome.apart, (*findings, learned))


def _finding(check: str, subject: str, quantity: str, errors: Array, limit: float, where: str) -> Finding:
    worst = float(errors.max())
    message = f"{worst:.2e} against a limit of {limit:.0e}, {where}"
    return Finding(check, subject, quantity, worst <= limit, message, worst, limit, errors.size)
