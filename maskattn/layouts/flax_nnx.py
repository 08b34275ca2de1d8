"""Flax NNX multi-head attention, Flax's own and ours: ``query.kernel`` [E, H, D] ... ``out.kernel`` [H, Dv, out]."""

from __future__ import annotations

from maskattn.layouts.canonical import Canonical

# What Flax's multi-head attention may hold beside its projections.
NORMS = {
    f"{role}_ln{separator}{part}": "normalised queries and keys have no canonical form yet"
    for role in ("query", "key")
    for separator in "./"
    for part in ("scale", "bias")
}


class FlaxNNX(Canonical):
    """Names as the attribute paths of an NNX module, joined by a dot."""

    name = "flax-nnx"
    aliases = ("nnx",)
    detectable = True
    refused = NORMS
