"""Models that compute attention in code of their own: they take any name of an implementation, and ignore it."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable

#: Under which names the attention of this library was registered.
NAMES: set[str] = set()

_INTERFACE = "ALL_ATTENTION_FUNCTIONS.get_interface("
_ATTENTION = re.compile(r"^class \w*Attention\w*\(", re.MULTILINE)


def checking(check: Callable[..., str]) -> Callable[..., str]:
    """transformers' `get_correct_attn_implementation`, asked when a model is made, which refuses such models."""

    def checked(self: object, requested_attention: str | None, *rest: object, **named: object) -> str:
        found = check(self, requested_attention, *rest, **named)
        if found in NAMES:
            refuse_model(type(self))
        return found

    return checked


def refuse_model(model: type) -> None:
    """Raise where a class of models, or one that it derives from, has attention of its own.

    Raises:
        ValueError: says which, and what to load it with.
    """
    for cls in model.__mro__:
        if hasattr(cls, "get_correct_attn_implementation") and ignores(cls.__module__):
            other = "'sdpa' or 'eager'" if getattr(model, "_supports_sdpa", False) else "'eager'"
            raise ValueError(_REASON.format(model.__name__, cls.__module__, other))


def refuse_config(config: object) -> None:
    """The same for the model that a configuration is of, as far as its name shows it.

    Raises:
        ValueError: as in `refuse_model`.
    """
    kind = type(config)
    module = kind.__module__.replace(".configuration_", ".modeling_")
    if module != kind.__module__ and ignores(module):
        name = getattr(config, "model_type", kind.__name__)
        raise ValueError(_REASON.format(f"a model of type {name!r}", module, "'eager'"))


_REASON = (
    "attn_implementation='maskattn': {} computes attention in code of its own ({} never asks transformers' registry of "
    "attention functions), so nothing would be replaced, and masks might be misread. Load it with "
    "attn_implementation={}; where it is a part of another model, name the parts that are to have maskattn: "
    "attn_implementation={{'text_config': 'maskattn'}}"
)


@functools.cache
def ignores(module: str) -> bool:
    """Whether a module has classes of attention, and never asks transformers' registry.

    The rule that transformers itself goes by when an implementation is changed after loading.
    """
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return False
    return _ATTENTION.search(source) is not None and _INTERFACE not in source
