"""A tiny model of transformers: one row for each architecture, and for each of its variants that computes otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Sizes are distinct, and no multiples of each other where they may be, so that no two axes can be exchanged unseen.
SIZES: Mapping[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 44,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Tiny:
    """One row.

    Attributes:
        model: the class of transformers.
        config: what the configuration of the model type is given.
        inputs: "tokens", "types" (with token types), "images", "sound" (samples), "both" (tokens of an encoder and a
            decoder), "spectrum" (frames of sound, and tokens of a decoder), "pairs" (images and tokens).
        padding: the sides on which the second sequence is padded; () where the model takes no mask.
        length: tokens of a sequence, frames or samples. image: channels, height and width of an image.
        attention: the implementation of transformers that is compared with.
        small: how the names end of parameters that are drawn small: queries, where nothing scales the logits.
        options: further arguments of a call, in transformers' words.
    """

    model: str
    config: Mapping[str, Any]
    inputs: str = "tokens"
    padding: tuple[str, ...] = ("right", "left")
    length: int = 14
    image: tuple[int, ...] = ()
    attention: str = "eager"
    small: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
