"""A row and a configuration make a model of sound.

The keys are those of `models.build` for the blocks and the head, and

front_norms      "group", over the frames of each channel behind the first convolution, or "layer", behind each
front_activation of convolutions. project_norm: before the layer that gives the blocks' width
after            the norm behind positions
"""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.models.build import Builder
from maskattn.models.heads import Vocabulary
from maskattn.models.leaves import Array, Conv, Linear, Norm
from maskattn.models.model import WholeModel
from maskattn.models.sound import ConvLayer, ConvPositions, SoundModel, Wave


@dataclass(frozen=True)
class Sound(Builder):
    """A model of sound by its row."""

    def model(self) -> WholeModel:
        """The whole."""
        head = Vocabulary(Linear("lm_head", self.width, int(self.reading.get("vocab_size", default=32)), True))
        there = all(self.there(leaf) for _, leaf in head.leaves())
        rate = float(self.reading.get("final_dropout", default=0.1))
        return SoundModel(self.reading.model_type, self.front(), self.stack(), head if there else None, rate)

    def front(self) -> Wave:
        """What comes before the blocks."""
        prefix, width = self.prefix, self.width
        convs = self.convs()
        norm, after = self.get("project_norm"), self.get("after")
        last = convs[-1].conv.outputs
        masked = Array(prefix + "masked_spec_embed", (width,))
        return Wave(
            convs,
            self.norm(None if norm is None else prefix + norm, last),
            Linear(prefix + str(self.get("table")), last, width),
            self.places(),
            self.norm(None if after is None else prefix + after),
            (masked,) if self._is_masked() and self.there(masked) else (),
            float(self.get("dropout", 0.0)),
            float(self.reading.get("feat_proj_dropout", default=0.0)),
        )

    def convs(self) -> tuple[ConvLayer, ...]:
        """The convolutions of samples."""
        kind = self.get("front_norms")
        if kind not in ("group", "layer"):
            raise ValueError(f"{self.reading.where}: feat_extract_norm must be group or layer, got {kind!r}")
        widths = self.reading.get("conv_dim", default=(512,) * 7)
        sizes = self.reading.get("conv_kernel", default=(10, 3, 3, 3, 3, 2, 2))
        strides = self.reading.get("conv_stride", default=(5, 2, 2, 2, 2, 2, 2))
        bias, activation = (
            bool(self.reading.get("conv_bias", default=False)),
            self.activation("front_activation", "gelu"),
        )
        made = []
        for number, (inputs, outputs, size, stride) in enumerate(
            zip((1, *widths), widths, sizes, strides, strict=False)
        ):
            at = f"{self.prefix}feature_extractor.conv_layers.{number}."
            norm = Norm(f"{at}layer_norm", outputs, "layer" if kind == "layer" else "frames")
            conv = Conv(f"{at}conv", inputs, outputs, (size,), (stride,), bias=bias)
            made.append(ConvLayer(conv, norm if kind == "layer" or not number else None, activation))
        return tuple(made)

    def places(self) -> ConvPositions:
        """The wide convolution."""
        name, width = f"{self.prefix}encoder.pos_conv_embed.conv", self.width
        size = int(self.reading.get("num_conv_pos_embeddings", default=128))
        groups = int(self.reading.get("num_conv_pos_embedding_groups", default=16))
        return ConvPositions(
            Conv(name, width, width, (size,), padding=size // 2, groups=groups),
            Array(f"{name}.parametrizations.weight.original0", (1, 1, size), 1.0),
            Array(f"{name}.parametrizations.weight.original1", (width, width // groups, size)),
            Array(f"{name}.bias", (width,), 0.0),
            self.activation("front_activation", "gelu"),
        )

    def _is_masked(self) -> bool:
        """Whether there is a vector for masked frames."""
        rates = ("mask_time_prob", 0.05), ("mask_feature_prob", 0.0)
        return any(self.reading.get(name, default=rate) > 0 for name, rate in rates)
