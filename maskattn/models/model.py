"""Models of tokens: what a twin's module is one of, and what a call of it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from maskattn.masks import Global, KeyMask, Mask
from maskattn.models.attention import Given
from maskattn.models.block import Block, Stack
from maskattn.models.heads import First, Vocabulary
from maskattn.models.part import B, Part, Run
from maskattn.models.tokens import Tokens
from maskattn.typing import Traced


@dataclass
class Output(Generic[B]):
    """What a model gives.

    Attributes:
        hidden: [B, L, E], the last hidden states, behind the last norm.
        logits: of the model's head; None where the checkpoint has none.
        pooled: [B, E], one vector for each sequence; None where the model makes none.
        hidden_states: where asked for, what each block read, and `hidden`.
        cache: where one was given, the new one: an entry for each layer.
        encoder_hidden: [B, S, E], what the encoder gave, where the model has an encoder and a decoder and the call ran
            both; the rest is then the decoder's. encoder_hidden_states: as `hidden_states`, of the encoder.
    """

    hidden: B
    logits: B | None = None
    pooled: B | None = None
    hidden_states: tuple[B, ...] | None = None
    cache: tuple[Traced, ...] | None = None
    encoder_hidden: B | None = None
    encoder_hidden_states: tuple[B, ...] | None = None


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
    hidden_states: bool = False


@dataclass(frozen=True)
class WholeModel(Part):
    """What a twin's module is made of.

    Attributes:
        model_type: as configurations call it.
    """

    model_type: str

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """(path, block) of all blocks, each path once."""
        raise NotImplementedError

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        """One call."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenModel(WholeModel):
    """Tokens, blocks, and heads."""

    tokens: Tokens
    stack: Stack
    head: Vocabulary | None = None
    pooler: First | None = None

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """(path, block) of all blocks, each path once."""
        yield from self.stack.each()

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        """One call."""
        tokens = inputs.tokens
        assert tokens is not None
        keep = kept(inputs.attention_mask, tokens, run)
        h = self.tokens.apply(at, tokens, run, keep, inputs.positions, inputs.token_types)
        masks = masks_of(self.stack, keep)
        states: list[B] | None = [] if inputs.hidden_states else None
        given = Given(masks, inputs.positions, inputs.valid, inputs.global_tokens, states=states, keep=keep)
        h, cache = self.stack.apply(at, h, run, given, inputs.cache)
        logits = None if self.head is None else self.head.apply(at, h, run)
        pooled = None if self.pooler is None else self.pooler.apply(at, h, run)
        return Output(h, logits, pooled, None if states is None else tuple(states), cache)


def kept(given: Traced, like: B, run: Run[B]) -> Traced:
    """bool [B, L] of a mask as given, 1 = keep; None of None."""
    if given is None:
        return None
    numbers: Traced = run.use.as_array(given, like)
    return numbers != 0


def masks_of(stack: Stack, keep: Traced, global_tokens: Traced = None) -> dict[Mask, Mask | None]:
    """The masks of the blocks with what a batch brings: global tokens, and its padding.

    Raises:
        ValueError: there are global tokens, which no block reads.
    """
    if global_tokens is not None and not any(block.attention.config.global_tokens for block in stack.blocks):
        raise ValueError("global_tokens are given, but the model has no global attention")
    made: dict[Mask, Mask | None] = {}
    for mask in {block.attention.mask for block in stack.blocks}:
        whole = mask if global_tokens is None else mask | Global(global_tokens)
        made[mask] = whole if keep is None else whole & KeyMask(keep)
    return made
