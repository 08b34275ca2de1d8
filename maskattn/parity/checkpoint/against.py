"""Two checkpoints compared through the canonical form."""

from __future__ import annotations

import os
from collections.abc import Mapping

from maskattn import checkpoints
from maskattn.config import AttentionConfig
from maskattn.convert.layouts import Layout
from maskattn.parity.checkpoint.layers import Array, canonical_layer, configs_of, layers_of
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
        kind, layers = layers_of(left, layout)
        other_kind, other_layers = layers_of(right, against_layout)
        configs = configs_of(left, kind, layers, num_heads, num_kv_heads)
        other_configs = configs_of(right, other_kind, other_layers, num_heads, num_kv_heads)
        theirs = {_plain(prefix, other_kind): prefix for prefix in other_layers}
        for prefix, names in layers.items():
            if _plain(prefix, kind) not in theirs:
                return f"{prefix}: no such layer in {against}"
            ours = _read(left, kind, names, configs[prefix], prefix)
            other_prefix = theirs.pop(_plain(prefix, kind))
            other = _read(right, other_kind, other_layers[other_prefix], other_configs[other_prefix], other_prefix)
            for name in dict.fromkeys((*ours, *other)):
                if name not in ours or name not in other:
                    return f"{prefix}{name}: only in {path if name in ours else against}"
                finding = bits_equal("weights", f"{path} = {against}", name, ours[name], other[name])
                if not finding.held:
                    return f"{prefix}{name}: {finding.message}"
    return f"{next(iter(theirs))}: no such layer in {path}" if theirs else None


def _read(
    reader: checkpoints.Reader, kind: Layout, names: Mapping[str, str], config: AttentionConfig, prefix: str
) -> dict[str, Array]:
    return canonical_layer(kind, {name: reader[full] for name, full in names.items()}, config, prefix)


def _plain(prefix: str, kind: Layout) -> str:
    return prefix.replace(kind.separator, ".")
