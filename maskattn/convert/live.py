"""What the `params` of both twins do with canonical tensors, beside reading and writing live modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert.layouts import Layout, problems
from maskattn.convert.layouts._live import CANONICAL, check_canonical, check_targets, raise_if_any

__all__ = ["CANONICAL", "check_canonical", "dumped", "name_of", "raise_if_any", "stored"]

Array = Any


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
    raise_if_any(problems(layout, held, config), module)
    canonical = layout.to_canonical(held, config)
    names = CANONICAL.shapes(config, layout.extras_of(held, config))
    return {name: np.array(canonical[name], order="C", copy=True) for name in names}


def name_of(module: Any) -> str:
    """The class of a module, as errors name it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"
