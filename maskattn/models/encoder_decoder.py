"""Models with an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from maskattn.cache import CacheBase
from maskattn.masks import KeyMask
from maskattn.models.attention import Given
from maskattn.models.block import Stack
from maskattn.models.heads import Vocabulary
from maskattn.models.leaves import Embedding, Leaf
from maskattn.models.model import Inputs, Output, WholeModel, kept, logits_of, masks_of
from maskattn.models.part import B, Run
from maskattn.models.sound import Frames
from maskattn.models.tasks import Labels
from maskattn.models.tokens import Tokens
from maskattn.typing import Traced


@dataclass(frozen=True)
class EncoderDecoder(WholeModel):
    """An encoder of tokens or of sound, and a decoder that attends to what it gives.

    Attributes:
        front: what comes before the encoder's blocks. tokens: before the decoder's.
        shift: what the decoder reads where nothing is given: "start" is the encoder's tokens behind `start`, "last"
            the same behind the last of them that is not `pad`; "" needs them.
        unused: what is saved, and not read.
        task: what makes the logits of labels, in place of the head.
    """

    front: Tokens | Frames
    encoder: Stack
    tokens: Tokens
    decoder: Stack
    head: Vocabulary | None = None
    shift: str = ""
    start: int | None = None
    pad: int | None = None
    unused: tuple[Embedding, ...] = ()
    task: Labels | None = None

    @property
    def hears(self) -> bool:
        """Whether the encoder reads sound."""
        return isinstance(self.front, Frames)

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
        yield from dict(super().leaves(prefix)).items()  # both may read one table

    def stacks(self) -> tuple[Stack, ...]:
        return self.encoder, self.decoder

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        """One call: `hidden`, `hidden_states` and `logits` are the decoder's."""
        tokens: Traced = self._read(inputs, run)
        held = inputs.cache is not None and holds(inputs.cache)
        keep = kept(inputs.attention_mask, tokens, run)
        memory, states = self._encoded(at, inputs, run.within(0), keep, held)
        run = run.within(1)  # each stack has draws of its own
        memory_mask = None if keep is None or self.hears else KeyMask(keep)
        own = kept(inputs.decoder_attention_mask, tokens, run)
        positions = inputs.positions
        if positions is None and inputs.cache is not None:
            positions = run.use.first_of(inputs.cache).next_positions(tokens.shape[1], valid=inputs.valid)
        given: Given[B] = Given(
            masks_of(self.decoder, own),
            valid=inputs.valid,
            memory=memory,
            memory_mask=memory_mask,
            states=[] if inputs.hidden_states else None,
        )
        h = self.tokens.apply(at, tokens, run, own, positions, None)
        h, cache = self.decoder.apply(at, h, run, given, inputs.cache)
        logits = logits_of(self.head, at, h, inputs, run)
        if self.task is not None:
            ids: Traced = inputs.tokens
            if self.task.read == "end" and (ids is None or ids.shape != tokens.shape):
                raise ValueError(f"{self.model_type}: tokens must be given, as many as the decoder's")
            logits = self.task.apply(at, h, ids, own, None, run)
        found = None if given.states is None else tuple(given.states)
        return Output(h, logits, None, found, cache, memory, states)

    def _encoded(
        self, at: object, inputs: Inputs[B], run: Run[B], keep: Traced, held: bool
    ) -> tuple[B | None, tuple[B, ...] | None]:
        """What the encoder gives, or gave, and its hidden states where they are asked for."""
        kind, read = ("features", inputs.features) if self.hears else ("tokens", inputs.tokens)
        if sum((read is not None, inputs.memory is not None, held)) != 1:
            have = [name for name, x in ((kind, read), ("memory", inputs.memory)) if x is not None]
            have += ["a cache that holds its keys and values"] if held else []
            raise ValueError(
                f"{self.model_type}: {kind}, memory, or a cache that holds what was made of them must be given, one of "
                f"the three, got {' and '.join(have) or 'none'}"
            )
        if read is None:
            return inputs.memory, None
        of_all = kept(inputs.global_tokens, read, run)
        if isinstance(self.front, Frames):
            h, masks = self.front.apply(at, read, run), masks_of(self.encoder, None, of_all)
        else:
            h = self.front.apply(at, read, run, keep, None, None)
            masks = masks_of(self.encoder, keep, of_all)
        given: Given[B] = Given(masks, global_tokens=of_all, states=[] if inputs.hidden_states else None, keep=keep)
        h, _ = self.encoder.apply(at, h, run, given)
        return h, None if given.states is None else tuple(given.states)

    def _read(self, inputs: Inputs[B], run: Run[B]) -> B:
        """int [B, T]: the decoder's tokens."""
        if inputs.decoder_tokens is not None:
            known = (x for x in (inputs.tokens, inputs.features, inputs.memory) if x is not None)
            return run.use.as_array(inputs.decoder_tokens, next(known, None))
        if not self.shift or inputs.tokens is None or inputs.cache is not None:
            raise ValueError(f"{self.model_type}: decoder_tokens must be given, got None")
        tokens: Traced = inputs.tokens
        if self.shift == "start":
            first: Traced = tokens[:, :1] * 0 + self.start
        else:
            last = (tokens != self.pad).sum(1) - 1
            first = tokens[run.use.arange(tokens.shape[0], tokens), last][:, None]
        return run.use.concatenate([first, tokens[:, :-1]], 1)


def holds(entry: Traced) -> bool:
    """Whether all entries of a cache hold keys and values of what the encoder gave; those of a loop are a tuple."""
    if isinstance(entry, CacheBase):
        return False
    if len(entry) == 2 and isinstance(entry[0], CacheBase) and not isinstance(entry[1], CacheBase):
        return entry[1] is not None
    return all(map(holds, entry))


def mask_of(given: Mapping[str, Traced]) -> dict[str, Traced]:
    """What a step reads of what the encoder was given, where the cache holds the rest."""
    return {name: x for name, x in given.items() if name == "attention_mask"}
