"""Ports of five kinds of model, each in its own way of writing JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jax import Array

from maskattn.diagnose import Report, compare
from tests.diagnose.ports import plain
from tests.diagnose.ports.encoder import Encoder
from tests.diagnose.ports.encoder_decoder import T5, params
from tests.diagnose.ports.torches import inputs, model, weights
from tests.diagnose.ports.vision import vision

Port = Callable[..., Array]


def port(kind: str, bad: str = "", at: int = 1) -> Port:
    """The port of a kind of model, with a fault."""
    held = weights(kind)
    match kind:
        case "decoder" | "experts":
            sizes = plain.DECODER if kind == "decoder" else plain.EXPERTS
            return functools.partial(plain.model, jax.tree.map(jax.numpy.asarray, held), sizes=sizes, bad=bad, at=at)
        case "encoder":
            return Encoder(held, bad=bad, at=at)
        case "vision":
            return vision(held, bad=bad, at=at)
        case _:
            of = "encoder" if bad.startswith("encoder: ") else "decoder"
            return functools.partial(
                T5(bad.removeprefix("encoder: "), of).apply, jax.tree.map(jax.numpy.asarray, params(held))
            )


def compared(kind: str, function: Port) -> Report:
    """What `maskattn.compare` says of a port."""
    return compare(model(kind), function, inputs(kind))
