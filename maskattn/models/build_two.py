"""A row and a configuration make a model with an encoder and a decoder.

The keys are those of `models.build`, read for each of the two stacks, and

cross            query, key, value and out of the decoder's attention to what the encoder gives
shift            what the decoder reads by itself (`models.encoder_decoder`)
pad, start       ids of padding, and of what begins a decoder's tokens, where the configuration does not say
spare            a table that is saved, but not read
frames           of an encoder of sound: the two convolutions and the table of positions, from the prefix
transient        of LongT5's encoder: {"norm", "table"}, from the block and from the prefix
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from maskattn.config import AttentionConfig
from maskattn.layer import T5Table
from maskattn.masks import SlidingWindow
from maskattn.models.attention import Attention
from maskattn.models.block import Stack
from maskattn.models.build import Builder
from maskattn.models.check import check
from maskattn.models.encoder_decoder import EncoderDecoder
from maskattn.models.leaves import Array, Conv, Embedding
from maskattn.models.model import WholeModel
from maskattn.models.sinusoids import spread
from maskattn.models.sound import Frames
from maskattn.models.transient import GLOBAL_TABLE, TransientGlobal


@dataclass(frozen=True)
class TwoStacks(Builder):
    """Both stacks of a configuration by its row."""

    def attention(self, part: str | None = None) -> AttentionConfig:
        """As of `Builder`; that of transient global attention is the decoder's, in both directions."""
        if (part or self.part) != "encoder" or self.get("transient") is None:
            return super().attention(part)
        made = AttentionConfig.from_hf(self.reading.config, 0, "decoder")
        assert isinstance(made.position_bias, T5Table)
        return made.replace(position_bias=replace(made.position_bias, bidirectional=True))

    def layer(self, names: tuple[str, ...], part: str | None = None) -> Attention:
        """As of `Builder`, or `TransientGlobal`."""
        given = None if part == "cross" else self.get("transient")
        if given is None:
            return super().layer(names, part)
        config = self.attention()
        inputs, out = self.projections(config, names)
        radius = int(self.reading.get("local_radius", default=127))
        return TransientGlobal(
            config,
            inputs,
            out,
            shared=tuple(self.get("shared")),
            mask=SlidingWindow(radius, radius),
            norm=self.norm(given["norm"]),
            size=int(self.reading.get("global_block_size", default=16)),
        )

    def stack(self, layers: range | None = None) -> Stack:
        """As of `Builder`, with the table of distances in blocks."""
        made, given = super().stack(layers), self.get("transient")
        if given is None:
            return made
        config = made.blocks[0].attention.config
        assert isinstance(config.position_bias, T5Table)
        table = Array(self.prefix + given["table"], (config.position_bias.rows, config.num_heads))
        return replace(made, shared=(*made.shared, (GLOBAL_TABLE, table)))

    def frames(self) -> Frames:
        """What comes before an encoder of sound."""
        first, second, positions = (self.prefix + name for name in self.get("frames"))
        width, channels = self.width, int(self.reading.get("num_mel_bins"))
        table = Array(positions, (int(self.get("position_rows")), width), spread, trained=False)
        convs = Conv(first, channels, width, (3,), (1,), 1), Conv(second, width, width, (3,), (2,), 1)
        return Frames(*convs, table, float(self.get("dropout", 0.0)))

    def model(self) -> WholeModel:
        """The whole; where the names are those of an encoder alone, that."""
        encoder, decoder = replace(self, part="encoder"), replace(self, part="decoder")
        sound = encoder.get("frames") is not None
        tokens = decoder.tokens()
        stack = decoder.stack()
        known = self.names
        if known is not None and not sound and not any(f"{path}.weight" in known for path, _ in stack.leaves()):
            check({"refused": {"is_decoder": "there is an encoder alone"}}, self.reading)
            return Builder.model(replace(encoder, row={**self.row, "head": None}))
        task = decoder.task(tokens.table)
        return EncoderDecoder(
            self.reading.model_type,
            encoder.frames() if sound else encoder.tokens(),
            encoder.stack(),
            tokens,
            stack,
            decoder.head(tokens.table),
            str(self.get("shift") or ("" if task is None else "start")),
            self.reading.get("decoder_start_token_id", default=self.get("start")),
            self.reading.get("pad_token_id", default=self.get("pad")),
            decoder.unused(),
            task,
        )

    def unused(self) -> tuple[Embedding, ...]:
        """A table that both stacks would share, were anything tied."""
        if self.get("spare") is None or self.names is None:
            return ()
        leaf = Embedding(self.prefix + self.get("spare"), int(self.reading.get("vocab_size")), self.width)
        return (leaf,) if self.there(leaf) else ()
