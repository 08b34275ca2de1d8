"""AttentionConfig: one frozen description from which both twins build their modules."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from maskattn._declared import Declared, choice, declared, flag, integer, member, number
from maskattn._problems import Problems
from maskattn.attention import EMPTY_ROWS
from maskattn.layer import (
    Clip,
    Cosine,
    Disentangled,
    ExtraKeys,
    Gate,
    GlobalTokens,
    Norm,
    PositionBias,
    Rotary,
    Temperature,
    from_hf,
)
from maskattn.typing import EmptyRows

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


#: The fields that are parts of a layer.
_PARTS = (
    "rotary",
    "qk_norm",
    "clip",
    "cosine",
    "temperature",
    "position_bias",
    "extra_keys",
    "global_tokens",
    "gate",
)


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
    rotary: Rotary | None
    qk_norm: Norm | None
    clip: Clip | None
    cosine: Cosine | None
    temperature: Temperature | None
    position_bias: PositionBias | None
    extra_keys: ExtraKeys | None
    global_tokens: GlobalTokens | None
    gate: Gate | None
    dropout_rate: float
    out_dropout_rate: float
    project: bool
    empty_rows: EmptyRows


def _follows(default: str, meaning: str) -> Any:
    """A size that follows from the others where it is not given."""
    return integer(minimum=1, none=default, default=None, meaning=meaning)


def _part(of: type, meaning: str) -> Any:
    """A part that a layer may have."""
    return member(of, none="none", default=None, meaning=meaning)


@declared
class AttentionConfig(Declared):
    """What one multi-head attention layer is: sizes, biases, scores, rates, and the policy for empty rows.

    What is left out, or None, is settled when the configuration is made: each field then holds its value. `replace`
    makes one with other fields.

    >>> from maskattn import AttentionConfig
    >>> config = AttentionConfig(64, 8, num_kv_heads=2)
    >>> config.head_dim, config.v_head_dim, config.kdim, config.out_dim, round(config.scale, 4)
    (8, 8, 64, 64, 0.3536)
    >>> config
    AttentionConfig(64, 8, num_kv_heads=2)
    """

    embed_dim: int = integer(minimum=1, meaning="E, the width of the query input")
    num_heads: int = integer(minimum=1, meaning="H, query heads")
    num_kv_heads: int = _follows("H", "K, key/value heads, which divide H: head h reads kv head h // (H // K)")
    head_dim: int = _follows("embed_dim // num_heads", "D, the width of a query or key head")
    v_head_dim: int = _follows("D", "Dv, the width of a value head")
    kdim: int = _follows("embed_dim, or K * D where project is False", "the width of the key input")
    vdim: int = _follows("embed_dim, or K * Dv where project is False", "the width of the value input")
    out_dim: int = _follows("embed_dim, or H * Dv where project is False", "the width of the output")
    qkv_bias: bool = flag(default=True, meaning="whether the input projections have a bias")
    out_bias: bool = flag(default=True, meaning="whether the output projection has a bias")
    scale: float = number(none="1 / sqrt(D)", default=None, meaning="what multiplies query times key")
    softcap: float | None = number(
        above=0, none="no cap", default=None, meaning="c replaces a logit x by c * tanh(x / c), as in Gemma 2"
    )
    sinks: bool = flag(
        default=False,
        meaning="whether each head has a learned logit, of the parameter `sinks` [H], in the softmax's denominator, as "
        "in gpt-oss",
    )
    rotary: Rotary | None = _part(Rotary, "queries and keys turned by their positions")
    qk_norm: Norm | None = _part(Norm, "norms of queries and keys")
    clip: Clip | None = _part(Clip, "bounds of queries, keys and values")
    cosine: Cosine | None = _part(Cosine, "cosine attention with a learned scale, in place of the dot product")
    temperature: Temperature | None = _part(Temperature, "queries scaled by their position")
    position_bias: PositionBias | None = _part(
        PositionBias, "WindowTable, T5Table, ContinuousTable, Slopes or Disentangled: what positions add to the logits"
    )
    extra_keys: ExtraKeys | None = _part(ExtraKeys, "keys and values beside those of the sequence")
    global_tokens: GlobalTokens | None = _part(GlobalTokens, "projections of their own for global tokens")
    gate: Gate | None = _part(Gate, "what multiplies the output before its projection")
    dropout_rate: float = number(minimum=0, below=1, default=0.0, meaning="of the attention weights")
    out_dropout_rate: float = number(minimum=0, below=1, default=0.0, meaning="of the output")
    project: bool = flag(
        default=True, meaning="False uses the inputs directly, split into heads, with no projection in or out"
    )
    empty_rows: EmptyRows = choice(*EMPTY_ROWS, default="zero", meaning="what a row that may attend to nothing gives")

    if TYPE_CHECKING:

        def __init__(self, embed_dim: int, num_heads: int, **options: Unpack[ConfigOptions]) -> None: ...

    def _check(self, problems: Problems) -> None:
        """sizes do not go together"""
        held = vars(self)
        if held["head_dim"] is None and self.embed_dim % self.num_heads:
            problems.value(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}: give head_dim")
        for name, value in self._defaults():
            if held[name] is None:
                self._set(**{name: value})
        if self.num_heads % self.num_kv_heads:
            problems.value(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        self._check_parts(problems)
        if self.project:
            return
        widths = {name: value for name, value in self._defaults() if name in ("kdim", "vdim", "out_dim")}
        for name, width in {"embed_dim": self.num_heads * self.head_dim, **widths}.items():
            given = getattr(self, name)
            if given != width:
                problems.value(f"{name} must be heads x head width = {width} where project is False, got {given}")

    def _check_parts(self, problems: Problems) -> None:
        if self.rotary is not None:
            for reason in self.rotary.misfits(self.head_dim):
                problems.value(reason)
        if self.cosine is not None and self.qk_norm is not None:
            problems.value("cosine and qk_norm are two norms of queries and keys: give one")
        if not self.project and (self.gate is not None or self.global_tokens is not None):
            problems.value("gate and global_tokens are projections: they must be None where project is False")
        slopes = getattr(self.position_bias, "slopes", None)
        if slopes is not None and len(slopes) != self.num_heads:
            problems.value(f"position_bias: slopes must be one per head, {self.num_heads}, got {len(slopes)}")

    def _defaults(self) -> Iterator[tuple[str, Any]]:
        """Fields and what they follow from; each may read those before it."""
        yield "num_kv_heads", self.num_heads
        yield "head_dim", self.embed_dim // self.num_heads
        yield "v_head_dim", self.head_dim
        yield "kdim", self.embed_dim if self.project else self.num_kv_heads * self.head_dim
        yield "vdim", self.embed_dim if self.project else self.num_kv_heads * self.v_head_dim
        yield "out_dim", self.embed_dim if self.project else self.num_heads * self.v_head_dim
        terms = self.position_bias.terms if isinstance(self.position_bias, Disentangled) else 0
        yield "scale", 1.0 / math.sqrt(self.head_dim * (1 + terms)) if self.head_dim and self.cosine is None else 1.0

    @classmethod
    def from_hf(cls, config: object, layer: int, part: str | None = None) -> AttentionConfig:
        """What one layer of a Hugging Face model is, by the model's configuration. transformers is not imported.

        Parts that a call or the block around it brings are not the layer's: its mask (`masks.for_hf`), positions,
        DeBERTa's table of positions, and dropout of the output. `layer.from_hf.ROWS` has a row for each model type, and
        `layer.from_hf.register` adds one.

        >>> from maskattn import AttentionConfig
        >>> AttentionConfig.from_hf({"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4}, 0)
        AttentionConfig(64, 4, dropout_rate=0.1)

        Args:
            config: a configuration of transformers, or the dict of its config.json.
            layer: from 0; of Swin, through all stages.
            part: "encoder", "decoder" or "cross", of models that have an encoder and a decoder.

        Raises:
            TypeError: config is no configuration, or layer no int.
            ValueError: no row of its model type, with the nearest ones; a key is missing; no such layer; the part is
                left open, or the model has one stack.
        """
        return cls(**from_hf.fields_of(config, layer, part))

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

    @property
    def has_parts(self) -> bool:
        """Whether anything happens between the projections beside attention itself."""
        return any(getattr(self, name) is not None for name in _PARTS)

    @property
    def parts(self) -> list[str]:
        """The fields whose parts there are, in the order in which they come."""
        return [name for name in _PARTS if getattr(self, name) is not None]

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
