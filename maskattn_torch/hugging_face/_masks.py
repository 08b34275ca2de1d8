"""The mask function of transformers' registry: a Mask of what transformers knows of a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
from transformers import masking_utils

from maskattn.masks import Dense, Full, KeyMask, Mask, part
from maskattn.masks.rows import Rows
from maskattn.typing import Traced
from maskattn_torch import lower
from maskattn_torch._modes import plain
from maskattn_torch.hugging_face import _functions, _refused
from maskattn_torch.hugging_face._functions import MaskFunction, Offset
from maskattn_torch.types import Array, Device


@dataclass(frozen=True, eq=False, repr=False)
class ModelMask(Mask):
    """The mask that a model of transformers hands to its attention: `part`, for tensors of `shape` [B, 1, L, S]. True =
    may attend.

    It passes where transformers moves masks about; queries and keys may be cut off (`mask[:, :, :, :n]`). Code that
    takes it for a tensor of numbers or bools gets a TypeError that says so.

    Attributes:
        part: the mask, True = may attend.
        shape: (B, 1, L, S), what the tensor would have.
        model: the type of model, for messages.
    """

    part: Mask = part()
    shape: tuple[int, int, int, int] = (1, 1, 1, 1)
    model: str = ""

    @property
    def ndim(self) -> int:
        """4: the number of axes of `shape`."""
        return 4

    def contiguous(self) -> ModelMask:
        """The mask itself: transformers asks for it before it hands masks to compiled code."""
        return self

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False, copy: bool = False) -> ModelMask:
        """The mask with its data on another device. Another dtype is refused: TypeError.

        Args:
            device: where the data are to be.
            non_blocking, copy: as in `torch.Tensor.to`.
        """
        if isinstance(device, torch.dtype) or not isinstance(device, (torch.device, str, int)):
            self._refuse(f"to({device!r})")
        return self.map_data(lambda x: torch.as_tensor(x).to(device, non_blocking=non_blocking, copy=copy))

    def tensor(self, device: Device = None) -> Array:
        """The mask as a tensor, bool [B or 1, 1, L or 1, S or 1], made once for each device. True = may attend.

        `device`: where it is to be (default: where the data are, else the CPU).
        """
        made: dict[str, Array] = vars(self).get("_made", {})
        found = made.get(str(device))
        if found is None:
            given = self._key_mask(device)
            given = lower.allowed(self.part, *self.shape, device=device) if given is None else given
            found = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device) if given is None else given
            if plain():
                self._set(**vars(self) | {"_made": made | {str(device): found}})
        return found

    def _key_mask(self, device: Device) -> Array | None:
        """The tensor of padding alone, which is there already; None where it is not."""
        keep = self.part.keep if type(self.part) is KeyMask else None
        if type(keep) is not torch.Tensor or keep.shape != (self.shape[0], self.shape[3]) or keep.device != device:
            return None
        return keep[:, None, None]

    def allowed(self, b: Traced, h: Traced, q: Traced, k: Traced) -> Traced:
        return self.part.allowed(b, h, q, k)

    def tile(
        self, b: Traced, h: Traced, q_lo: Traced, q_hi: Traced, k_lo: Traced, k_hi: Traced
    ) -> tuple[Traced, Traced]:
        return self.part.tile(b, h, q_lo, q_hi, k_lo, k_hi)

    def rows(self, b: Traced, h: Traced, q: Traced, k: Traced) -> Rows | None:
        return self.part.rows(b, h, q, k)

    @property
    def depends(self) -> frozenset[str]:
        return self.part.depends

    def __getitem__(self, given: object) -> ModelMask:
        index: tuple[object, ...] = given if isinstance(given, tuple) else (given,)
        if Ellipsis in index:
            before = index.index(Ellipsis)
            index = (*index[:before], *[slice(None)] * (5 - len(index)), *index[before + 1 :])
        index = (*index, *[slice(None)] * (4 - len(index)))
        ranges = [x.indices(n) if isinstance(x, slice) else None for x, n in zip(index, self.shape, strict=True)]
        if None in ranges[2:] or any(x != slice(None) for x in index[:2]) or any(x and x[2] != 1 for x in ranges):
            self._refuse(f"[{index}]")
        (q, q_end, _), (k, k_end, _) = ranges[2], ranges[3]  # type: ignore[misc]
        shape = (*self.shape[:2], max(q_end - q, 0), max(k_end - k, 0))
        return self if shape == self.shape else ModelMask(self.part.at(q, k), shape, self.model)

    def __getattr__(self, name: str) -> NoReturn:
        # only names that are looked for in vain come here
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(self._reason(f".{name}"))

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) if isinstance(other, Mask) else self._refuse("==")

    __hash__ = Mask.__hash__

    def __repr__(self) -> str:
        return f"ModelMask({self.part!r}, {self.shape})"

    def _refuse(self, use: str) -> NoReturn:
        raise TypeError(self._reason(use))

    def _reason(self, use: str) -> str:
        whose = f"a model of type {self.model!r}" if self.model else "code of a model"
        return (
            f"attn_implementation='maskattn': {whose} does with its mask what one does with a tensor ({use}), but the "
            "mask is a Mask object, for attention alone; load this model with attn_implementation='eager' or 'sdpa'"
        )


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(self: ModelMask, *others: object) -> NoReturn:
        self._refuse(name)

    return refuse


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "lt", "le", "gt", "ge", "ne", "len", "iter"):
    setattr(ModelMask, f"__{_name}__", _refusing(f"__{_name}__"))


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Array = 0,
    kv_offset: int | Array = 0,
    mask_function: MaskFunction | None = None,
    attention_mask: Array | None = None,
    config: object = None,
    use_vmap: bool = False,
    device: Device = "cpu",
    allow_is_bidirectional_skip: bool = False,
    **ignored: object,
) -> ModelMask | None:
    """What `AttentionMaskInterface` calls: the mask of [batch_size, 1, q_length, kv_length]. True = may attend.

    None where everything is allowed and transformers takes that for an answer: models that add a bias of theirs
    expect it.

    Args:
        batch_size, q_length, kv_length: the sizes of the call.
        q_offset, kv_offset: the positions of the first query and key.
        mask_function: transformers' description of the mask; None: causal.
        attention_mask: [B, n], True or 1 = a token, 0 = padding; keys beyond it are none.
        config: the model's configuration. A type of model that computes attention by itself is refused.
        use_vmap: mask_function may be one that takes single indices alone.
        device: where a mask is made that has to be evaluated.
        allow_is_bidirectional_skip: whether None may be said for everything.
        ignored: what transformers says besides (dtype, and where SDPA may have None for a causal mask).

    Raises:
        ValueError: such a model; or attention_mask has other axes.
    """
    if not torch.compiler.is_compiling():
        _refused.refuse_config(config)
    function = masking_utils.causal_mask_function if mask_function is None else mask_function
    sizes = (batch_size, 1, q_length, kv_length)

    def dense(function: MaskFunction, q_at: Offset, k_at: Offset) -> Mask:
        if not torch.compiler.is_compiling():
            warnings.warn(_UNKNOWN.format(getattr(function, "__qualname__", function)), stacklevel=2)
        keep = masking_utils.sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_at,
            kv_offset=k_at,
            mask_function=function,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            use_vmap=use_vmap,
            device=device,
        )
        return Dense(keep)

    q_at, k_at = _offset(q_offset, q_length), _offset(kv_offset, q_length)
    place = _functions.Place(q_length, kv_length, q_at, k_at, dense)
    found = _functions.read(function, place)
    found = dense(function, q_at, k_at) if found is None else found
    padding = None if attention_mask is None else _padding(attention_mask, kv_length, k_at)
    found = found if padding is None else found & padding
    # a decoder that is made bidirectional has modules that take None for causal
    if isinstance(found, Full) and allow_is_bidirectional_skip and getattr(config, "is_causal", None) is not False:
        return None
    return ModelMask(found, sizes, getattr(config, "model_type", None) or "")


_UNKNOWN = (
    "maskattn: the mask function {} is none of transformers' own: it is evaluated for every pair of query and key, and "
    "nothing that it empties is known beforehand"
)


def _offset(offset: int | Array, q_length: int) -> int | Array:
    """An offset as an int where it may be read: prompts are not compiled. Else a copy: caches count on in place."""
    if not isinstance(offset, torch.Tensor):
        return offset
    return int(offset) if plain() and q_length > 1 else offset.reshape(()).clone()


def _padding(attention_mask: Array, kv_length: int, offset: int | Array) -> Mask | None:
    """Which of the keys are tokens; None where all are."""
    if attention_mask.ndim != 2:
        shape = tuple(attention_mask.shape)
        raise ValueError(f"attention_mask must have two axes [B, S] of 1 and 0, or four [B, 1 or H, L, S], got {shape}")
    keep = attention_mask.to(torch.bool)
    if isinstance(offset, torch.Tensor):
        return KeyMask(keep).at(k_offset=offset)
    keep = keep[:, offset : offset + kv_length]
    if keep.shape[1] < kv_length:
        keep = torch.nn.functional.pad(keep, (0, kv_length - keep.shape[1]))
    return None if plain() and bool(keep.all()) else KeyMask(keep)


def settled(mask: ModelMask) -> Mask | None:
    """The mask as `attention` is to have it; None where everything is allowed."""
    return None if isinstance(mask.part, Full) else mask.part
