"""Models of tokens: what a twin's module is one of, and what a call of it gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic

from maskattn.masks import Global, KeyMask, Mask
from maskattn.models.attention import Given
from maskattn.models.block import Block, Stack
from maskattn.models.check import check_inputs
from maskattn.models.heads import Chosen, First, Vocabulary
from maskattn.models.leaves import Leaf, Linear
from maskattn.models.part import B, Part, Run, tokens_at
from maskattn.models.tasks import Labels, Sentence
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
        hidden_states: where asked for, what each block read, and `hidden`; of models of images, as transformers has it,
            the last is what the last norm read, and with stages they are those of stages.
        cache: where one was given, the new one: an entry for each layer.
        encoder_hidden: [B, S, E], what the encoder gave, where the model has an encoder and a decoder and the call ran
            both; the rest is then the decoder's. encoder_hidden_states: as `hidden_states`, of the encoder.
        text_embeds, image_embeds: [B, P], of CLIP and SigLIP, what texts and images are compared by; where both were
            given, of length 1, and the logits are those of each image for each text, [images, texts].
        texts, images: of models with two towers, what each gave; `hidden` is that of the images, if there are any.
        masked: bool [B, patches], of masked autoencoders, True = not seen.
    """

    hidden: B
    logits: B | None = None
    pooled: B | None = None
    hidden_states: tuple[B, ...] | None = None
    cache: tuple[Traced, ...] | None = None
    encoder_hidden: B | None = None
    encoder_hidden_states: tuple[B, ...] | None = None
    text_embeds: B | None = None
    image_embeds: B | None = None
    texts: Output[B] | None = None
    images: Output[B] | None = None
    masked: B | None = None


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

    def __post_init__(self) -> None:
        check_inputs(vars(self))


@dataclass(frozen=True)
class WholeModel(Part):
    """A whole model.

    Attributes:
        model_type: as configurations call it.
        untrained: what is done in training, and here not, with the option that asks for it; "" where there is nothing.
        unread: what a checkpoint holds and none of the outputs is made of.
    """

    model_type: str
    untrained: str = field(default="", kw_only=True)

    @cached_property
    def drops(self) -> bool:
        """Whether anything is dropped in training."""
        return any(rate for part in self.parts() for rate in part.rates())

    def key_of(self, key: Traced, deterministic: bool | None) -> Traced:
        """What a call draws random numbers from; None where it draws none.

        Args:
            key: of dropout; None where none is given.
            deterministic: True draws nothing; False needs a key, where anything is dropped; None: where there is one.

        Raises:
            ValueError: there is no key; or training does something that there is no part for.
        """
        if deterministic or (key is None and (deterministic is None or not self.drops)):
            return None
        if key is None:
            raise ValueError(
                f"Model: dropout_key must be given, since {self.model_type!r} is trained with dropout; "
                "deterministic=True, or eval() in PyTorch, turns it off"
            )
        if self.untrained:
            raise ValueError(
                f"Model: a dropout_key is refused: in training {self.model_type!r} with {self.untrained}, and there is "
                "no part for it: turn it off in the configuration, or give deterministic=True"
            )
        return key

    def stacks(self) -> tuple[Stack, ...]:
        """Its stacks of blocks, the one that writes, and has caches, last."""
        raise NotImplementedError

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """(path, block) of all blocks, each path once."""
        for stack in self.stacks():
            yield from stack.each()

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        """One call."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenModel(WholeModel):
    """Tokens, blocks, and heads.

    Attributes:
        embeds: of CLIP's, from the pooled vector to the one that is compared with images.
        task: what makes the logits of labels, in place of the head.
    """

    tokens: Tokens
    stack: Stack
    head: Vocabulary | None = None
    pooler: First | Chosen | Sentence | None = None
    embeds: Linear | None = None
    unread: tuple[Leaf, ...] = ()
    task: Labels | None = None

    def stacks(self) -> tuple[Stack, ...]:
        return (self.stack,)

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        tokens = inputs.tokens
        if tokens is None:
            raise ValueError(f"Model: tokens must be given, {self.model_type} reads them")
        use = run.use
        keep = kept(inputs.attention_mask, tokens, run)
        positions = inputs.positions
        if positions is None and inputs.cache is not None and self.tokens.positions is not None:
            ids: Traced = tokens
            positions = use.first_of(inputs.cache).next_positions(ids.shape[1], valid=inputs.valid)
        h = self.tokens.apply(at, tokens, run, keep, positions, inputs.token_types)
        marked = kept(inputs.global_tokens, tokens, run)
        if marked is None and self.task is not None:
            marked = self.task.marked(tokens, run)
        masks = masks_of(self.stack, keep, marked, h.shape[1])
        states: list[B] | None = [] if inputs.hidden_states else None
        given = Given(masks, inputs.positions, inputs.valid, marked, states=states, keep=keep)
        h, cache = self.stack.apply(at, h, run, given, inputs.cache)
        if isinstance(self.pooler, Sentence):
            pooled: B | None = self.pooler.apply(h, keep, run)
        else:
            pooled = None if self.pooler is None else self.pooler.apply(at, h, run, tokens)
        logits = logits_of(self.head, at, h, inputs, run)
        if self.task is not None:
            logits = self.task.apply(at, h, tokens, keep, pooled, run)
        embeds = None if self.embeds is None or pooled is None else run.linear(self.embeds, at, pooled)
        return Output(h, logits, pooled, None if states is None else tuple(states), cache, text_embeds=embeds)


def logits_of(head: Vocabulary | None, at: object, h: B, inputs: Inputs[B], run: Run[B]) -> B | None:
    """The logits of h [B, L, E], of the places that are asked for."""
    if head is None:
        return None
    read: Traced = h
    if inputs.logits_at is not None:
        last: Traced = tokens_at(h, run.use.as_array(inputs.logits_at, h), run)
        read = last[:, None]
    return head.apply(at, read, run)


def kept(given: Traced, like: B, run: Run[B]) -> Traced:
    """bool [B, L] of a mask as given, 1 = keep; None of None."""
    if given is None:
        return None
    numbers: Traced = run.use.as_array(given, like)
    return numbers != 0


def masks_of(
    stack: Stack, keep: Traced, global_tokens: Traced = None, length: int | None = None
) -> dict[Mask, Mask | None]:
    """The masks of the blocks with what a batch brings: global tokens, its padding, and how many tokens there are.

    Raises:
        ValueError: there are global tokens, which no block reads.
    """
    if global_tokens is not None and not any(block.attention.config.global_tokens for block in stack.blocks):
        raise ValueError("global_tokens are given, but the model has no global attention")
    made: dict[Mask, Mask | None] = {}
    for mask, sparse in {(block.attention.mask, block.attention.sparse) for block in stack.blocks}:
        whole = mask if sparse is None or length is None else sparse.mask(length)
        whole = whole if global_tokens is None else whole | Global(global_tokens)
        made[mask] = whole if keep is None else whole & KeyMask(keep)
    return made
