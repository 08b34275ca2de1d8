"""What the modules of both twins share: the checks of their inputs, written once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskattn._fields import broadcasts
from maskattn._problems import Problems, show
from maskattn.config import AttentionConfig
from maskattn.numerics.rng_arguments import check_key

Shape = tuple[int, ...]


def check_inputs(where: str, config: Any, shapes: Mapping[str, Shape], dropout_key: Any, deterministic: bool) -> None:
    """Check the inputs of a module: "query" [B, L, embed_dim], "key" [B, S, kdim], "value" [B, S, vdim], and the key of
    its dropout.

    Raises:
        TypeError, ValueError: lists every wrong shape, a bad key, and a key that is missing where dropout is on.
    """
    problems = Problems(where)
    widths = {"query": config.embed_dim, "key": config.key_dim, "value": config.value_dim}
    for name, width in widths.items():
        if len(shapes[name]) != 3 or shapes[name][2] != width:
            problems.value(f"{name} must be [batch, length, {width}], got shape {shapes[name]}")
    rates = [f"{name} {rate}" for name in ("dropout_rate", "out_dropout_rate") if (rate := getattr(config, name))]
    if dropout_key is not None:
        check_key(problems, "dropout_key", dropout_key)
    elif rates and not deterministic:
        problems.value(
            f"dropout_key must be given where dropout is on, got None and {', '.join(rates)}; in eval mode, or with "
            "deterministic=True, it is off"
        )
    problems.raise_if_any()


def complete_inputs(where: str, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """A module's key defaults to its query and its value to its key; a value without a key is an error."""
    if key is None and value is not None:
        raise ValueError(f"{where}: value is given without key: give both, or only key")
    key = query if key is None else key
    return query, key, key if value is None else value


def check_config(where: str, config: Any) -> None:
    """Raise a TypeError unless `config` is an AttentionConfig."""
    if not isinstance(config, AttentionConfig):
        raise TypeError(f"{where}: config must be an AttentionConfig, got {show(config)}")


def check_attention_mask(shape: Shape, inputs: Shape, heads: int) -> None:
    """Check the mask of the seed module: [B, N], or broadcastable to [B, H, N, N], for inputs [B, N, dim]; 1 = keep.

    Raises:
        ValueError: any other shape.
    """
    if len(inputs) != 3:
        raise ValueError(f"Attention: x must be [batch, length, dim], got shape {inputs}")
    batch, length, _ = inputs
    expanded = (shape[0], 1, 1, shape[1]) if len(shape) == 2 else shape
    if not broadcasts(expanded, (batch, heads, length, length)):
        raise ValueError(
            f"Attention: attention_mask must be [B, N] = {(batch, length)} or broadcast to [B, H, N, N] = "
            f"{(batch, heads, length, length)}, got shape {shape}"
        )
