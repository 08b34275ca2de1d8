"""Nested trees of arrays (Flax variables, NNX state as plain dicts) as flat dicts, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, object], separator: str = "/") -> dict[str, Any]:
    """``{"query": {"kernel": x}}`` -> ``{"query/kernel": x}``. Names already flat stay as they are.

    ``tree`` holds arrays under names that ``separator`` joins.

    Raises:
        ValueError: two paths give one name. TypeError: a name is not a str.
    """
    flat: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, Mapping):
            for name in reversed(list(node)):
                if not isinstance(name, str):
                    raise TypeError(f"names must be str, got {name!r} under {path!r}")
                stack.append((path + separator + name if path else name, node[name]))
        elif path in flat:
            raise ValueError(f"two entries of the tree are both named {path!r}")
        else:
            flat[path] = node
    return flat


def unflatten(tensors: Mapping[str, object], separator: str = "/") -> dict[str, Any]:
    """``{"query/kernel": x}`` -> ``{"query": {"kernel": x}}``: the names of ``tensors``, parted at ``separator``.

    Raises:
        ValueError: an array is also a module.
    """
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *modules, leaf = name.split(separator)
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name!r} lies inside {module!r}, which is an array")
        if leaf in node:
            raise ValueError(f"{name!r} is both an array and a module")
        node[leaf] = array
    return tree
