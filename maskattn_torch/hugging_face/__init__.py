"""The drop-in point for Hugging Face's transformers: `register()`, and then attn_implementation="maskattn".

transformers has a registry of attention functions and one of mask functions; both are needed: without the second every
mask is None and padding is lost in silence.

    _functions.py    what transformers' mask functions are made of      _attention.py    the attention function
    _masks.py        the mask function: a Mask of transformers' call    _refused.py      models with their own attention
    _trial.py        whether transformers' functions are still those

Two functions of transformers are wrapped: the one that checks the name of an implementation, so that a model that never
asks the registry is refused, and the one that lets a mask pass that is made already, so that Mask objects pass as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TypeAlias

from maskattn.masks import Mask
from maskattn_torch.types import Array

__all__ = ["register"]

NAME = "maskattn"

_MARK = "__maskattn__"

Function: TypeAlias = Callable[..., tuple[object, ...]]


def register(name: str = NAME) -> None:
    """Make `attn_implementation=name` work in Hugging Face's transformers (5.23, which must be installed).

    The models then compute attention by `maskattn_torch.attention`, from a Mask that is made of what transformers knows
    of the call: causal, windows, chunks, padding, packed documents, caches. What the mask empties is skipped. A mask
    function that is not transformers' own is evaluated for every pair, with a warning. A 4-D tensor of the caller's is
    taken as it is; and a Mask (True = may attend) may be given where a model hands `attention_mask` on.

    A model that computes attention in code of its own, and never asks transformers' registry, is refused by name when
    it is made. May be called again, and under several names.

    Args:
        name: what to pass as `attn_implementation`.

    Raises:
        ImportError: transformers is not installed, or is so different that a part of it is missing.
        TypeError, ValueError: name is not a str, or one of transformers' own.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, masking_utils, modeling_utils

    from maskattn_torch.hugging_face import _attention, _functions, _masks, _refused

    if not isinstance(name, str):
        raise TypeError(f"register: name must be a str, got {type(name).__name__}")
    registered = AttentionInterface._global_mapping.get(name, _attention.attention)
    if name == "eager" or not name or registered is not _attention.attention:
        raise ValueError(f"register: name must be one that transformers does not have, got {name!r}")
    _functions.label()
    AttentionInterface.register(name, _attention.attention)
    AttentionMaskInterface.register(name, _masks.mask)
    _refused.NAMES.add(name)
    _wrap(masking_utils, "_preprocess_mask_arguments", _passing)
    _wrap(modeling_utils.PreTrainedModel, "get_correct_attn_implementation", _refused.checking)


def _wrap(owner: type | ModuleType, name: str, wrapper: Callable[..., Callable[..., object]]) -> None:
    """Put wrapper(function) in the place of owner.name, once."""
    original = getattr(owner, name, None)
    if original is None:
        raise ImportError(f"register was made for transformers 5.23: this version has no {owner.__name__}.{name}")
    if not hasattr(original, _MARK):
        wrapped = functools.wraps(original)(wrapper(original))
        setattr(wrapped, _MARK, True)
        setattr(owner, name, wrapped)


def _passing(preprocess: Function) -> Function:
    """transformers' `_preprocess_mask_arguments`, for which a Mask is one that was made already, as a 4-D tensor is."""

    def passing(
        config: object, inputs_embeds: Array, attention_mask: object, *rest: object, **named: object
    ) -> tuple[object, ...]:
        if not isinstance(attention_mask, Mask):
            return preprocess(config, inputs_embeds, attention_mask, *rest, **named)
        made = inputs_embeds.new_empty((1, 1, 1, 1))
        early, _, *others = preprocess(config, inputs_embeds, made, *rest, **named)
        return early, attention_mask, *others

    return passing
