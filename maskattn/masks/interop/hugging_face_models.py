"""`for_hf`: the mask that a Hugging Face configuration means for a layer, from ``hugging_face_models.toml``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from maskattn._hf_config import nearest
from maskattn._problems import Problems
from maskattn.masks._core import Full, Mask, Not
from maskattn.masks.block_causal import BlockCausal
from maskattn.masks.causal import Causal
from maskattn.masks.chunked import Chunked
from maskattn.masks.global_tokens import Global
from maskattn.masks.shifted_window import ShiftedWindow
from maskattn.masks.sliding_window import SlidingWindow

Row = Mapping[str, Any]

_PARTS = ("encoder", "decoder", "cross")
#: How configurations call the number of layers, by part.
_COUNTS = {
    "": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "encoder": ("encoder_layers", "num_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers", "num_layers", "num_hidden_layers"),
}
_COUNTS["cross"] = _COUNTS["decoder"]
#: What a row may say; ``hugging_face_models.toml`` tells them.
_KEYS = tuple("mask like window usual band radius chunk layer_types first when local causal_if unless why".split())
#: Of each type its row. Read here and not when it is asked for, which may be in what PyTorch compiles.
_ROWS: dict[str, Row] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def for_hf(config: object, layer: int, part: str | None = None, *, length: int | None = None) -> Mask:
    """The mask that a Hugging Face configuration means for one layer, without padding. True = may attend.

    What comes with each batch is not in it: combine it with `masks.from_hf(attention_mask)`, and for Longformer and LED
    join `masks.Global(tokens)` by `|`.

    Args:
        config: a configuration object of transformers, or its dict (config.json).
        layer: from 0; of Swin, counted over all stages.
        part: "encoder", "decoder" or "cross" of a model that has both; else None.
        length: how many tokens there are, for patterns that depend on it (BigBird).

    >>> from maskattn import masks
    >>> masks.for_hf({"model_type": "gemma2", "sliding_window": 4096, "num_hidden_layers": 26}, 0)
    Causal() & SlidingWindow(4095, right=None)
    >>> masks.for_hf({"model_type": "t5", "num_layers": 6}, 2, "decoder")
    Causal()

    Raises:
        ValueError: there is no row for this type of model (the nearest are named), the model has no such layer or part,
            or a field is missing. TypeError: config is neither, or layer no int.
    """
    problems = Problems("for_hf")
    kind = _field(config, "model_type")
    if not isinstance(kind, str):
        problems.type(
            f"config must be a configuration of transformers or its dict, with a model_type, got {_named(config)}"
        )
    number = problems.integer("layer", layer, minimum=0)
    problems.raise_if_any()
    assert isinstance(kind, str)
    row = _row(kind, config)
    if "mask" not in row:
        if part not in _PARTS:
            _refuse(f"{kind} has an encoder and a decoder: part must be one of {', '.join(_PARTS)}, got {part!r}")
        row = row[part]
    elif part is not None:
        _refuse(f"{kind} has one stack of layers: part must be None, got {part!r}")
    _check_layer(config, number, part or "", row)
    return _PATTERNS.get(row["mask"], _plain)(config, number, row, length)


def mistakes(row: Row) -> list[str]:
    """What a row says that nothing would read: a word misspelt would be a mask that allows everything."""
    found = [f"mask has no key {name!r}; {nearest(name, _KEYS)}" for name in row if name not in _KEYS]
    if not {"mask", "like"} & row.keys():
        found.append(f'mask must have the key "mask" or "like", got {dict(row)!r}')
    words = ("causal", "everything", *_PATTERNS)
    if "mask" in row and row["mask"] not in words:
        found.append(f"mask must be one of {', '.join(words)}, got {row['mask']!r}")
    if "like" in row and row["like"] not in _ROWS:
        found.append(f"like: no row is known of {row['like']!r}; {nearest(str(row['like']), _ROWS)}")
    return found


def register(model_type: str, row: Row) -> None:
    """Make `for_hf` know a type of model, by a row such as those of ``hugging_face_models.toml``."""
    _ROWS[model_type] = row


def forget(model_type: str) -> None:
    """Take back what `register` made known."""
    del _ROWS[model_type]


def _plain(config: object, layer: int, row: Row, length: int | None) -> Mask:
    unless = row.get("unless")
    if unless and _field(config, unless["field"]) == unless["value"]:
        _refuse(row["why"])
    causal = row["mask"] == "causal" and _field(config, "is_causal") is not False
    causal = causal or "causal_if" in row and bool(_field(config, row["causal_if"]))
    exclusive = bool(_field(config, "use_bidirectional_attention"))
    causal = causal and not exclusive
    whole: Mask = Causal() if causal else Full()
    if not _is_local(config, layer, row):
        return whole
    if "chunk" in row:
        return whole & Chunked(_number(config, row["chunk"]))
    if "radius" in row:
        radius = _number(config, row["radius"])
        return whole & SlidingWindow(radius, radius)
    if "band" in row:
        given = _field(config, row["band"])
        half = (given[layer] if isinstance(given, (list, tuple)) else _number(config, row["band"])) // 2
        return whole & SlidingWindow(half, half)
    width = _width(config, row)
    if causal:
        return whole & SlidingWindow(width - 1, None)
    if exclusive:  # Gemma 3 as an encoder: files hold what a causal model would see on both sides
        width = width // 2 + 1 if isinstance(config, Mapping) else width
        return SlidingWindow(width - 1, width - 1)
    return SlidingWindow(width, width)


def _is_local(config: object, layer: int, row: Row) -> bool:
    """Whether this is one of the layers with a window, band or chunks."""
    if not {"window", "band", "radius", "chunk"} & set(row):
        return False
    types = _field(config, "layer_types")
    if "layer_types" in row and types is not None:
        if layer >= len(types):
            _refuse(f"layer must be less than the length of layer_types, {len(types)}, got {layer}")
        if types[layer] not in ("full_attention", "sliding_attention", "chunked_attention"):
            _refuse(f"layer {layer} is no attention but {types[layer]!r}")
        return bool(types[layer] != "full_attention")
    if "when" in row and not _field(config, row["when"]):
        return False
    if "window" in row and not _width(config, row):
        return False
    if "local" in row:
        if _field(config, row["local"]) is None:
            _refuse(f"the configuration has no {row['local']}: give transformers' own object, which fills it in")
        return bool(_field(config, row["local"])[layer] == "local")
    rule = row.get("layer_types", "all")
    if isinstance(rule, int):
        period = _period(config, row)
        return layer % period != (0 if row.get("first") else period - 1)
    return _RULES[rule](config, layer)


def _period(config: object, row: Row) -> int:
    """Every how many layers there is a full one: as old files say it, or as the type has it."""
    for name in ("sliding_window_pattern", "global_attn_every_n_layers"):
        given = _field(config, name)
        if isinstance(given, int):
            return given
    period: int = row["layer_types"]
    return period


def _with_rope(config: object, layer: int) -> bool:
    """Llama 4: layers with rotary embeddings are chunked. SmolLM3: those without are sliding."""
    given, every = _field(config, "no_rope_layers"), _field(config, "no_rope_layer_interval") or 4
    with_rope = bool(given[layer]) if given else (layer + 1) % every != 0
    return with_rope if _field(config, "model_type") == "llama4_text" else not with_rope


_RULES: dict[str, Callable[[object, int], bool]] = {
    "all": lambda config, layer: True,
    "rope": _with_rope,
    "since": lambda config, layer: layer >= _number(config, "max_window_layers"),
    "even": lambda config, layer: layer % 2 == 0 and layer < _number(config, "max_window_layers"),
}


def _bigbird(config: object, layer: int, row: Row, length: int | None) -> Mask:
    """Without training: the blocks beside one's own, the first and the last. The random ones are all the first then."""
    if _field(config, "is_decoder"):
        return Causal()
    if _field(config, "attention_type") == "original_full":
        return Full()
    if length is None:
        _refuse("big_bird depends on the number of tokens: pass length")
    size, random = _number(config, "block_size"), _number(config, "num_random_blocks")
    if length <= (5 + 2 * random) * size:
        return Full()  # what transformers falls back to
    blocks = -(-length // size)
    block = np.arange(length) // size
    near = BlockCausal(size).at(q_offset=size) & Not(BlockCausal(size).at(q_offset=-2 * size))
    return near | Global((block == 0) | (block == blocks - 1))


def _swin(config: object, layer: int, row: Row, length: int | None) -> Mask:
    """Inside windows, which are the batch; every second block of a stage is shifted."""
    depths, window = list(_field(config, "depths")), _number(config, "window_size")
    image, patch = (_pair(_field(config, name)) for name in ("image_size", "patch_size"))
    grid = [-(-i // p) for i, p in zip(image, patch, strict=True)]
    for depth in depths:
        if layer < depth:
            break
        layer -= depth
        grid = [-(-side // 2) for side in grid]
    if min(grid) <= window:
        window, shift = min(grid), 0
    else:
        shift = window // 2 if layer % 2 else 0
    padded = (-(-grid[0] // window) * window, -(-grid[1] // window) * window)
    return ShiftedWindow(padded, window, shift) if shift else Full()


_PATTERNS: dict[str, Callable[[object, int, Row, int | None], Mask]] = {"bigbird": _bigbird, "swin": _swin}


def _check_layer(config: object, layer: int, part: str, row: Row) -> None:
    counts = [_field(config, name) for name in _COUNTS[part]]
    depths = _field(config, "depths") if row["mask"] == "swin" else None
    found = [sum(depths)] if depths else [count for count in counts if isinstance(count, int)]
    if found and layer >= found[0]:
        _refuse(f"layer must be less than the number of layers, {found[0]}, got {layer}")


def _row(kind: str, config: object) -> Row:
    """The row of a type of model; ValueError names the nearest."""
    row = _ROWS.get(kind)
    if row is None:
        inner = sorted(name for name in _names(config) if name.endswith("_config") and _field(config, name) is not None)
        inner = [name for name in inner if _field(_field(config, name), "model_type") is not None]
        if inner:
            _refuse(f"{kind} is made of several models: pass {' or '.join(f'config.{name}' for name in inner)}")
        near = difflib.get_close_matches(kind, _ROWS, n=3, cutoff=0.5)
        first = f"there are {len(_ROWS)}, {', '.join(sorted(_ROWS)[:3])} ..."
        known = f"the nearest are {', '.join(near)}" if near else first
        _refuse(f"no mask is known for models of type {kind!r}: {known}")
    return _row(row["like"], config) if "like" in row else row


def _field(config: object, name: str) -> Any:
    """A field of a configuration; None where it has none."""
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _width(config: object, row: Row) -> int:
    """How many keys a window has; 0 where there is none."""
    name = row["window"]
    if isinstance(config, Mapping) and name not in config:
        return int(row.get("usual", 0))
    return _number(config, name) if _field(config, name) else 0


def _names(config: object) -> list[str]:
    return list(config) if isinstance(config, Mapping) else list(getattr(config, "__dict__", ()))


def _number(config: object, name: str) -> int:
    value = _field(config, name)
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(f"config.{name} must be an int, got {value!r}")
    return value


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _named(config: object) -> str:
    return type(config).__name__


def _refuse(reason: str) -> NoReturn:
    raise ValueError(f"for_hf: {reason}")
