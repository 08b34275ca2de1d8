"""docs/models-table.md: every model type, what its table says, and against what it is compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass

from maskattn import models
from maskattn.config import AttentionConfig
from maskattn.masks import Mask
from maskattn.models.attention import Attention, Fused
from maskattn.models.block import Block
from maskattn.models.leaves import Norm
from maskattn.parity.models.run import COLUMNS, Row
from maskattn.parity.models.tiny import TINY

#: What a model is given, by the word of its tiny row.
_INPUTS = {
    "tokens": "tokens",
    "types": "tokens, types",
    "images": "images",
    "sound": "sound",
    "spectrum": "spectrum; tokens",
    "both": "tokens; tokens",
    "pairs": "images, tokens",
}


def as_page(rows: Sequence[Row]) -> str:
    """The page, whole."""
    listed = "\n".join(f"- **{column}**: {says}." for column, says in COLUMNS.items())
    table = "\n".join(f"| {' | '.join(_line(row))} |" for row in rows)
    return _PAGE.format(columns=listed, table=table, count=len({row.name.partition("+")[0] for row in rows}))


def _line(row: Row) -> list[str]:
    """The cells of a model."""
    import transformers

    tiny, (kind, _, variant) = TINY[row.name], row.name.partition("+")
    config = transformers.AutoConfig.for_model(kind, **tiny.config)
    found = list(_parts(models.describe(config)))
    blocks = [part for part in found if isinstance(part, Block)]
    attentions = [part for part in found if isinstance(part, Attention)]
    compared = tiny.attention + (f", padded {' and '.join(tiny.padding)}" if tiny.padding else "")
    name = f"`{kind}`" + (f", {variant}" if variant else "")
    return [
        f"{name} ({tiny.model})",
        _INPUTS[tiny.inputs],
        _listed(_norms(block) for block in blocks),
        _listed(word for attention in attentions for word in _attention(attention)),
        _listed(_mlp(block.mlp) for block in blocks),
        f"{'holds' if row.held else 'FAILED'} ({compared})",
    ]


def _parts(held: object) -> Iterator[object]:
    """All that a table holds."""
    yield held
    if isinstance(held, tuple):
        for each in held:
            yield from _parts(each)
    elif is_dataclass(held) and not isinstance(held, (Mask, AttentionConfig)):
        for field in fields(held):
            yield from _parts(getattr(held, field.name))


def _listed(words: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(word for word in words if word)) or "-"


def _norms(block: Block) -> str:
    """Which norms, and where."""
    slots = {each.name: getattr(block.norms, each.name) for each in fields(block.norms)}
    there = {name: norm for name, norm in slots.items() if isinstance(norm, Norm)}
    ends = [end for end in ("in", "out", "sum") if any(name.endswith(end) for name in there)]
    where = " and ".join({"in": "before", "out": "behind", "sum": "after the sum"}[end] for end in ends)
    kinds = {norm.kind + (", 1 + scale" if norm.plus_one else "") for norm in there.values()}
    return " ".join([*sorted(kinds), where, *["(parallel)"] * block.parallel]).strip()


def _attention(attention: Attention) -> Iterator[str]:
    """What is particular about an attention."""
    config = attention.config
    if config.num_kv_heads < config.num_heads:
        yield "one key head" if config.num_kv_heads == 1 else "grouped heads"
    if isinstance(attention.inputs, Fused):
        yield "one projection"
    for name in ("rotary", "qk_norm", "clip", "cosine", "temperature", "position_bias", "extra_keys", "global_tokens"):
        part = getattr(config, name)
        if part is not None:
            yield _NAMES.get(name, type(part).__name__)
    yield from (name for name in ("softcap", "sinks") if getattr(config, name))
    if str(attention.mask) != "Full()":
        yield f"`{attention.mask}`"


_NAMES = {"rotary": "rotary", "qk_norm": "norms of queries and keys", "clip": "clip", "global_tokens": "global tokens"}


def _mlp(mlp: object) -> str:
    """What stands beside attention."""
    kind = {"Plain": "plain", "Gated": "gated", "Halves": "gated"}.get(type(mlp).__name__, "experts")
    return f"{kind}, {getattr(mlp, 'activation', '')}".rstrip(", ")


_PAGE = """# Models

The {count} model types that `maskattn_torch.models` and `maskattn_jax.models` know. `maskattn parity models` makes a
tiny model of each with transformers, and of each variant that computes otherwise, draws every number of it, runs it
beside both twins, and writes this page (`--page`). What it compares:

{columns}

The limits are those of `maskattn.standards` (tier4). The first two are of the same inputs; where tokens or sound are
padded they are padded on either side, and what is padding is not compared. The last column is of hidden states and
logits, which `make test` compares of every type, in PyTorch alone where another has the same parts; variants, gradients
and bfloat16 it compares of some, and `make test-all` all of all.

| model | given | norms | attention | MLP | both twins |
| --- | --- | --- | --- | --- | --- |
{table}

The columns say what the tiny model has; a table reads it from the configuration. A type that is not here is refused by
name, with the nearest ones; so is an option that a table does not know.
"""
