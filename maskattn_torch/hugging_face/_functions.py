"""What a mask function of transformers is made of, and the mask that says the same.

transformers describes a mask by a function of (batch, head, query, key), composed of functions that `masking_utils`
makes: a window, a conjunction, padding. What made such a function, and of which arguments, is read in one of two ways:
from a label that those makers put on what they make once `label` was called (a compiler can follow that), or from
the code and the closure of the function. Each maker is tried when it is first needed: where the mask of ours and
transformers' own function differ, it is not taken as known.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any, NamedTuple

import torch
import transformers
from transformers import masking_utils

from maskattn.masks import Causal, Chunked, Empty, Full, KeyMask, Mask, Segments, SlidingWindow
from maskattn_torch._modes import plain
from maskattn_torch.hugging_face import _trial
from maskattn_torch.types import Array

#: A function of (batch, head, query, key), index tensors, that gives bools.
MaskFunction = Callable[..., Array]
Arguments = Mapping[str, Any]
Offset = int | Array

_LABEL = "made_by_transformers"

_CAUSAL, _FULL, _EMPTY = Causal(), Full(), Empty()

#: What makes what it is taken to make; filled by `label`.
KNOWN: set[str] = set()


class Place(NamedTuple):
    """Where in the whole a mask is asked for.

    Attributes:
        q_len, kv_len: how many queries and keys there are.
        q_offset, k_offset: the positions of query 0 and of key 0.
        dense: gives the mask of a function that is not known, for these lengths and for offsets.
        positions: int [B, L], of queries and keys alike, where they are given one by one.
    """

    q_len: int
    kv_len: int
    q_offset: Offset
    k_offset: Offset
    dense: Callable[[MaskFunction, Offset, Offset], Mask]
    positions: Array | None = None

    def put(self, mask: Mask, sloped: bool = False) -> Mask:
        """A mask of positions, moved here; Full or Empty where that is all it is. `sloped`: it reads k - q alone."""
        if self.positions is not None:
            return mask.with_positions(self.positions, self.positions)
        q, k = self.q_offset, self.k_offset
        if sloped and isinstance(q, int) and isinstance(k, int):
            if plain() and self.q_len and self.kv_len:
                settled = _settled_slope(mask, 1 - self.q_len + k - q, self.kv_len - 1 + k - q)
                if settled is not None:
                    return settled
            mask, q, k = _sloped(mask, q - k)
        moved = mask.at(q, k) if not isinstance(q, int) or not isinstance(k, int) or q or k else mask
        return self._settled(moved) if plain() else moved

    def _settled(self, mask: Mask) -> Mask:
        if mask.flatten()[0] and mask.data_fields() or not self.q_len or not self.kv_len:
            return mask
        some, every = mask.tile(0, 0, 0, self.q_len - 1, 0, self.kv_len - 1)
        return Full() if every else mask if some else Empty()


def read(function: MaskFunction, place: Place) -> Mask | None:
    """The mask of a function of transformers; None where it is none of those that are known."""
    if function is masking_utils.causal_mask_function and "causal" in KNOWN:
        return place.put(_CAUSAL, sloped=True)
    if function is masking_utils.bidirectional_mask_function and "bidirectional" in KNOWN:
        return _FULL
    made = _made_by(function)
    return None if made is None else _RULES[made[0]](made[1], place)


def label() -> None:
    """Try the makers of `masking_utils`, and have them put a label on what they make: compilers see no closures."""
    if KNOWN:
        return
    KNOWN.update(("causal", "bidirectional", *_RULES))
    differing = _trial.differing(read, Place)
    KNOWN.difference_update(differing)
    if differing:
        warnings.warn(
            f"maskattn was made for transformers 5.23; in {transformers.__version__} these mask functions are others, "
            f"and what is made of them is evaluated for every pair: {', '.join(sorted(differing))}",
            stacklevel=3,
        )
    for name in _RULES:
        if name in KNOWN:
            setattr(masking_utils, name, _labelling(name, getattr(masking_utils, name)))


def _labelling(name: str, maker: Callable[..., MaskFunction]) -> Callable[..., MaskFunction]:
    names = maker.__code__.co_varnames[: maker.__code__.co_argcount]

    @functools.wraps(maker)
    def labelling(*given: object, **named: object) -> MaskFunction:
        function = maker(*given, **named)
        arguments = {"mask_functions": given} if not names else {**dict(zip(names, given, strict=False)), **named}
        setattr(function, _LABEL, (name, arguments))
        return function

    return labelling


def _made_by(function: MaskFunction) -> tuple[str, Arguments] | None:
    """Which maker made a function, and its arguments by name."""
    made: tuple[str, Arguments] | None = getattr(function, _LABEL, None)
    if made is None and not torch.compiler.is_compiling():
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType) and code in _codes():
            closure = getattr(function, "__closure__", None) or ()
            made = _codes()[code], dict(zip(code.co_freevars, (cell.cell_contents for cell in closure), strict=True))
    return None if made is None or made[0] not in KNOWN else made


def _and(given: Arguments, place: Place) -> Mask | None:
    made = [_made_by(function) for function in given["mask_functions"]]
    ids = [each[1]["packed_sequence_mask"] for each in made if each and each[0] == "packed_sequence_mask_function"]
    parts = [_part(_distances(function, ids), place) for function in given["mask_functions"]]
    known = [part for part in parts if part is not None]
    return functools.reduce(operator.and_, known) if len(known) == len(parts) else None


def _distances(function: MaskFunction, ids: Sequence[Array]) -> MaskFunction:
    """A function of positions in documents as one of slots, where that is the same: within a document they differ
    by a constant.
    """
    made = _made_by(function)
    if not ids or made is None or made[0] != "remap_positions_for_packed_sequence":
        return function
    inner: MaskFunction = made[1]["mask_function"]
    return inner if _reads_distance(inner) and _counted(ids[0], made[1]["position_ids"]) else function


def _or(given: Arguments, place: Place) -> Mask | None:
    parts = [_part(function, place) for function in given["mask_functions"]]
    known = [part for part in parts if part is not None]
    return functools.reduce(operator.or_, known) if len(known) == len(parts) else None


def _part(function: MaskFunction, place: Place) -> Mask | None:
    """The mask of a part of a composition, made dense by itself where it is not known."""
    found = read(function, place)
    if found is not None or place.positions is not None:
        return found
    return place.dense(function, place.q_offset, place.k_offset)


def _window(given: Arguments, place: Place) -> Mask | None:
    width = given["sliding_window"]
    if not _is_width(width):
        return None
    # 0 is what some models say where no layer has a window
    return place.put(SlidingWindow(width - 1, None), sloped=True) if width > 0 else place.put(~Causal(-width))


def _band(given: Arguments, place: Place) -> Mask | None:
    width = given["sliding_window"]
    return place.put(SlidingWindow(width, width), sloped=True) if _is_width(width) and width >= 0 else None


def _chunks(given: Arguments, place: Place) -> Mask | None:
    size, padding = given["chunk_size"], given["left_padding"]
    if not _is_width(size) or size < 1:
        return None
    if plain() and not bool(padding.any()):
        return place.put(Chunked(size))
    if place.positions is not None:
        place = place._replace(positions=place.positions - padding[:, None])
    else:
        place = place._replace(q_offset=place.q_offset - padding, k_offset=place.k_offset - padding)
    return place.put(Chunked(size))


def _packed(given: Arguments, place: Place) -> Mask | None:
    ids = given["packed_sequence_mask"]
    documents = Segments(ids - ids.amin())  # a negative id would be padding
    whole = _is_origin(place) and ids.shape[1] == place.q_len == place.kv_len
    return documents if whole and place.positions is None else _slots(documents, place)


def _blocks(given: Arguments, place: Place) -> Mask | None:
    return _slots(Segments(given["block_sequence_ids"]), place)


def _padding(given: Arguments, place: Place) -> Mask | None:
    return _slots(KeyMask(given["padding_mask"].to(torch.bool)), place)


def _slots(mask: Mask, place: Place) -> Mask | None:
    """A mask that reads stored slots, which positions do not move."""
    return None if place.positions is not None else mask.at(place.q_offset, place.k_offset)


def _remapped(given: Arguments, place: Place) -> Mask | None:
    if place.positions is not None or not _is_origin(place):
        return None
    return read(given["mask_function"], place._replace(positions=given["position_ids"]))


def _moved(given: Arguments, place: Place) -> Mask | None:
    q, k = place.q_offset + given["q_offset"], place.k_offset + given["kv_offset"]
    return (
        None if place.positions is not None else _part(given["mask_function"], place._replace(q_offset=q, k_offset=k))
    )


_RULES: dict[str, Callable[[Arguments, Place], Mask | None]] = {
    "and_masks": _and,
    "or_masks": _or,
    "sliding_window_overlay": _window,
    "sliding_window_bidirectional_overlay": _band,
    "chunked_overlay": _chunks,
    "blockwise_overlay": _blocks,
    "padding_mask_function": _padding,
    "packed_sequence_mask_function": _packed,
    "remap_positions_for_packed_sequence": _remapped,
    "add_offsets_to_mask_function": _moved,
}


def _sloped(mask: Mask, offset: int) -> tuple[Mask, int, int]:
    """A mask of k - q, and the offsets that are left: those of Causal and of a window are numbers of its own."""
    if isinstance(mask, Causal):
        return Causal(mask.offset + offset), 0, 0
    assert isinstance(mask, SlidingWindow)
    left = None if mask.left is None else mask.left - offset
    right = None if mask.right is None else mask.right + offset
    if min([0 if side is None else side for side in (left, right)]) < 0:
        return mask, offset, 0
    return SlidingWindow(left, right), 0, 0


def _settled_slope(mask: Mask, least: int, most: int) -> Mask | None:
    """Full or Empty where that is all that a mask of k - q, from `least` to `most`, is; None where it is neither."""
    if isinstance(mask, Causal):
        low, high = least, mask.offset
    else:
        assert isinstance(mask, SlidingWindow)
        low, high = least if mask.left is None else -mask.left, most if mask.right is None else mask.right
    if low <= least and most <= high:
        return _FULL
    return _EMPTY if most < low or high < least else None


def _is_origin(place: Place) -> bool:
    return all([isinstance(offset, int) and offset == 0 for offset in (place.q_offset, place.k_offset)])


def _is_width(width: object) -> bool:
    return isinstance(width, int) and not isinstance(width, bool)


def _reads_distance(function: MaskFunction) -> bool:
    """Whether a function compares the distance of query and key, and nothing else."""
    if function in (masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function):
        return True
    made = _made_by(function)
    if made is not None and made[0] in ("and_masks", "or_masks"):
        return all(map(_reads_distance, made[1]["mask_functions"]))
    return made is not None and made[0] in ("sliding_window_overlay", "sliding_window_bidirectional_overlay")


def _counted(ids: Array, positions: Array) -> bool:
    """Whether tokens of one document follow each other, with positions that count by one: as far as can be seen now."""
    if not plain():
        return False
    step = ids.diff(dim=-1)
    return bool(((step > 0) | (step == 0) & (positions.diff(dim=-1) == 1)).all())


@functools.cache
def _codes() -> dict[CodeType, str]:
    """The code of what each maker makes."""
    found: dict[CodeType, str] = {}
    for name in _RULES:
        maker = getattr(masking_utils, name, None)
        constants = getattr(getattr(maker, "__wrapped__", maker), "__code__", None)
        inner = [] if constants is None else [x for x in constants.co_consts if isinstance(x, CodeType)]
        found |= {code: name for code in inner if code.co_name in ("inner_mask", "and_mask", "or_mask")}
    return found
