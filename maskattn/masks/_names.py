"""Which classes of masks a text may name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from maskattn.masks._core import Mask, is_mask, library_classes


def known_classes(where: str, extra: Iterable[type[Mask]]) -> dict[str, type[Mask]]:
    """The library's masks and those in `extra` by class name.

    Raises:
        TypeError: something in `extra` is not a dataclass derived from Mask. ValueError: its name is taken.
    """
    known = library_classes()
    for cls in extra:
        if not (isinstance(cls, type) and is_mask(cls)):
            raise TypeError(f"{where}: classes must hold dataclasses derived from Mask, got {cls!r}")
        if known.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(f"{where}: two classes are named {cls.__name__}")
    return known


def snake_case(name: str) -> str:
    """SlidingWindow -> sliding_window, PrefixLM -> prefix_lm."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def makers(cls: type[Mask]) -> list[str]:
    """The classmethods of a mask that make one from something else: `from_sizes`, `end_aligned`."""
    names = []
    for name, member in vars(cls).items():
        if isinstance(member, classmethod) and not name.startswith("_"):
            if member.__func__.__annotations__.get("return") in (cls, cls.__name__):
                names.append(name)
    return names
