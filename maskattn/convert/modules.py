"""What the `params` of both twins do with canonical tensors, beside reading and writing live modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from maskattn._problems import Problems
from maskattn.config import AttentionConfig
from maskattn.convert.layouts import CANONICAL, Layout, mismatches, mixed_dtypes
from maskattn.typing import NumPyArray as Array


def stored(
    layout: Layout,
    config: AttentionConfig,
    tensors: Mapping[str, Array],
    held: Mapping[str, tuple[tuple[int, ...], str]],
    module: str,
) -> dict[str, Array]:
    """Canonical ``tensors`` as what a module holds that has these (shape, dtype name) by these names.

    Raises:
        ValueError: one error that lists every tensor missing, left over, of the wrong shape or dtype, or not an array.
    """
    given = check_canonical(tensors, config, layout, module, (dtype for _, dtype in held.values()))
    new = layout.from_canonical(given, config)
    check_targets(new, held, module)
    return dict(new)


def dumped(layout: Layout, config: AttentionConfig, held: Mapping[str, Array], module: str) -> dict[str, Array]:
    """What a module holds as canonical tensors: new NumPy arrays.

    Raises:
        ValueError: parameters that have no canonical form, all listed.
    """
    raise_if_any(mismatches(layout, held, config), module)
    canonical = layout.to_canonical(held, config)
    names = CANONICAL.shapes(config, layout.extras_of(held, config))
    return {name: np.array(canonical[name], order="C", copy=True) for name in names}


def check_canonical(
    tensors: Mapping[str, object], config: AttentionConfig, layout: Layout, module: str, dtypes: Iterable[str] = ()
) -> dict[str, Any]:
    """``tensors`` as a dict, if they are exactly the canonical tensors of ``config``, with extras that ``layout`` has a
    place for; one ValueError lists every fault.

    ``dtypes`` are those the module holds; where it holds one, all tensors must have it.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must be a mapping of canonical names to NumPy arrays, got {type(tensors).__name__}")
    given = dict(tensors.items())
    reasons = mismatches(CANONICAL, given, config)
    arrays = {name: array for name, array in given.items() if isinstance(array, np.ndarray)}
    held = set(dtypes)
    if len(held) == 1:
        (dtype,) = held
        wrong = [name for name in CANONICAL.shapes(config) if name in arrays and str(arrays[name].dtype) != dtype]
        reasons += [f"{name}: the module holds dtype {dtype}, got {arrays[name].dtype}" for name in wrong]
    else:
        reasons += [f"tensors: {reason}" for reason in mixed_dtypes(arrays)]
    reasons += layout.misfits(CANONICAL.extras_of(arrays, config), config)
    raise_if_any(reasons, module)
    return given


def check_targets(new: Mapping[str, Any], held: Mapping[str, tuple[tuple[int, ...], str]], module: str) -> None:
    """Whether arrays ``new`` fit the (shape, dtype name) that a module holds under the same names; one ValueError
    if not.
    """
    reasons = [f"{name}: the module has no such parameter" for name in new if name not in held]
    reasons += [f"{name}: a parameter of the module that nothing would fill" for name in held if name not in new]
    for name in new:
        if name not in held:
            continue
        shape, dtype = held[name]
        if tuple(new[name].shape) != tuple(shape):
            reasons.append(f"{name}: the module holds shape {list(shape)}, got {list(new[name].shape)}")
        if str(new[name].dtype) != dtype:
            reasons.append(f"{name}: the module holds dtype {dtype}, got {new[name].dtype}")
    raise_if_any(reasons, module)


def raise_if_any(reasons: list[str], module: str) -> None:
    """One ValueError for all of ``reasons``."""
    Problems(f"parameters of {module} and the tensors given do not agree", reasons).raise_if_any()


def name_of(module: object) -> str:
    """The class of a module, as errors name it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
