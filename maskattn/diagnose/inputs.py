"""What two programs are given: whether it is the same, which tokens count, and what it could not show."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from maskattn.diagnose.matching import Kept
from maskattn.diagnose.trace import Trace
from maskattn.typing import NumPyArray

#: Arguments by position, or by name.
Inputs: TypeAlias = Mapping[str, Any] | Sequence[Any]
#: Names by which configurations know how far attention reaches.
_WINDOWS = (
    *("sliding_window", "attention_window", "local_attention", "window_size", "local_radius", "block_size"),
    *("attention_chunk_size", "axial_attn_length", "sliding_window_size", "attention_context_left", "chunk_length"),
)
#: Fewer tokens leave little to tell by.
_SHORT = 8


def sides(inputs: object) -> tuple[Inputs, Inputs]:
    """The inputs of both sides: a mapping, a sequence, or a pair of those.

    Raises:
        TypeError: it is something else.
    """
    if (
        isinstance(inputs, tuple)
        and len(inputs) == 2
        and all(isinstance(one, (Mapping, list, tuple)) for one in inputs)
    ):
        return inputs
    if isinstance(inputs, (Mapping, list, tuple)):
        return inputs, inputs
    expected = "a mapping of names to arrays, a sequence of arrays, or a pair of those, PyTorch's and JAX's"
    raise TypeError(f"inputs: expected {expected}, got {type(inputs).__name__}")


def called(function: Callable[..., object], inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for a function: by the names of a mapping, or where it does not know them, in their order.

    Raises:
        TypeError: it takes them in neither way.
    """
    if not isinstance(inputs, Mapping):
        return tuple(inputs), {}
    signature = signature_of(function)
    if signature is None:
        return (), dict(inputs)
    for args, kwargs in (((), dict(inputs)), (tuple(inputs.values()), {})):
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            continue
        return args, kwargs
    name = getattr(function, "__name__", type(function).__name__)
    raise TypeError(f"inputs: {name}{signature} takes {', '.join(inputs)} neither by name nor in order")


def signature_of(function: Callable[..., object]) -> inspect.Signature | None:
    """What a function or a module takes."""
    try:
        return inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError):
        return None


def named(function: Callable[..., object], inputs: Inputs) -> dict[str, Any]:
    """What a function is given, by the names of its arguments."""
    args, kwargs = called(function, inputs)
    signature = signature_of(function)
    if signature is None:
        return {str(at): one for at, one in enumerate(args)} | kwargs
    given: dict[str, Any] = {}
    for name, one in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            given |= one
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            given |= {f"{name}.{at}": each for at, each in enumerate(one)}
        else:
            given[name] = one
    return given


def kept(given: Mapping[str, Any]) -> Kept | None:
    """Which tokens are compared: not those that a mask [B, L] of zeros and ones leaves out; None: all.

    A mask whose name has "padding_mask" in it is True where there is padding, as PyTorch's modules have it; others are
    where there is none.
    """
    found = [tokens for _, tokens in _masks(given) if not tokens.all() and tokens.any(axis=1).all()]
    return Kept(tuple(found)) if found else None


def _masks(given: Mapping[str, Any]) -> Iterator[tuple[str, NumPyArray]]:
    for name, one in given.items():
        if "mask" not in name or not hasattr(one, "shape") or len(one.shape) != 2:
            continue
        value = np.asarray(one)
        if value.dtype.kind in "biuf" and np.isin(value, (0, 1)).all():
            tokens = value.astype(bool)
            yield name, ~tokens if "padding_mask" in name or "pad_mask" in name else tokens


