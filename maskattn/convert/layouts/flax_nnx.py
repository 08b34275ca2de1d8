"""Flax NNX multi-head attention, Flax's own and ours: ``query.kernel`` [E, H, D] ... ``out.kernel`` [H, Dv, out].

With normalize_qk, ``query_ln.scale`` and ``key_ln.scale`` [D]: Flax's norms have no biases.
Ours may have ``sinks`` [H].
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Extra
from maskattn.convert.layouts.canonical import Canonical


def beside(separator: str) -> tuple[Extra, ...]:
    """The norms of queries and keys that Flax's multi-head attention may hold, and the sinks that ours may."""
    norms = [Extra(f"{role}_norm.scale", f"{role}_ln{separator}scale", ("D",)) for role in ("query", "key")]
    return (*norms, Extra("sinks", "sinks", ("H",)))


class FlaxNNX(Canonical):
    """Names as the attribute paths of an NNX module, joined by a dot."""

    name = "flax-nnx"
    aliases = ("nnx",)
    extras = beside(".")
    detectable = True
