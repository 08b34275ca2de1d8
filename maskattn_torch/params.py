"""Live modules <-> canonical tensors, with no file between.

Works on ``MultiHeadAttention`` and ``Attention`` of this package and on ``torch.nn.MultiheadAttention``. The canonical
tensors are NumPy arrays by the names of ``maskattn.convert.layouts.canonical``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Shaped

from maskattn.arrays import to_numpy, to_torch
from maskattn.config import AttentionConfig
from maskattn.convert import layouts, modules
from maskattn.convert.layouts import Layout
from maskattn.layer import ExtraKeys
from maskattn.typing import NumPyArray as Array

__all__ = ["config_of", "dump", "load"]


def load(module: torch.nn.Module, tensors: Mapping[str, Shaped[Array, "*shape"]]) -> None:
    """Writes canonical ``tensors`` into ``module``, in place.

    Names, shapes and dtypes must be those of the module; everything is checked before anything is written.

    Raises:
        ValueError: one error that lists every tensor missing, left over, of the wrong shape or dtype, or not an array.
        TypeError: a module of a kind not known here.
    """
    layout, config = _describe(module)
    held, name_of = dict(module.named_parameters()), modules.name_of(module)
    fits = {name: (tuple(p.shape), str(p.dtype).removeprefix("torch.")) for name, p in held.items()}
    new = modules.stored(layout, config, tensors, fits, name_of)
    modules.raise_if_any(
        [f"{name}: on the meta device, without memory" for name, p in held.items() if p.is_meta], name_of
    )
    ready = {name: to_torch(np.array(array, order="C", copy=True)) for name, array in new.items()}
    with torch.no_grad():
        for name, parameter in held.items():
            parameter.copy_(ready[name])


def dump(module: torch.nn.Module) -> dict[str, Shaped[Array, "*shape"]]:
    """The parameters of ``module`` as canonical tensors: new NumPy arrays, bfloat16 as ml_dtypes'.

    Raises:
        ValueError: parameters that have no canonical form, all listed.
        TypeError: a module of a kind not known here.
    """
    layout, config = _describe(module)
    held = {name: to_numpy(parameter) for name, parameter in module.named_parameters()}
    return modules.dumped(layout, config, held, modules.name_of(module))


def config_of(module: torch.nn.Module) -> AttentionConfig:
    """The configuration of a live module: its own, or what the framework's module was built with.

    Raises:
        TypeError: another module.
    """
    return _describe(module)[1]


def _describe(module: object) -> tuple[Layout, AttentionConfig]:
    if isinstance(module, torch.nn.MultiheadAttention):
        return layouts.get("torch-mha"), _mha_config(module)
    config = getattr(module, "config", None)
    if isinstance(module, torch.nn.Module) and isinstance(config, AttentionConfig):
        return layouts.get("maskattn-torch"), config
    raise TypeError(
        f"module must be a MultiHeadAttention or Attention of maskattn_torch or a torch.nn.MultiheadAttention, "
        f"got {modules.name_of(module)}"
    )


def _mha_config(module: torch.nn.MultiheadAttention) -> AttentionConfig:
    bias = module.in_proj_bias is not None
    learned, zero = module.bias_k is not None, bool(module.add_zero_attn)
    return AttentionConfig(
        module.embed_dim,
        module.num_heads,
        kdim=module.kdim,
        vdim=module.vdim,
        qkv_bias=bias,
        out_bias=module.out_proj.bias is not None,
        extra_keys=ExtraKeys(learned, zero) if learned or zero else None,
        dropout_rate=module.dropout,
    )
