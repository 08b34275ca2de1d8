"""Two checkpoints compared through the canonical form."""

from __future__ import annotations

import contextlib
import os

from maskattn import checkpoints
from maskattn.convert.layouts import CANONICAL, Layout
from maskattn.parity.checkpoint.layers import Array, Found, canonical_layer, find, of_model
from maskattn.parity.findings import bits_equal


def compare(
    path: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    layout: str = "auto",
    against_layout: str = "auto",
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
) -> str | None:
    """The first difference between the attention layers of two checkpoints of any layouts, by layer and tensor.

    None where both hold the same layers and the same canonical tensors, byte for byte. Layers correspond by their
    prefixes, whatever separates names in them.
    """
    with checkpoints.open(path) as left, checkpoints.open(against) as right:
        sizes = num_heads, num_kv_heads
        ours, theirs = find(left, layout, *sizes), find(right, against_layout, *sizes)
        if (ours.kind is CANONICAL) != (theirs.kind is CANONICAL) and "auto" in (layout, against_layout):
            with contextlib.suppress(ValueError):  # names of layers that correspond
                ours, theirs = of_model(left, *sizes), of_model(right, *sizes)
        others = {_plain(prefix, theirs.kind): prefix for prefix in theirs.configs}
        for prefix in ours.configs:
            if _plain(prefix, ours.kind) not in others:
                return f"{prefix}: no such layer in {against}"
            mine, other = _read(ours, prefix), _read(theirs, others.pop(_plain(prefix, ours.kind)))
            for name in dict.fromkeys((*mine, *other)):
                if name not in mine or name not in other:
                    return f"{prefix}{name}: only in {path if name in mine else against}"
                finding = bits_equal("weights", f"{path} = {against}", name, mine[name], other[name])
                if not finding.held:
                    return f"{prefix}{name}: {finding.message}"
    return f"{next(iter(others.values()))}: no such layer in {path}" if others else None


def _read(found: Found, prefix: str) -> dict[str, Array]:
    return canonical_layer(found.kind, found.tensors(prefix), found.configs[prefix], prefix)


def _plain(prefix: str, kind: Layout) -> str:
    return prefix.replace(kind.separator, ".")
