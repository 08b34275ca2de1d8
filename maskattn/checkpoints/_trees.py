"""Names and paths: formats that store nested trees (Flax msgpack, Orbax) against flat names.

``query/kernel`` and ``query.kernel`` both stand for ``{"query": {"kernel": ...}}``: a slash separates where any name
has one, otherwise a dot. What was chosen is written with the file; where nothing was, names are joined by a slash.
"""

from __future__ import annotations

from collections.abc import Iterable

DEFAULT = "/"
SEPARATORS = ("/", ".")
Path = tuple[str, ...]


def separator(names: Iterable[str]) -> str:
    """What separates the modules in ``names``."""
    return "/" if any("/" in name for name in names) else "."


def paths(names: Iterable[str]) -> dict[str, Path]:
    """The path of each name in the tree that all of them make."""
    names = list(names)
    mark = separator(names)
    return {name: tuple(name.split(mark)) for name in names}


def without_value(names: Iterable[str], mark: str) -> tuple[dict[str, str], list[str]]:
    """New names by the old: without a last part ``value`` where all have it, as the state of an NNX module is saved.

    The keys and counts of its random streams (``dropout/rngs/count``) are left out then. With what there is to say.
    """
    names, last = list(names), f"{mark}value"
    if not names or not all(name.endswith(last) and name != last for name in names):
        return {name: name for name in names}, []
    short = {name: name.removesuffix(last) for name in names}
    streams = [name for name, new in short.items() if {"rngs"} & set(new.split(mark)[:-1])]
    notes = ["every name without its last part, 'value' (Flax NNX)"]
    notes += [f"{short.pop(name)}: left out, it is a random stream's" for name in streams]
    return short, notes


def unsupported(names: Iterable[str]) -> list[str]:
    """What keeps ``names`` from being a tree: one line each."""
    leaves = paths(names)
    modules = {path[:i]: name for name, path in leaves.items() for i in range(1, len(path))}
    reasons = [f"{name}: a part of its path is empty" for name, path in leaves.items() if "" in path]
    reasons += [
        f"{name}: is both an array and a module (of {modules[path]})"
        for name, path in leaves.items()
        if path in modules
    ]
    return reasons
