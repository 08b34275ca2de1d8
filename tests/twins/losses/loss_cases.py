"""The losses in float64 NumPy, written as their definitions read; inputs to try them on; running a twin's."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from maskattn import standards

JAX, TORCH = "jax", "torch"
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True)
class Case:
    """One call: floats are differentiated, data are not; where ignored[name] is True, a float must not matter."""

    loss: str
    floats: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        return " ".join([self.loss, *self.data, *map(str, self.options.values())])


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def widened(x, shape):
    x = np.asarray(x, np.float64)
    return np.broadcast_to(x.reshape(*x.shape, *[1] * (len(shape) - x.ndim)), shape)


def cross_entropy(logits, labels, weights=1.0, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    weights = widened(weights, labels.shape) * (labels != ignore_index)
    losses = np.zeros(labels.shape)
    for at in np.ndindex(*labels.shape):
        if weights[at]:
            log_p = log_softmax(logits[at])
            target = np.full(len(log_p), label_smoothing / len(log_p))
            target[labels[at]] += 1 - label_smoothing
            losses[at] = -weights[at] * (target @ log_p)
    total = losses.sum()
    return {"none": losses, "sum": total, "mean": total / weights.sum() if weights.any() else 0.0}[reduction]


def accuracy(logits, labels, weights=1.0, ignore_index=-100):
    weights = widened(weights, labels.shape) * (labels != ignore_index)
    right = (logits.argmax(axis=-1) == labels) * weights
    return right.sum() / weights.sum() if weights.any() else 0.0


def masked_mean(values, keep, axis=None):
    keep = widened(keep, values.shape) > 0
    total, count = np.where(keep, values, 0).sum(axis=axis), keep.sum(axis=axis)
    return np.where(count == 0, 0, total / np.maximum(count, 1))


def mae_loss(prediction, target, removed, normalize=False):
    losses = []
    for at in zip(*np.nonzero(removed), strict=True):
        patch = target[at]
        if normalize:
            patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
        losses.append(((prediction[at] - patch) ** 2).mean())
    return np.mean(losses) if losses else 0.0


def simmim_loss(prediction, target, removed):
    side = target.shape[1] // removed.shape[1], target.shape[2] // removed.shape[2]
    losses = []
    for b, y, x in np.ndindex(*target.shape[:3]):
        if removed[b, y // side[0], x // side[1]]:
            losses.extend(np.abs(prediction[b, y, x] - target[b, y, x]))
    return np.mean(losses) if losses else 0.0


def contrastive(queries, keys, valid=None, temperature=0.07, symmetric=True, normalize=True):
    rows = np.arange(len(queries)) if valid is None else np.flatnonzero(valid)
    if not len(rows):
        return 0.0
    q, k = queries[rows], keys[rows]
    if normalize:
        q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
    scores = q @ k.T / temperature
    there = -np.diag(log_softmax(scores)).mean()
    return (there - np.diag(log_softmax(scores.T)).mean()) / 2 if symmetric else there


ORACLE = {f.__name__: f for f in (cross_entropy, accuracy, masked_mean, mae_loss, simmim_loss, contrastive)}


def cases(seed=0):
    """Calls of every loss, with and without each of its options."""
    draw = np.random.default_rng(seed)
    logits, labels = 3 * draw.standard_normal((3, 5, 7)), draw.integers(0, 7, (3, 5))
    labels[0, 2:] = labels[2, 1] = -100
    tokens, samples = draw.random((3, 5)), np.array([0.5, 2.0, 0.0])
    tokens[1, :2] = 0
    gone = labels == -100
    each = {
        "plain": ({}, {}, gone),
        "tokens": ({"weights": tokens}, {}, gone | (tokens == 0)),
        "samples": ({"weights": samples}, {}, gone | (samples == 0)[:, None]),
        "smooth": ({"weights": tokens}, {"label_smoothing": 0.1}, gone | (tokens == 0)),
        "sum": ({"weights": samples}, {"reduction": "sum"}, gone | (samples == 0)[:, None]),
        "none": ({"weights": tokens}, {"reduction": "none"}, gone | (tokens == 0)),
    }
    for data, options, out in each.values():
        yield Case("cross_entropy", {"logits": logits}, {"labels": labels, **data}, options, {"logits": out})
    other = np.where(gone, 3, labels)
    out = other == 3
    yield Case("cross_entropy", {"logits": logits}, {"labels": other}, {"ignore_index": 3}, {"logits": out})
    for data, _, out in list(each.values())[:3]:
        yield Case("accuracy", {"logits": logits}, {"labels": labels, **data}, {}, {"logits": out})
    values, keep = draw.standard_normal((3, 5, 4)), draw.random((3, 5)) < 0.6
    keep[1] = False
    for axis in (None, 1, (0, 2)):
        yield Case("masked_mean", {"values": values}, {"keep": keep}, {"axis": axis}, {"values": ~keep})
    patches, removed = draw.standard_normal((2, 3, 6, 12)), draw.random((3, 6)) < 0.7
    pair = {"prediction": patches[0], "target": 2 + 3 * patches[1]}
    for normalize in (False, True):
        out = dict.fromkeys(pair, ~removed)
        yield Case("mae_loss", pair, {"removed": removed}, {"normalize": normalize}, out)
    images, hidden = draw.standard_normal((2, 2, 8, 12, 3)), draw.random((2, 2, 3)) < 0.6
    out = dict.fromkeys(pair, ~hidden.repeat(4, axis=1).repeat(4, axis=2))
    yield Case("simmim_loss", dict(zip(pair, images, strict=True)), {"removed": hidden}, {}, out)
    rows, valid = draw.standard_normal((2, 6, 5)), np.array([True, False, True, True, False, True])
    both = dict(zip(("queries", "keys"), rows, strict=True))
    for options in ({}, {"symmetric": False}, {"normalize": False, "temperature": 0.5}):
        yield Case("contrastive", both, {"valid": valid}, options, dict.fromkeys(both, ~valid))
    yield Case("contrastive", both)


def oracle(case):
    return ORACLE[case.loss](**{n: x.astype(np.float64) for n, x in case.floats.items()}, **case.data, **case.options)


def limit(case, dtype):
    """What a float result may differ from the oracle by."""
    largest = max(np.abs(np.where(np.isfinite(x), x, 0)).max() for x in case.floats.values())
    return standards.value("loss.base") * EPS[dtype] * (1 + largest) ** 2


def run(twin, case, dtype="float32", loss=None):
    """The loss and its gradients by the floats, NumPy arrays; `loss` replaces the function."""
    floats = {name: np.asarray(x, dtype) for name, x in case.floats.items()}
    if twin == TORCH:
        return torch_step(case, loss)(floats)
    import jax

    with jax.enable_x64(dtype == "float64"):
        return jax_step(case, loss)(floats)


@cache
def jax_function(loss, options, compiler):
    import jax

    import maskattn_jax

    def total(floats, data):
        function = getattr(maskattn_jax.losses, loss) if isinstance(loss, str) else loss
        value = function(**floats, **data, **dict(options))
        return value.sum(), value

    return (compiler or jax.jit)(jax.value_and_grad(total, has_aux=True))


def jax_step(case, loss=None, compiler=None):
    """floats -> (loss, gradients) of a case, jitted."""
    import jax.numpy as jnp

    compiled = jax_function(loss or case.loss, tuple(case.options.items()), compiler)

    def call(floats):
        floats, data = ({name: jnp.asarray(x) for name, x in arrays.items()} for arrays in (floats, case.data))
        (_, value), grads = compiled(floats, data)
        return np.asarray(value), {name: np.asarray(x) for name, x in grads.items()}

    return call


def torch_step(case, loss=None, compiler=lambda call: call):
    """floats -> (loss, gradients) of a case."""
    import torch

    import maskattn_torch

    function = loss or getattr(maskattn_torch.losses, case.loss)
    data = {name: torch.as_tensor(x) for name, x in case.data.items()}
    compiled = compiler(lambda floats: function(**floats, **data, **case.options))

    def call(floats):
        floats = {name: torch.tensor(x, requires_grad=True) for name, x in floats.items()}
        value = compiled(floats)
        if not value.requires_grad:
            return value.numpy(), {name: np.zeros(x.shape, x.detach().numpy().dtype) for name, x in floats.items()}
        grads = torch.autograd.grad(value.sum(), list(floats.values()))
        return value.detach().numpy(), dict(zip(floats, (x.numpy() for x in grads), strict=True))

    return call


def judge(twin, case, loss=None):
    """Everything that is asked of a loss, or of `loss` in its place; an AssertionError where it does not hold."""
    call = torch_step(case, loss) if twin == TORCH else jax_step(case, loss)
    floats = {name: np.asarray(x, np.float32) for name, x in case.floats.items()}
    value, grads = call(floats)
    np.testing.assert_allclose(value, oracle(case), rtol=0, atol=limit(case, "float32"))
    poisoned = {name: x.copy() for name, x in floats.items()}
    for name, out in case.ignored.items():
        poisoned[name][out] = np.nan
    again, poisoned_grads = call(poisoned)
    assert value.tobytes() == again.tobytes()
    for name, grad in grads.items():
        assert grad.tobytes() == poisoned_grads[name].tobytes()
        if name in case.ignored:
            assert not grad[case.ignored[name]].any()


def devices_cases(devices):
    """A call of every loss on 8 rows, of which the devices' parts have unequal numbers that count, one none."""
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 7, (8, 5))
    labels[draw.random((8, 5)) < 0.4] = -100
    labels[: 8 // devices] = -100  # the first device's rows
    keep = labels != -100
    logits, weights = {"logits": draw.standard_normal((8, 5, 7))}, draw.random(8)
    yield Case("cross_entropy", logits, {"labels": labels, "weights": weights}, {"label_smoothing": 0.1})
    yield Case("accuracy", logits, {"labels": labels, "weights": weights})
    yield Case("masked_mean", {"values": logits["logits"]}, {"keep": keep})
    pair = dict(zip(("prediction", "target"), draw.standard_normal((2, 8, 5, 6)), strict=True))
    yield Case("mae_loss", pair, {"removed": keep}, {"normalize": True})
    images = dict(zip(("prediction", "target"), draw.standard_normal((2, 8, 5, 4, 3)), strict=True))
    yield Case("simmim_loss", images, {"removed": keep[..., None]})
    rows = dict(zip(("queries", "keys"), draw.standard_normal((2, 8, 4)), strict=True))
    yield Case("contrastive", rows, {"valid": keep[:, 0]})
