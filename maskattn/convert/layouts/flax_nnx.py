"""Flax NNX multi-head attention, Flax's own and ours: ``query.kernel`` [E, H, D] ... ``out.kernel`` [H, Dv, out].

With normalize_qk, ``query_ln.scale`` and ``key_ln.scale`` [D]: Flax's norms have no biases. Ours may have them, and
what its other parts learn.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Extra
from maskattn.convert.layouts._extras import own
from maskattn.convert.layouts.canonical import Canonical


def beside(separator: str) -> tuple[Extra, ...]:
    """The norms of queries and keys that Flax's multi-head attention may hold, and what the parts of ours learn."""
    norms = [
        Extra(f"{role}_norm.{part}", f"{role}_ln{separator}{part}", axes)
        for role, heads in (("query", "H"), ("key", "K"))
        for part in ("scale", "bias")
        for axes in (("D",), (heads, "D"))
    ]
    return (*norms, *own(separator, "kernel"))


class FlaxNNX(Canonical):
    """Names as the attribute paths of an NNX module, joined by a dot."""

    name = "flax-nnx"
    aliases = ("nnx",)
    extras = beside(".")
    detectable = True
