"""Models of tokens: what a twin's module is one of, and what a call of it gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic

from maskattn.masks import KeyMask, Mask
from maskattn.models.attention import Given
from maskattn.models.block import Block, Stack
from maskattn.models.heads import First, Vocabulary
from maskattn.models.part import B, Part, Run
from maskattn.models.tokens import Tokens
from maskattn.typing import Traced


class Configuration(dict[str, Any]):
    """A configuration as its file has it; hashable, since compilers ask whether a model is still the same."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=str))


@dataclass
class Output(Generic[B]):
    """What a model gives.

    Attributes:
        hidden: [B, L, E], the last hidden states, behind the last norm.
        logits: of the model's head; None where the checkpoint has none.
        pooled: [B, E], one vector for each sequence; None where the model makes none.
        hidden_states: where asked for, what each block read, and `hidden`.
        cache: where one was given, the new one: an entry for each layer.
    """

    hidden: B
    logits: B | None = None
    pooled: B | None = None
    hidden_states: tuple[B, ...] | None = None
    cache: tuple[Traced, ...] | None = None


@dataclass
class Inputs(Generic[B]):
    """What a call of a model is given: see `Model` of the twins, whose arguments have these names."""

    tokens: B | None = None
    attention_mask: Traced = None
    token_types: Traced = None
    positions: Traced = None
    global_tokens: Traced = None
    decoder_tokens: Traced = None
    decoder_attention_mask: Traced = None
    memory: Traced = None
    images: Traced = None
    features: Traced = None
    noise: Traced = None
    cache: tuple[Traced, ...] | None = None
    valid: Traced = None
    logits_at: Traced = None
    hidden_states: bool = False


@dataclass(frozen=True)
class TokenModel(Part):
    """Tokens, blocks, and heads.

    Attributes:
        model_type: as configurations call it.
    """

    model_type: str
    tokens: Tokens
    stack: Stack
    head: Vocabulary | None = None
    pooler: First | None = None

    def stacks(self) -> tuple[Stack, ...]:
        """Its stacks of blocks."""
        return (self.stack,)

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """(path, block) of all blocks, each path once."""
        yield from dict(zip(self.stack.places, self.stack.blocks, strict=True)).items()

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        """One call."""
        tokens = inputs.tokens
        assert tokens is not None
        use = run.use
        keep: Traced = None
        if inputs.attention_mask is not None:
            kept: Traced = use.as_array(inputs.attention_mask, tokens)
            keep = kept != 0
        positions = inputs.positions
        if positions is None and inputs.cache is not None and self.tokens.positions is not None:
            ids: Traced = tokens
            positions = use.first_of(inputs.cache).next_positions(ids.shape[1], valid=inputs.valid)
        h = self.tokens.apply(at, tokens, run, keep, positions, inputs.token_types)
        masks = self._masks(keep)
        states: list[B] | None = [] if inputs.hidden_states else None
        given = Given(masks, inputs.positions, inputs.valid, inputs.global_tokens, states=states)
        h, cache = self.stack.apply(at, h, run, given, inputs.cache)
        read: Traced = h
        if inputs.logits_at is not None:
            rows = use.arange(read.shape[0], h)
            read = read[rows, use.as_array(inputs.logits_at, tokens)][:, None]
        logits = None if self.head is None else self.head.apply(at, read, run)
        pooled = None if self.pooler is None else self.pooler.apply(at, h, run)
        return Output(h, logits, pooled, None if states is None else tuple(states), cache)

    def _masks(self, keep: Traced) -> dict[Mask, Mask | None]:
        """The masks of the blocks with the padding of a batch."""
        made = {block.attention.mask for block in self.stack.blocks}
        return {mask: mask if keep is None else mask & KeyMask(keep) for mask in made}
