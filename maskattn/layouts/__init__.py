"""How checkpoints store attention: one layout per file, all meeting in the canonical form.

>>> from maskattn import layouts
>>> layouts.names()
('canonical', 'maskattn-torch', 'flax-nnx', 'flax-linen', 'torch-mha', 'hf-bert')
>>> layouts.get("timm").name
'maskattn-torch'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from maskattn.layouts._base import Layout, Step
from maskattn.layouts._check import problems
from maskattn.layouts._detect import Candidate, Detection
from maskattn.layouts._detect import detect as _detect
from maskattn.layouts._tree import flatten, unflatten
from maskattn.layouts.canonical import Canonical
from maskattn.layouts.flax_linen import FlaxLinen
from maskattn.layouts.flax_nnx import FlaxNNX
from maskattn.layouts.hf_bert import HFBert
from maskattn.layouts.maskattn_torch import MaskattnTorch
from maskattn.layouts.torch_mha import TorchMHA

if TYPE_CHECKING:
    from maskattn.config import AttentionConfig

__all__ = [
    "Candidate",
    "Detection",
    "Layout",
    "Step",
    "detect",
    "flatten",
    "get",
    "names",
    "problems",
    "steps",
    "unflatten",
]

_LAYOUTS: tuple[Layout, ...] = (
    Canonical(),
    MaskattnTorch(),
    FlaxNNX(),
    FlaxLinen(),
    TorchMHA(),
    HFBert(),
)


def names() -> tuple[str, ...]:
    """The names of all layouts."""
    return tuple(layout.name for layout in _LAYOUTS)


def get(name: str) -> Layout:
    """The layout called ``name``, or one of whose aliases it is; ValueError lists the known ones."""
    for layout in _LAYOUTS:
        if name == layout.name or name in layout.aliases:
            return layout
    known = (layout.name + "".join(f" (= {alias})" for alias in layout.aliases) for layout in _LAYOUTS)
    raise ValueError(f"unknown layout {name!r}; expected one of: {', '.join(known)}")


def steps(source: str, target: str, config: AttentionConfig, tensors: Iterable[str] = ()) -> tuple[Step, ...]:
    """What a conversion does beside moving numbers, before it is run.

    Args:
        source, target: names of layouts. config: the sizes of the layer.
        tensors: the names of one layer's tensors without prefix, which show the buffers it holds.

    A ``Step`` whose ``exact`` is False cannot be undone exactly: converted back, the bytes are not those of the source.
    """
    return get(source).reading(config, tensors) + get(target).writing(config)


def detect(tensors: Mapping[str, Any], config: AttentionConfig | None = None) -> Detection:
    """Which layouts ``tensors`` (names to arrays) can be in, with the evidence.

    Without ``config``, shapes need only agree with each other; with it, they must be those of the configuration. The
    answer's ``layout`` is the name of the only candidate, and raises ValueError where there is none or more than one.
    """
    return _detect(tensors, config, [layout for layout in _LAYOUTS if layout.detectable])
