"""How checkpoints store attention: one layout per file, all meeting in the canonical form.

>>> from maskattn import layouts
>>> layouts.names()[:5]
('canonical', 'maskattn-torch', 'flax-nnx', 'flax-linen', 'torch-mha')
>>> layouts.get("timm").name
'maskattn-torch'
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from maskattn import _moved
from maskattn.convert.layouts._base import Layout, Step
from maskattn.convert.layouts._check import DTYPES, mismatches, mixed_dtypes
from maskattn.convert.layouts._detect import Candidate, Detection, detect as _detect
from maskattn.convert.layouts._extras import EXTRAS
from maskattn.convert.layouts._stack import Stack
from maskattn.convert.layouts._tree import flatten, unflatten
from maskattn.convert.layouts.alpa import Alpa
from maskattn.convert.layouts.canonical import CANONICAL
from maskattn.convert.layouts.equinox import Equinox
from maskattn.convert.layouts.flax_bert import FlaxBert
from maskattn.convert.layouts.flax_gpt2 import FlaxGPT2, FlaxGPT2Cross
from maskattn.convert.layouts.flax_linen import FlaxLinen
from maskattn.convert.layouts.flax_nnx import FlaxNNX
from maskattn.convert.layouts.haliax import Haliax, Levanter
from maskattn.convert.layouts.hf_beit import HFBeitMemory
from maskattn.convert.layouts.hf_bert import HFBert
from maskattn.convert.layouts.hf_clip import HFCLIP
from maskattn.convert.layouts.hf_deberta import HFDeberta
from maskattn.convert.layouts.hf_gpt2 import HFGPT2, HFGPT2Cross
from maskattn.convert.layouts.hf_llama import HFLlama
from maskattn.convert.layouts.hf_longformer import HFLongformer
from maskattn.convert.layouts.hf_neox import HFNeoX
from maskattn.convert.layouts.hf_phi3 import HFPhi3
from maskattn.convert.layouts.hf_swin import HFSwin, HFSwinMemory
from maskattn.convert.layouts.hf_swin_v2 import HFSwinV2
from maskattn.convert.layouts.hf_t5 import HFT5
from maskattn.convert.layouts.hf_vit import HFViT
from maskattn.convert.layouts.hf_whisper import HFWhisper
from maskattn.convert.layouts.keras import Keras
from maskattn.convert.layouts.maskattn_torch import MaskattnTorch
from maskattn.convert.layouts.maxtext import MaxText, MaxTextLlama, MaxTextScaled
from maskattn.convert.layouts.megatron import Megatron
from maskattn.convert.layouts.meta_llama import MetaLlama
from maskattn.convert.layouts.swin import Swin, TimmSwin
from maskattn.convert.layouts.swin_v2 import SwinV2
from maskattn.convert.layouts.torch_mha import TorchMHA

if TYPE_CHECKING:
    from maskattn.config import AttentionConfig

__all__ = [
    "CANONICAL",
    "DTYPES",
    "EXTRAS",
    "Candidate",
    "Detection",
    "Layout",
    "Stack",
    "Step",
    "detect",
    "flatten",
    "get",
    "meant",
    "mismatches",
    "mixed_dtypes",
    "names",
    "steps",
    "unflatten",
]

__getattr__ = partial(_moved.renamed, __name__)

_LAYOUTS: tuple[Layout, ...] = (
    CANONICAL,
    MaskattnTorch(),
    FlaxNNX(),
    FlaxLinen(),
    TorchMHA(),
    HFBert(),
    HFViT(),
    HFSwin(),
    HFSwinMemory(),
    HFSwinV2(),
    Swin(),
    TimmSwin(),
    SwinV2(),
    HFGPT2(),
    HFGPT2Cross(),
    HFLlama(),
    MetaLlama(),
    HFNeoX(),
    Megatron(),
    HFPhi3(),
    HFT5(),
    HFCLIP(),
    HFWhisper(),
    HFBeitMemory(),
    HFDeberta(),
    HFLongformer(),
    FlaxBert(),
    FlaxGPT2(),
    FlaxGPT2Cross(),
    Alpa(),
    MaxText(),
    MaxTextScaled(),
    MaxTextLlama(),
    Haliax(),
    Levanter(),
    Keras(),
    Equinox(),
)


def names() -> tuple[str, ...]:
    """The names of all layouts."""
    return tuple(layout.name for layout in _LAYOUTS)


def get(name: str | Layout) -> Layout:
    """The layout called ``name``, or one of whose aliases it is; a layout itself is that.

    Raises:
        ValueError: there is none; lists the known ones.
    """
    if isinstance(name, Layout):
        return name
    for layout in _LAYOUTS:
        if name == layout.name or name in layout.aliases:
            return layout
    known = (layout.name + "".join(f" (= {alias})" for alias in layout.aliases) for layout in _LAYOUTS)
    spelled = [known for layout in _LAYOUTS for known in (layout.name, *layout.aliases)]
    raise ValueError(f"unknown layout {name!r}{meant(name, spelled)} one of: {', '.join(known)}")


def meant(name: str, known: Iterable[str]) -> str:
    """What a message on an unknown name goes on with: which of the ``known`` was probably meant, and "expected"."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {near[0]!r}? Expected" if near else "; expected"


def steps(source: str, target: str, config: AttentionConfig, tensors: Iterable[str] = ()) -> tuple[Step, ...]:
    """What a conversion does beside moving numbers, before it is run.

    Args:
        source, target: names of layouts. config: the sizes of the layer.
        tensors: the names of one layer's tensors without prefix, which show the buffers it holds.

    Raises:
        ValueError: an unknown layout.

    A ``Step`` whose ``exact`` is False cannot be undone exactly: converted back, the bytes are not those of the source.
    """
    return get(source).reading(config, tensors) + get(target).writing(config)


def detect(tensors: Mapping[str, object], config: AttentionConfig | None = None) -> Detection:
    """Which layouts ``tensors`` (names to arrays) can be in, with the evidence.

    Without ``config``, shapes need only agree with each other; with it, they must be those of the configuration. The
    answer's ``layout`` is the name of the only candidate, and raises ValueError where there is none or more than one.

    Raises:
        TypeError: tensors are no mapping.
    """
    return _detect(tensors, config, [layout for layout in _LAYOUTS if layout.detectable])