def differing(ours: Trace, theirs: Trace) -> Iterator[str]:
    """Where the two sides were not given the same, as sentences.

    Inputs of one name are compared, others in order with those of the same size.
    """
    mine, its = ({node.name: node.value for node in trace.nodes if node.kind == "input"} for trace in (ours, theirs))
    pairs = {name: name for name in mine if name in its}
    for name, value in mine.items():
        if name not in pairs:
            free = (other for other in its if other not in pairs.values() and its[other].size == value.size)
            other = next((one for one in free if (its[one].dtype.kind == "f") == (value.dtype.kind == "f")), None)
            if other is not None:
                pairs[name] = other
    for name, other in pairs.items():
        one, two = mine[name], its[other]
        called = name if name == other else f"{name} and JAX's {other}"
        if one.size != two.size:
            yield f"the inputs differ: {called} has shape {list(one.shape)} in PyTorch and {list(two.shape)} in JAX"
        elif one.dtype.kind == "f" or two.dtype.kind == "f":
            if not np.array_equal(np.sort(one.astype(np.float64), None), np.sort(two.astype(np.float64), None)):
                yield f"the inputs differ: {called} does not hold the same numbers"
        elif not np.array_equal(one.ravel(), two.ravel()):
            at = int(np.flatnonzero(one.ravel() != two.ravel())[0])
            where = [int(place) for place in np.unravel_index(at, one.shape)]
            yield f"the inputs differ: {called} is {one.ravel()[at]} in PyTorch and {two.ravel()[at]} in JAX at {where}"


def unseen(function: Callable[..., object], given: Mapping[str, Any]) -> Iterator[str]:
    """What inputs could not show, as sentences.

    Args:
        function: PyTorch's side, whose `config` is looked into where it has one.
        given: what it is given, by name.
    """
    arrays = {name: np.asarray(one) for name, one in given.items() if getattr(one, "ndim", 0)}
    config = getattr(function, "config", None)
    signature = signature_of(function)
    known = set(given) | set(signature.parameters if signature is not None else ())
    masks = dict(_masks(given))
    whole = [name for name, tokens in masks.items() if tokens.all()]
    if whole:
        yield f"no padding: {whole[0]} leaves no token out, so that nothing shows of what is done with padding"
    elif not masks and any(name.endswith(("attention_mask", "padding_mask")) for name in known):
        yield "no padding: no mask is given, so that nothing shows of what is done with padding"
    for name, padded in masks.items():
        if not padded.all() and (np.diff(padded.astype(int), axis=1) <= 0).all():
            yield f"{name} pads at the end alone: a causal mask hides it, whatever is done with padding"
    whole_numbers = {name: one for name, one in arrays.items() if one.ndim == 2 and one.dtype.kind in "iu"}
    tokens = {name: one for name, one in whole_numbers.items() if name not in masks}
    length = max((one.shape[1] for one in tokens.values()), default=None)
    batch = {one.shape[0] for one in arrays.values()}
    if batch == {1}:
        yield "one row only: what mixes up the rows of a batch does not show"
    if length is not None and length < _SHORT:
        yield f"{length} tokens only: causal masks, positions and windows show little; give {_SHORT} or more"
    for name, size in _windows(config):
        if length is not None and length <= size:
            yield f"shorter than the window: {length} tokens, and {name} is {size}; make a model with a smaller one"
    yield from _documents(arrays)
    if getattr(config, "is_encoder_decoder", False) and not any("decoder" in name for name in given):
        yield "no input of the decoder is given: it may be made of the encoder's, or not run"
    for name, one in arrays.items():
        if one.ndim == 4 and one.dtype.kind == "f" and one.shape[-1] == one.shape[-2]:
            yield f"{name} is square: an exchange of height and width shows by its positions only"
    for name, one in tokens.items():
        if "type" in name and not one.any():
            yield f"{name} is all 0: other types are not seen"


def _documents(arrays: Mapping[str, NumPyArray]) -> Iterator[str]:
    for name, one in arrays.items():
        if one.dtype.kind not in "iu" or one.ndim != 2:
            continue
        if any(word in name for word in ("segment", "document", "sequence_id")) and (one == one[:, :1]).all():
            yield f"one document only: {name} is the same at all tokens"
        if "position" in name and (np.diff(one, axis=1) == 1).all():
            yield f"one document only: {name} counts on without a second start"


def _windows(config: object, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Windows that a configuration names, or one within it."""
    if config is None or depth > 2:
        return
    found = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    for name, one in found.items():
        if name in _WINDOWS:
            sizes = one if isinstance(one, (list, tuple)) else [one]
            sizes = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and size > 0]
            if sizes and getattr(config, "use_sliding_window", True):
                yield name, max(sizes)
        elif name.endswith("_config"):
            yield from _windows(one, depth + 1)
