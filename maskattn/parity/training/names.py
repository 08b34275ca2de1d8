"""A whole model's parameters, or its moments, between the names of a twin's modules and canonical ones.

Canonical are Flax's names, which are those of the JAX twin: `kernel` [in, out], `bias`, `scale` (layer norm),
`embedding` [tokens, width], and attention in its canonical layout. Only numbers move, so what holds for parameters
holds for the moments of an optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maskattn.checkpoints import TensorInfo
from maskattn.config import AttentionConfig
from maskattn.convert import families, plan
from maskattn.typing import NumPyArray as Array

FAMILY = families.read(Path(__file__).with_suffix(".toml"))
_CANONICAL = "flax-nnx"
_FORMS = {"torch": FAMILY.name, "jax": _CANONICAL}


def to_canonical(tensors: Mapping[str, Array], twin: str, layers: Mapping[str, AttentionConfig]) -> dict[str, Array]:
    """From the names of `twin` ("torch" or "jax"); `layers` are the attention layers by path."""
    return dict(sorted(_converted(tensors, _CANONICAL, layers).items()))


def from_canonical(tensors: Mapping[str, Array], twin: str, layers: Mapping[str, AttentionConfig]) -> dict[str, Array]:
    """The inverse of `to_canonical`."""
    return _converted(tensors, _FORMS[twin], layers)


def _converted(tensors: Mapping[str, Array], target: str, layers: Mapping[str, AttentionConfig]) -> dict[str, Array]:
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in tensors.items()}
    heads = {path: [config.num_heads, config.num_kv_heads] for path, config in layers.items()}
    planned = plan(infos, source=FAMILY.name, target=target, family=FAMILY, provenance={"heads": heads})
    return planned.evaluate(tensors)
