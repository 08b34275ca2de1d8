"""Moving the weights of attention layers from one layout to another: a plan, carried out in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from maskattn.checkpoints import TensorInfo
from maskattn.config import AttentionConfig
from maskattn.convert import _hints, families, layouts
from maskattn.convert._hints import some
from maskattn.convert._identity import About
from maskattn.convert._match import attention_alone
from maskattn.convert._plan import REST, assemble, plan, refuse
from maskattn.convert.families import GENERIC
from maskattn.typing import NumPyArray as Array


def convert_tensors(
    tensors: Mapping[str, object],
    *,
    source: str,
    target: str,
    config: AttentionConfig,
    others: str = "error",
    strip_prefix: str = "",
) -> dict[str, Array]:
    """Converts every attention layer among ``tensors``; numbers are moved, and changed only by the named steps that
    ``layouts.steps`` lists.

    Layers are told apart by the prefix of their names (``encoder.layer.0.attention.``), which is kept; separators
    within it become the target's. Each layer must have the sizes of ``config``.

    Args:
        tensors: names to NumPy arrays (float64, float32, float16 or bfloat16), or a nested tree of them; left
            untouched.
        source: the layout of ``tensors``, or ``"auto"`` where exactly one fits.
        target: the layout wanted.
        config: the sizes and biases of the layers.
        others: what happens to tensors that lie outside every attention layer: ``"error"``, ``"keep"`` (copied under
            their own names) or ``"drop"``. A tensor inside a layer that the layout does not know is an error in any
            case.
        strip_prefix: what stands before the names of layers and is no part of them, such as ``"module."``.

    Returns:
        Names to new C-contiguous arrays of the same dtypes, layer by layer in the order found.

    Raises:
        ValueError: one error that lists every tensor missing, left over, of the wrong shape or dtype, or not an array,
            and every reason a layout cannot hold ``config``; an unknown layout; an ambiguous ``"auto"``.
        TypeError: arguments of the wrong type.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping of names to arrays, got {type(tensors).__name__}")
    if not isinstance(config, AttentionConfig):
        raise TypeError(f"config must be an AttentionConfig, got {type(config).__name__}")
    if others not in REST:
        raise ValueError(f"others must be one of {REST}, got {others!r}")
    to = layouts.get(target)
    flat = _flat(tensors, "/" if source == "auto" else layouts.get(source).separator)
    origin = layouts.get(layouts.detect(flat, config).layout if source == "auto" else source)
    _hints.refuse_what_is_no_model(flat, {})
    _hints.outer("" if strip_prefix == "auto" else strip_prefix, flat, About({}))
    infos = {n: TensorInfo(x.shape, x.dtype) if isinstance(x, np.ndarray) else x for n, x in flat.items()}
    stored = attention_alone(infos, origin, beside=False, outer=strip_prefix)
    forms = stored.form, replace(stored.form, layout=to.name, outer="")
    reasons = [(layout.name, reason) for layout in (origin, to) for reason in layout.unsupported(config)]
    refuse([f"layout {name} cannot hold this config: {reason}" for name, reason in reasons], forms)
    if not stored.layers and config.project:
        wanted = " or ".join(origin.anchors)
        stored.reasons.append(f"no layer found: expected names ending in {wanted}, got {some(flat)}")
    if others == "keep":
        strange = [name for name in stored.left_over if not isinstance(flat[name], np.ndarray)]
        kinds = {name: f"{type(flat[name]).__module__}.{type(flat[name]).__name__}" for name in strange}
        stored.reasons += [f"{name}: expected a NumPy array, got {kind}" for name, kind in kinds.items()]
        stored.left_over = [name for name in stored.left_over if name not in kinds]
    return assemble(stored, forms[1], lambda key, layer: config, infos, rest=others).evaluate(flat)


def convert_model(
    tensors: Mapping[str, Any],
    *,
    target: str,
    source: str = "auto",
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Array]:
    """Converts all tensors of a model, as ``maskattn convert`` does a file: a plan, carried out in memory.

    >>> import numpy as np
    >>> names = {"in_proj_weight": (6, 2), "in_proj_bias": (6,), "out_proj.weight": (2, 2), "out_proj.bias": (2,)}
    >>> tensors = {f"attn.{name}": np.ones(shape, "float32") for name, shape in names.items()}
    >>> sorted(convert_model(tensors, target="flax-linen", num_heads=1))[:2]
    ['attn/key/bias', 'attn/key/kernel']

    Args:
        tensors: names to NumPy arrays, or a nested tree of them, such as a model's ``state_dict()`` as NumPy.
        target: the form wanted: a family of the same model, or a layout such as "flax-linen".
        source: the form they are in. config: what its config.json holds.
        options: those of ``plan``: ``num_heads``, ``dtype``, ``rest``, ``scan``, ``family``, ``strip_prefix``.

    Warns:
        UserWarning: nothing says which model it is, and others are named alike; what it says is overridden.

    Returns:
        Names to new C-contiguous arrays; ``layouts.unflatten`` makes the tree of them.

    Raises:
        ValueError: as ``plan``, and where a value is not what the plan takes it to be. TypeError: tensors are none.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping of names to arrays, got {type(tensors).__name__}")
    style = families.get(source).style if source in families.names() else GENERIC.get(source)
    flat = _flat(tensors, "." if style == "torch" else "/")
    strange = [name for name, array in flat.items() if not isinstance(array, np.ndarray)]
    if strange:
        kind = f"{type(flat[strange[0]]).__module__}.{type(flat[strange[0]]).__name__}"
        raise TypeError(f"{strange[0]}: expected a NumPy array, got {kind}")
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in flat.items()}
    planned = plan(infos, source=source, target=target, config=config, **options)
    for note in planned.notes:
        if note.startswith(("warning: ", "nothing says which model")):
            warnings.warn(note.removeprefix("warning: "), stacklevel=2)
    return planned.evaluate(flat)


def _flat(tensors: Mapping[str, object], separator: str) -> dict[str, Any]:
    if any(isinstance(value, Mapping) for value in tensors.values()):
        return layouts.flatten(tensors, separator)
    if not all(isinstance(name, str) for name in tensors):
        raise TypeError(f"names must be str, got {[name for name in tensors if not isinstance(name, str)]}")
    return dict(tensors.items())
