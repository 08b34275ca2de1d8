"""AttentionConfig: one frozen description from which both twins build their modules."""

from __future__ import annotations

import math
import operator
import warnings
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from maskattn._problems import Problems
from maskattn.attention import EMPTY_ROWS

_SIZES = ("embed_dim", "num_heads", "num_kv_heads", "head_dim", "v_head_dim", "kdim", "vdim", "out_dim")
#: Names of the version before, when a size had one name as given and another as resolved.
_RENAMED = {
    "kv_heads": "num_kv_heads",
    "qk_head_dim": "head_dim",
    "value_head_dim": "v_head_dim",
    "key_dim": "kdim",
    "value_dim": "vdim",
    "output_dim": "out_dim",
    "softmax_scale": "scale",
}


class ConfigOptions(TypedDict, total=False):
    """The fields of `AttentionConfig` but for the first two, as modules take them beside embed_dim and num_heads."""

    num_kv_heads: int | None
    head_dim: int | None
    v_head_dim: int | None
    kdim: int | None
    vdim: int | None
    out_dim: int | None
    qkv_bias: bool
    out_bias: bool
    scale: float | None
    softcap: float | None
    sinks: bool
    dropout_rate: float
    out_dropout_rate: float
    project: bool
    empty_rows: str


@dataclass(frozen=True, repr=False)
class AttentionConfig:
    """What one multi-head attention layer is: sizes, biases, scores, rates, and the policy for empty rows.

    What is left out, or None, is settled when the configuration is made: each field then holds its value. `replace`
    makes one with other fields.

    Args:
        embed_dim: E, the width of the query input.
        num_heads: H, query heads.
        num_kv_heads: K, key/value heads (default H); H must be divisible by it, head h reads kv head h // (H // K).
        head_dim: D (default embed_dim // num_heads, which must then divide).
        v_head_dim: Dv (default D).
        kdim, vdim: widths of the key and value inputs (default embed_dim; K * D and K * Dv where project is False).
        out_dim: width of the output (default embed_dim; H * Dv where project is False).
        qkv_bias, out_bias: whether the input projections and the output projection have a bias.
        scale: what multiplies query times key (default 1 / sqrt(D)).
        softcap: c > 0 replaces a logit x by c * tanh(x / c) (Gemma 2); None leaves it.
        sinks: whether each head has a learned logit in the softmax's denominator (gpt-oss), a parameter `sinks` [H].
        dropout_rate: of the attention weights, in [0, 1).
        out_dropout_rate: of the output, in [0, 1).
        project: False uses the inputs directly, split into heads, with no projection in or out.
        empty_rows: "zero", "mean", "nan" or "error": what a row that may attend to nothing gives.

    >>> from maskattn import AttentionConfig
    >>> config = AttentionConfig(64, 8, num_kv_heads=2)
    >>> config.head_dim, config.v_head_dim, config.kdim, config.out_dim, config.scale == 8**-0.5
    (8, 8, 64, 64, True)
    >>> config
    AttentionConfig(64, 8, num_kv_heads=2)

    Raises:
        TypeError, ValueError: one error that lists every field at fault.
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int = None  # type: ignore[assignment]
    head_dim: int = None  # type: ignore[assignment]
    v_head_dim: int = None  # type: ignore[assignment]
    kdim: int = None  # type: ignore[assignment]
    vdim: int = None  # type: ignore[assignment]
    out_dim: int = None  # type: ignore[assignment]
    qkv_bias: bool = True
    out_bias: bool = True
    scale: float = None  # type: ignore[assignment]
    softcap: float | None = None
    sinks: bool = False
    dropout_rate: float = 0.0
    out_dropout_rate: float = 0.0
    project: bool = True
    empty_rows: str = "zero"

    def __post_init__(self) -> None:
        problems = Problems("AttentionConfig")
        for name in _SIZES:
            if getattr(self, name) is not None or name in ("embed_dim", "num_heads"):
                self._set(name, _size(problems, name, getattr(self, name)))
        for name in ("qkv_bias", "out_bias", "sinks", "project"):
            if not isinstance(getattr(self, name), bool):
                problems.type(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("scale", "softcap"):
            if getattr(self, name) is not None:
                self._set(name, problems.number(name, getattr(self, name)))
                problems.finite(name, getattr(self, name), positive=name == "softcap")
        for name in ("dropout_rate", "out_dropout_rate"):
            rate = problems.number(name, getattr(self, name))
            self._set(name, rate)
            if rate is not None and not 0.0 <= rate < 1.0:
                problems.value(f"{name} must lie in [0, 1), got {rate}")
        problems.choice("empty_rows", self.empty_rows, EMPTY_ROWS)
        if not problems:
            self._settle(problems)
        problems.raise_if_any()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _settle(self, problems: Problems) -> None:
        """Give every field that is None what it follows from, and note sizes that do not go together."""
        if self.head_dim is None and self.embed_dim % self.num_heads:
            problems.value(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}: give head_dim")
        for name, value in self._defaults():
            if getattr(self, name) is None:
                self._set(name, value)
        if self.num_heads % self.num_kv_heads:
            problems.value(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        if self.project:
            return
        widths = {name: value for name, value in self._defaults() if name in ("kdim", "vdim", "out_dim")}
        for name, width in {"embed_dim": self.num_heads * self.head_dim, **widths}.items():
            given = getattr(self, name)
            if given != width:
                problems.value(f"{name} must be heads x head width = {width} where project is False, got {given}")

    def _defaults(self) -> Any:
        """Fields and what they follow from; each may read those before it."""
        yield "num_kv_heads", self.num_heads
        yield "head_dim", self.embed_dim // self.num_heads
        yield "v_head_dim", self.head_dim
        yield "kdim", self.embed_dim if self.project else self.num_kv_heads * self.head_dim
        yield "vdim", self.embed_dim if self.project else self.num_kv_heads * self.v_head_dim
        yield "out_dim", self.embed_dim if self.project else self.num_heads * self.v_head_dim
        yield "scale", 1.0 / math.sqrt(self.head_dim)

    def replace(self, **changes: Any) -> AttentionConfig:
        """The same but for some fields. What followed from the fields follows from the new ones (`dataclasses.replace`
        would keep it as it was settled).

        >>> from maskattn import AttentionConfig
        >>> AttentionConfig(64, 8).replace(embed_dim=96).head_dim
        12
        """
        return AttentionConfig(**{**self._given(), **changes})

    def _given(self) -> dict[str, Any]:
        """The fields that neither follow from others nor are as they are by default."""
        follows = dict(self._defaults())
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: follows.get(field.name, field.default) for field in fields(self)}
        return {name: value for name, value in kept.items() if value != defaults[name]}

    def attention_options(self) -> dict[str, Any]:
        """The arguments of `attention` that a configuration settles beside its sinks: scale, softcap, empty_rows."""
        return {"scale": self.scale, "softcap": self.softcap, "empty_rows": self.empty_rows}

    def __repr__(self) -> str:
        """As it may be written: without what follows from the rest."""
        named = [f"{name}={value!r}" for name, value in self._given().items() if name not in ("embed_dim", "num_heads")]
        return f"AttentionConfig({', '.join([str(self.embed_dim), str(self.num_heads), *named])})"

    def __getattr__(self, name: str) -> Any:
        if name not in _RENAMED:
            raise AttributeError(f"AttentionConfig has no {name!r}")
        warnings.warn(f"AttentionConfig.{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        return getattr(self, _RENAMED[name])


def _size(problems: Problems, name: str, value: Any) -> int | None:
    if isinstance(value, bool):
        problems.type(f"{name} must be a positive integer, got {value!r}")
        return None
    try:
        size = operator.index(value)
    except TypeError:
        problems.type(f"{name} must be a positive integer, got {value!r}")
        return None
    if size < 1:
        problems.value(f"{name} must be a positive integer, got {size}")
    return size
