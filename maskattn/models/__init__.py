"""Whole models: a table for each architecture, from which both twins are built."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

from maskattn._hf_config import Reading, nearest, row_of
from maskattn._problems import Problems
from maskattn.layer import from_hf
from maskattn.layer.from_hf import Row
from maskattn.masks.interop import hugging_face_models
from maskattn.models.build import Builder
from maskattn.models.build_images import AutoencoderBuilder, ImageBuilder, TowersBuilder, WindowBuilder
from maskattn.models.build_sound import Sound
from maskattn.models.build_two import TwoStacks
from maskattn.models.check import check
from maskattn.models.leaves import first_numbers
from maskattn.models.model import Configuration, Inputs, Output, TokenModel, WholeModel
from maskattn.models.rows import ROWS

__all__ = [
    "ROWS",
    "Configuration",
    "Inputs",
    "Output",
    "TokenModel",
    "WholeModel",
    "describe",
    "first_numbers",
    "forget",
    "register",
]

#: What the `kind` of a row says -> what reads the row.
BUILDERS: dict[str, type[Builder]] = {
    "tokens": Builder,
    "two": TwoStacks,
    "sound": Sound,
    "images": ImageBuilder,
    "windows": WindowBuilder,
    "autoencoder": AutoencoderBuilder,
    "towers": TowersBuilder,
}

#: What a row may say: `models.build` and its like tell the keys.
_KEYS = frozenset(key for row in ROWS.values() for key in row) | {"patch_eps"}


def describe(config: object, names: Container[str] | None = None, tied: bool | None = None) -> WholeModel:
    """The model that a Hugging Face configuration means.

    Args:
        config: a configuration of transformers, or the dict of its config.json.
        names: of the tensors of a checkpoint, which decide what heads it has; None: all that the row has. Where it is
            a mapping, to the tensors, it decides too whether logits are tied: not, where both tables differ.
        tied: whether the head is the table of tokens; None: as the configuration and the tensors say.

    Raises:
        TypeError: config is no configuration. ValueError: no row of its model type, with the nearest; a key is missing;
            an option is refused.
    """
    reading = Reading(config, 0, "models.describe")
    try:
        row = row_of(reading, ROWS, "model")
    except ValueError as error:
        raise ValueError(
            f"{error}; docs/models.md#a-type-that-is-not-here says how a row is written for another"
        ) from None
    check(row, reading)
    builder = BUILDERS[str(row.get("kind", "tokens"))](row, reading, names=names, tied=tied)
    try:
        return replace(builder.model(), untrained=builder.get("untrained", ""))
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        said = f"its table cannot read the configuration of {reading.model_type!r}: {type(error).__name__}: {error}"
        raise ValueError(f"{reading.where}: {said}") from error


def register(model_type: str, row: Row, *, layer: Row, mask: Mapping[str, object]) -> None:
    """Make both twins know an architecture of one's own: `describe`, `load` and `save`, `AttentionConfig.from_hf` and
    `masks.for_hf`. docs/writing-an-architecture.md has one from its first line to its proof.

    Args:
        model_type: what its config.json says; a row that is known is replaced.
        row: the tensors and what is computed with them: the keys are told in `models.build`.
        layer: of an attention layer, fields of `AttentionConfig`, as in `layer.from_hf`.
        mask: what a layer may attend to, such as {"mask": "causal"}: a row of
            ``masks/interop/hugging_face_models.toml``, which tells its keys. True = may attend.

    Raises:
        ValueError: row or mask has a key that nothing reads, with the nearest; mask has neither "mask" nor "like" (the
            type whose row it is), or another word than these can be. All at once.
    """
    problems = Problems("models.register")
    for key in row:
        if key not in _KEYS:
            problems.value(f"row has no key {key!r}; {nearest(key, _KEYS)}")
    for mistake in hugging_face_models.mistakes(mask):
        problems.value(mistake)
    problems.raise_if_any()
    ROWS[model_type] = row
    from_hf.register(model_type, layer)
    hugging_face_models.register(model_type, mask)


def forget(model_type: str) -> None:
    """Take back what `register` made known of a model type.

    Raises:
        KeyError: it was not registered.
    """
    del ROWS[model_type]
    del from_hf.ROWS[model_type]
    hugging_face_models.forget(model_type)
