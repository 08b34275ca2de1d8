"""Inputs that a whole model takes, drawn at random: short texts of which one is padded, images, sound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from maskattn._hf_config import Value
from maskattn.models.autoencoder import Autoencoder
from maskattn.models.encoder_decoder import EncoderDecoder
from maskattn.models.heads import Chosen
from maskattn.models.images import ImageModel, Patches
from maskattn.models.leaves import Array
from maskattn.models.model import TokenModel, WholeModel
from maskattn.models.sound import Frames, SoundModel
from maskattn.models.tokens import Tokens
from maskattn.models.towers import Towers
from maskattn.typing import NumPyArray

#: Tokens of a text, and of what a decoder beside an encoder reads; frames of sound that blocks read; sequences.
LENGTH, DECODED, FRAMES, BATCH = 33, 14, 24, 2


def sample(table: WholeModel, config: Mapping[str, Value], seed: int = 0) -> dict[str, NumPyArray]:
    """Inputs of a batch by the names of a call's arguments: tokens int64, images and sound float32; of the second
    sequence the last quarter is padding, where the model takes a mask.

    Args:
        table: the model. config: its configuration, which says the id of padding.
    """
    draws = np.random.default_rng(seed)
    pad = config.get("pad_token_id")
    if isinstance(table, TokenModel):
        return _texts(table, table.tokens, LENGTH, pad, draws)
    if isinstance(table, EncoderDecoder):
        return _two(table, pad, draws)
    if isinstance(table, SoundModel):
        samples = int(table.front.convs[0].conv.size[0])
        while table.front.frames(samples) < FRAMES:
            samples += 1 + samples // 16
        return {"features": _normal(draws, (BATCH, samples)), "attention_mask": _mask(BATCH, samples)}
    if isinstance(table, Towers):
        text = config.get("text_config")
        pad = text.get("pad_token_id") if isinstance(text, Mapping) else None
        made = _texts(table.text, table.text.tokens, LENGTH, pad, draws)
        return made | {"images": _images(table.vision.patches, draws)}
    assert isinstance(table, ImageModel | Autoencoder)
    made = {"images": _images(table.patches, draws)}
    if isinstance(table, Autoencoder):
        sizes = zip(table.patches.image, table.patches.project.size, strict=True)
        made["noise"] = draws.random((BATCH, math.prod(side // patch for side, patch in sizes)), np.float32)
    return made


def _two(table: EncoderDecoder, pad: Value, draws: np.random.Generator) -> dict[str, NumPyArray]:
    """Of an encoder and a decoder; one with the head of a task makes the decoder's tokens of the encoder's."""
    front = table.front
    if isinstance(front, Frames):
        frames = front.positions.shape[0] * front.second.stride[0]
        made = {"features": _normal(draws, (BATCH, front.first.inputs, frames))}
    else:
        made = _texts(table, front, LENGTH if table.task is None else _room(table.tokens, LENGTH), pad, draws)
    if table.task is None:
        more = _texts(table, table.tokens, DECODED, pad, draws)
        made["decoder_tokens"] = more["tokens"]
        if not table.hears:
            made["decoder_attention_mask"] = more["attention_mask"]
    return made


def _texts(
    table: TokenModel | EncoderDecoder, tokens: Tokens, length: int, pad: Value, draws: np.random.Generator
) -> dict[str, NumPyArray]:
    """Tokens that mean nothing special, but those that a head looks for; their mask, types and which are global."""
    special = dict(_special(table, tokens))
    if tokens.positions is not None and tokens.positions.pad is not None:
        pad = tokens.positions.pad
    rows, length = tokens.table.rows, _room(tokens, length)
    whole = table.task is not None and table.task.read == "text" and table.task.token is None
    batch = 1 if whole else BATCH  # where texts end is not known of several
    plain = np.setdiff1d(np.arange(rows), [*special.values(), *([] if pad is None else [int(pad)])])
    ids = draws.choice(plain, (batch, length))
    mask = _mask(batch, length)
    kept = mask.sum(1)
    for row in range(batch):
        if "separator" in special:
            ids[row, [kept[row] // 4, kept[row] // 2, kept[row] * 3 // 4]] = special["separator"]
        if "end" in special:
            ids[row, kept[row] - 1] = special["end"]
    ids[mask == 0] = int(pad or 0)
    made = {"tokens": ids, "attention_mask": mask}
    if tokens.types is not None and tokens.types.rows > 1:
        made["token_types"] = draws.integers(0, tokens.types.rows, (batch, length))
    if table.task is None and any(block.attention.config.global_tokens for block in table.stacks()[0].blocks):
        made["global_tokens"] = np.arange(length) < np.ones((batch, 1), np.int64)
    return made


def _special(table: TokenModel | EncoderDecoder, tokens: Tokens) -> Iterator[tuple[str, int]]:
    """Ids that are not drawn, by what they are."""
    pooler = table.pooler if isinstance(table, TokenModel) else None
    task = table.task
    found = {
        "dropped": tokens.dropped,
        "end": pooler.end if isinstance(pooler, Chosen) and pooler.end != 2 else None,
        "separator": None if task is None else task.separator,
        "token": None if task is None or task.read != "text" else task.token,
    }
    if task is not None and task.read == "end":
        found["end"] = task.token
    yield from ((name, int(number)) for name, number in found.items() if number is not None)


def _room(tokens: Tokens, length: int) -> int:
    """As many tokens as a table of positions has rows for."""
    positions = tokens.positions
    if positions is None:
        return length
    table = positions.table
    rows = table.shape[0] if isinstance(table, Array) else getattr(table, "rows", None)
    return length if rows is None else min(length, int(rows) - positions.offset)


def _mask(batch: int, length: int) -> NumPyArray:
    """int64 [B, L], 1 = keep: all of the first row."""
    kept = np.full(batch, length)
    kept[1:] = length - length // 4
    return (np.arange(length) < kept[:, None]).astype(np.int64)


def _images(patches: Patches, draws: np.random.Generator) -> NumPyArray:
    """[B, channels, height, width], of the size of training."""
    return _normal(draws, (BATCH, patches.project.inputs, *patches.image))


def _normal(draws: np.random.Generator, shape: tuple[int, ...]) -> NumPyArray:
    return np.asarray(draws.standard_normal(shape, np.float32))
