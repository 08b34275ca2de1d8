"""AttentionConfig: one frozen description from which both twins build their modules."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

from maskattn._problems import Problems
from maskattn.attention import EMPTY_ROWS

_SIZES = ("embed_dim", "num_heads")
_OPTIONAL_SIZES = ("num_kv_heads", "head_dim", "v_head_dim", "kdim", "vdim", "out_dim")


@dataclass(frozen=True)
class AttentionConfig:
    """What one multi-head attention layer is: sizes, biases, scale, rates, and the policy for empty rows.

    Fields keep what was given (None where the default follows from the others); the properties give the resolved
    values.

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
        dropout_rate: of the attention weights, in [0, 1).
        out_dropout_rate: of the output, in [0, 1).
        project: False uses the inputs directly, split into heads, with no projection in or out.
        empty_rows: "zero", "mean", "nan" or "error": what a row that may attend to nothing gives.

    Raises:
        TypeError, ValueError: one error that lists every field at fault.
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    v_head_dim: int | None = None
    kdim: int | None = None
    vdim: int | None = None
    out_dim: int | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    scale: float | None = None
    dropout_rate: float = 0.0
    out_dropout_rate: float = 0.0
    project: bool = True
    empty_rows: str = "zero"

    def __post_init__(self) -> None:
        problems = Problems("AttentionConfig")
        for name in _SIZES + _OPTIONAL_SIZES:
            if getattr(self, name) is not None or name in _SIZES:
                self._set(name, _size(problems, name, getattr(self, name)))
        for name in ("qkv_bias", "out_bias", "project"):
            if not isinstance(getattr(self, name), bool):
                problems.type(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.scale is not None:
            self._set("scale", problems.number("scale", self.scale))
            problems.finite("scale", self.scale)
        for name in ("dropout_rate", "out_dropout_rate"):
            rate = problems.number(name, getattr(self, name))
            self._set(name, rate)
            if rate is not None and not 0.0 <= rate < 1.0:
                problems.value(f"{name} must lie in [0, 1), got {rate}")
        problems.choice("empty_rows", self.empty_rows, EMPTY_ROWS)
        if not problems:
            self._check_agreement(problems)
        problems.raise_if_any()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_agreement(self, problems: Problems) -> None:
        if self.head_dim is None and self.embed_dim % self.num_heads:
            problems.value(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}: give head_dim")
        if self.num_heads % self.kv_heads:
            problems.value(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.kv_heads}")
        if self.project:
            return
        needed = {
            "embed_dim": self.num_heads * self.qk_head_dim,
            "kdim": self.kv_heads * self.qk_head_dim,
            "vdim": self.kv_heads * self.value_head_dim,
            "out_dim": self.num_heads * self.value_head_dim,
        }
        for name, width in needed.items():
            given = getattr(self, name)
            if given is not None and given != width:
                problems.value(f"{name} must be heads x head width = {width} where project is False, got {given}")

    @property
    def kv_heads(self) -> int:
        """K: num_kv_heads, or num_heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def qk_head_dim(self) -> int:
        """D: head_dim, or embed_dim // num_heads."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def value_head_dim(self) -> int:
        """Dv: v_head_dim, or D."""
        return self.qk_head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def key_dim(self) -> int:
        """Width of the key input."""
        if self.kdim is not None:
            return self.kdim
        return self.embed_dim if self.project else self.kv_heads * self.qk_head_dim

    @property
    def value_dim(self) -> int:
        """Width of the value input."""
        if self.vdim is not None:
            return self.vdim
        return self.embed_dim if self.project else self.kv_heads * self.value_head_dim

    @property
    def output_dim(self) -> int:
        """Width of the output."""
        if self.out_dim is not None:
            return self.out_dim
        return self.embed_dim if self.project else self.num_heads * self.value_head_dim

    @property
    def softmax_scale(self) -> float:
        """scale, or 1 / sqrt(D)."""
        return 1.0 / math.sqrt(self.qk_head_dim) if self.scale is None else self.scale


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
