"""Live modules <-> canonical tensors, with no file between.

Works on ``MultiHeadAttention`` and ``Attention`` of this package and on ``flax.nnx.MultiHeadAttention``; for Linen,
whose modules hold no parameters, on variables. The canonical tensors are NumPy arrays by the names of
``maskattn.convert.layouts.canonical``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree, Shaped

from maskattn.config import AttentionConfig
from maskattn.convert import layouts, modules
from maskattn.convert.layouts import EXTRAS, Layout
from maskattn.modules.parameters import parameters
from maskattn.typing import NumPyArray as Array
from maskattn_jax._placed import placed

__all__ = ["config_of", "dump", "load"]

_LINEN = layouts.get("flax-linen")


def load(
    module: nnx.Module | flax.linen.Module | AttentionConfig, tensors: Mapping[str, Shaped[Array, "*shape"]]
) -> dict[str, PyTree] | None:
    """Writes canonical ``tensors`` into an NNX ``module``, in place; for a Linen module or an AttentionConfig returns
    them as variables, ``{"params": {"query": {"kernel": ...}, ...}}``.

    Names, shapes and dtypes must be those of the module; everything is checked before anything is written.

    Raises:
        ValueError: one error that lists every tensor missing, left over, of the wrong shape or dtype, or not an array.
        TypeError: a module of a kind not known here.
    """
    if isinstance(module, AttentionConfig):
        return _variables(modules.check_canonical(tensors, module, _LINEN, "the config"), module, "the config")
    if isinstance(module, flax.linen.Module):
        config = _linen_config(module, tensors)
        dtype = getattr(module, "param_dtype", None)
        dtypes = () if dtype is None else [np.dtype(dtype).name]
        given = modules.check_canonical(tensors, config, _LINEN, modules.name_of(module), dtypes)
        _check_norms(module, given)
        return _variables(given, config, modules.name_of(module))
    layout, config = _describe(module)
    held = _parameters(module)
    values = {name: parameter.get_value() for name, parameter in held.items()}
    fits = {name: (value.shape, str(value.dtype)) for name, value in values.items()}
    new = modules.stored(layout, config, tensors, fits, modules.name_of(module))
    ready = {name: placed(new[name], values[name]) for name in held}
    for name, parameter in held.items():
        parameter.set_value(ready[name])
    return None


def dump(module: nnx.Module | Mapping[str, PyTree]) -> dict[str, Shaped[Array, "*shape"]]:
    """The parameters of an NNX ``module``, or of Linen variables, as canonical tensors: new NumPy arrays.

    Raises:
        ValueError: parameters that have no canonical form, all listed.
        TypeError: a module of a kind not known here; a Linen module, which holds no parameters.
    """
    if isinstance(module, Mapping):
        held = {name: np.asarray(array) for name, array in layouts.flatten(module.get("params", module)).items()}
        layout, name_of = _LINEN, "the variables"
        config = _infer(layout, held, name_of)
    else:
        layout, config = _describe(module)
        held = {name: np.asarray(parameter.get_value()) for name, parameter in _parameters(module).items()}
        name_of = modules.name_of(module)
    return modules.dumped(layout, config, held, name_of)


def config_of(module: nnx.Module) -> AttentionConfig:
    """The configuration of a live NNX module: its own, or what the shapes of the framework's module say.

    Raises:
        TypeError: another module. ValueError: no configuration has these shapes.
    """
    return _describe(module)[1]


def _describe(module: object) -> tuple[Layout, AttentionConfig]:
    layout = layouts.get("flax-nnx")
    config = getattr(module, "config", None)
    if isinstance(module, nnx.Module) and isinstance(config, AttentionConfig):
        return layout, config
    if isinstance(module, nnx.MultiHeadAttention):
        held = {name: parameter.get_value() for name, parameter in _parameters(module).items()}
        return layout, _infer(layout, held, modules.name_of(module))
    hint = ": a Linen module holds no parameters, pass its variables" if isinstance(module, flax.linen.Module) else ""
    raise TypeError(
        "module must be a MultiHeadAttention or Attention of maskattn_jax or a flax.nnx.MultiHeadAttention; Linen: "
        "load takes the module or an AttentionConfig and returns variables, dump takes the variables; "
        f"got {modules.name_of(module)}{hint}"
    )


def _parameters(module: object) -> dict[str, Any]:
    """Every nnx.Param by its path joined by dots. A bias that a module was built without is a Param of None: left
    out.
    """
    by_name = {}
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param) and node.get_value() is not None:
            by_name[".".join(map(str, path))] = node
    return by_name


def _infer(layout: Layout, held: Mapping[str, object], name: str) -> AttentionConfig:
    try:
        return layout.infer(held, None, None)
    except ValueError as error:
        raise ValueError(f"the parameters of {name} are not those of a multi-head attention: {error}") from None


def _linen_config(module: flax.linen.Module, tensors: Mapping[str, Array]) -> AttentionConfig:
    """A Linen module's own config; Flax's module learns its input widths from the data, here from ``tensors``."""
    config = getattr(module, "config", None)
    if isinstance(config, AttentionConfig):
        return config
    if not isinstance(module, flax.linen.MultiHeadDotProductAttention):
        raise TypeError(
            f"module must be a MultiHeadAttention or Attention of maskattn_jax, a flax.nnx.MultiHeadAttention, a Linen "
            f"multi-head attention or an AttentionConfig, got {modules.name_of(module)}"
        )
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping of canonical names to NumPy arrays, got {type(tensors).__name__}")
    inferred = _infer(modules.CANONICAL, tensors, "tensors")
    width = inferred.embed_dim if module.qkv_features is None else module.qkv_features
    return AttentionConfig(
        inferred.embed_dim,
        module.num_heads,
        head_dim=max(width // module.num_heads, 1),
        kdim=inferred.kdim,
        vdim=inferred.vdim,
        out_dim=inferred.embed_dim if module.out_features is None else module.out_features,
        qkv_bias=module.use_bias,
        out_bias=module.use_bias,
    )


def _check_norms(module: flax.linen.Module, given: Mapping[str, Array]) -> None:
    """Flax's Linen module has the norms of query and key exactly where ``normalize_qk`` is set; ours has its parts'."""
    config = getattr(module, "config", None)
    if isinstance(config, AttentionConfig):
        learned = parameters(config)
        reasons = [f"{name}: missing, a part of the configuration learns it" for name in learned if name not in given]
        reasons += [
            f"{name}: no part of the configuration learns it"
            for name in given
            if name in EXTRAS and name not in learned
        ]
        modules.raise_if_any(reasons, modules.name_of(module))
        return
    wanted = bool(getattr(module, "normalize_qk", False))
    names = ("query_norm.scale", "key_norm.scale")
    why = f"normalize_qk is {wanted}, so the module has {'this norm' if wanted else 'no such norm'}"
    modules.raise_if_any([f"{name}: {why}" for name in names if (name in given) != wanted], modules.name_of(module))


def _variables(given: Mapping[str, Array], config: AttentionConfig, name: str) -> dict[str, Any]:
    narrowed = [n for n, array in given.items() if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype]
    modules.raise_if_any([f"{n}: dtype {given[n].dtype} needs jax_enable_x64, which is off" for n in narrowed], name)
    arrays: dict[str, Any] = {n: jnp.array(array, copy=True) for n, array in given.items()}
    flat = _LINEN.from_canonical(arrays, config)
    return {"params": layouts.unflatten(flat)} if flat else {}
