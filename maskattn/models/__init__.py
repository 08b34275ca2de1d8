"""Whole models: a table for each architecture, from which both twins are built."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from maskattn._hf_config import Reading, row_of
from maskattn.models.build import Builder
from maskattn.models.build_images import AutoencoderBuilder, ImageBuilder, TowersBuilder, WindowBuilder
from maskattn.models.build_sound import Sound
from maskattn.models.build_two import TwoStacks
from maskattn.models.check import check
from maskattn.models.leaves import first_numbers
from maskattn.models.model import Configuration, Inputs, Output, TokenModel, WholeModel
from maskattn.models.rows import ROWS

__all__ = ["ROWS", "Configuration", "Inputs", "Output", "TokenModel", "WholeModel", "describe", "first_numbers"]

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
