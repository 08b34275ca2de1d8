"""A row and a configuration make a model of images, or of images beside texts.

Keys of rows beside those of `models.build`:

kind             which builder: "images", "windows" (stages of windows), "autoencoder", "towers" (texts and images)
patches          the layer of patches, with a bias but where `patch_bias` says no; `padded` where images are padded to
                 whole patches
before           tokens before the patches, with `token_axes` axes; `registers` behind the first of them,
                 `register_rows` of them; `mask_token` with `mask_axes`, where the checkpoint has it, or `masked` says
positions        of the tokens before and the patches; `position_table` where it is an embedding, `smooth`, `frozen`
patch_norm       of patches, with its `patch_eps`; `front_norm` of all, behind positions
fixed            whether images must have the size of training; `axial`: DINOv3's rotary positions
pooled           "first" (with `pooler`, a layer, or `pooler_norm`), "mean" (with `pooler_norm`) or "probe"
classes          layers of logits, of which those count that are there; `classes_read`: `models.heads.Classes`; `codes`,
                 behind `codes_norm`: a layer of logits of each patch
embeds           the projection of the pooled vector, to `embeds_width`
shift, grows     of windows (`models.windows.Windowed`); `merge`, `merge_early`; `stages_final` the last norm
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from maskattn._hf_config import Reading, Value
from maskattn.config import AttentionConfig
from maskattn.models.attention import Attention, Packed
from maskattn.models.autoencoder import Autoencoder, Decoder
from maskattn.models.block import Stack
from maskattn.models.build import Builder
from maskattn.models.heads import Classes, First, Mean
from maskattn.models.images import Grid, ImageModel, Patches, Places, Probe
from maskattn.models.leaves import Array, Conv, Embedding, Linear, Norm
from maskattn.models.mlp import Plain
from maskattn.models.model import TokenModel, WholeModel
from maskattn.models.towers import Towers
from maskattn.models.windows import Merge, Stages, Windowed


def pair(value: Value) -> Grid:
    """Height and width, of which one number may stand for both."""
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else (int(value), int(value))


def changed(reading: Reading, **fields: Value) -> Reading:
    """The reading of a configuration with other fields, as a dict."""
    config = reading.config
    made = config if isinstance(config, Mapping) else getattr(config, "to_dict", lambda: vars(config))()
    return dataclasses.replace(reading, config={**made, **fields}, layer=0)


class ImageBuilder(Builder):
    """A model of images."""

    def named(self, key: str) -> str | None:
        """The path, from the model, that the row has under a key."""
        name = self.get(key)
        return None if name is None else self.prefix + name

    def token(self, name: str, axes: int, rows: int = 1) -> Array:
        """Learned tokens, [1, rows, E] or with fewer axes."""
        return Array(self.prefix + name, (1, rows, self.width)[3 - axes :])

    @property
    def sizes(self) -> tuple[Grid, Grid, Grid]:
        """Of images, of patches, and of the grid."""
        image = pair(self.reading.get("image_size", default=224))
        patch = pair(self.reading.get("patch_size", default=16))
        return image, patch, (image[0] // patch[0], image[1] // patch[1])

    def norm_of(self, key: str, width: int | None = None) -> Norm | None:
        """The norm that the row has under a key, or none where it is not among the names."""
        made = self.norm(self.named(key), width)
        return made if made is None or self.there(made) else None

    def patches(self) -> Patches:
        """What an image becomes before the first block."""
        image, patch, grid = self.sizes
        bias, channels = bool(self.get("patch_bias", True)), int(self.reading.get("num_channels", default=3))
        project = Conv(str(self.named("patches")), channels, self.width, patch, patch, bias=bias)
        before = tuple(self.token(name, self.get("token_axes", 3)) for name in self.get("before", ()))
        registers, mask = self.get("registers"), self.get("mask_token")
        count = int(self.get("register_rows", 0))
        norm = self.norm(self.named("patch_norm"))
        if mask is not None:
            mask = self.token(mask, self.get("mask_axes", 3))
            there = self.get("masked", False) if self.names is None else self.there(mask)
            mask = mask if there else None
        return Patches(
            project,
            image,
            before,
            None if registers is None or not count else self.token(registers, 3, count),
            self.places(grid, len(before)),
            mask,
            None if norm is None else dataclasses.replace(norm, eps=float(self.get("patch_eps", 1e-5))),
            self.norm(self.named("front_norm")),
            bool(self.get("padded", False)),
            bool(self.get("fixed", False)),
            float(self.get("table_dropout", self.get("dropout", 0.0))),
        )

    def places(self, grid: Grid, before: int) -> Places | None:
        """Learned positions of the patches, and of the tokens before them."""
        name, rows = self.named("positions"), before + grid[0] * grid[1]
        if name is None:
            return None
        table: Array | Embedding = Array(name, (1, rows, self.width), trained=not self.get("frozen", False))
        if self.get("position_table", False):
            table = Embedding(name, rows, self.width, (None, "embed"))
        return Places(table, grid, before, bool(self.get("smooth", False)))

    def body(self) -> Stack | Stages:
        """The blocks."""
        return self.stack()

    def pool(self, skip: int) -> First | Mean | Probe | None:
        """One vector for each image."""
        rule, norm = self.get("pooled"), self.get("pooler_norm")
        if rule == "probe":
            return self.probe()
        if rule == "mean":
            made = Mean(skip, self.norm_of("pooler_norm"))
            return made if norm is None or made.norm is not None else None
        name = self.named("pooler")
        if name is None:
            return First(norm=self.norm_of("pooler_norm")) if rule == "first" else None
        width = int(self.reading.get("pooler_output_size", default=None) or self.width)
        dense = Linear(name, self.width, width)
        return First(dense, self.activation("pooler_activation", "tanh")) if self.there(dense) else None

    def probe(self) -> Probe | None:
        """SigLIP's head of attention."""
        name, width, config = self.named("pooler"), self.width, self.attention()
        inner = int(self.get("mlp_width"))
        packed = Packed(
            Array(f"{name}.attention.in_proj_weight", (3 * width, width)),
            Array(f"{name}.attention.in_proj_bias", (3 * width,), 0.0),
        )
        out = Linear(f"{name}.attention.out_proj", width, width, axes=("heads", "embed"))
        norm = self.norm(f"{name}.layernorm")
        assert norm is not None
        mlp = Plain(
            Linear(f"{name}.mlp.fc1", width, inner, axes=("embed", "mlp")),
            Linear(f"{name}.mlp.fc2", inner, width, axes=("mlp", "embed")),
            self.activation("activation", "gelu"),
        )
        attention = Attention(AttentionConfig(width, config.num_heads), packed, out)
        made = Probe(Array(f"{name}.probe", (1, 1, width)), attention, norm, mlp)
        return made if self.there(made.probe) else None

    def classes(self, width: int, skip: int) -> Classes | None:
        """Logits of classes."""
        read, codes = self.get("classes_read", "first"), self.get("codes")
        if codes is not None and self.names is not None:
            layer = Linear(codes, width, int(self.reading.get("vocab_size")))
            if self.there(layer):
                return Classes((layer,), "patches", skip, self.norm(self.get("codes_norm"), width))
        rows = self.labels()
        for names in self.get("classes", ()):
            layers = tuple(Linear(name, 2 * width if read == "both" else width, rows) for name in names)
            if all(map(self.there, layers)):
                return Classes(layers, read, skip)
        return None

    def model(self) -> WholeModel:
        """The whole."""
        patches, body = self.patches(), self.body()
        width = self.width if isinstance(body, Stack) else body.final.width
        head = self.classes(width, patches.skip)
        axial = bool(self.get("axial", False))
        return ImageModel(
            self.reading.model_type, patches, body, self.pool(patches.skip), head, self.projection(), axial
        )


class WindowBuilder(ImageBuilder):
    """Stages of windows."""

    def layer(self, names: tuple[str, ...], part: str | None = None) -> Attention:
        """One attention of a block."""
        made = super().layer(names, part)
        fields = {each.name: getattr(made, each.name) for each in dataclasses.fields(made)}
        return Windowed(**fields, shift=int(self.get("shift")), grows=bool(self.get("grows", False)))

    def body(self) -> Stages:
        """The blocks, by stages."""
        depths = [int(depth) for depth in self.reading.get("depths")]
        ends = [sum(depths[: stage + 1]) for stage in range(len(depths))]
        stages = tuple(self.stack(range(end - depth, end)) for end, depth in zip(ends, depths, strict=True))
        last = self.at(ends[-1] - 1)
        final = last.norm(self.named("stages_final"))
        assert final is not None
        merges = tuple(self.merge(stage, self.at(end - 1).width) for stage, end in enumerate(ends[:-1]))
        return Stages(stages, merges, final)

    def merge(self, stage: int, width: int) -> Merge:
        """What stands behind a stage of this width."""
        name, early = str(self.named("merge")).format(stage), bool(self.get("merge_early", True))
        reduction = Linear(f"{name}.reduction", 4 * width, 2 * width, bias=False)
        return Merge(reduction, Norm(f"{name}.norm", (4 if early else 2) * width), early)


class AutoencoderBuilder(ImageBuilder):
    """A masked autoencoder."""

    def model(self) -> WholeModel:
        """The whole."""
        hidden = float(self.reading.get("mask_ratio", default=0.75))
        if not 0 <= hidden <= 1:
            raise ValueError(f"{self.reading.where}: mask_ratio must be a share from 0 to 1, got {hidden}")
        return Autoencoder(self.reading.model_type, self.patches(), self.stack(), hidden, self.decoder())

    def decoder(self) -> Decoder | None:
        """What makes up the patches that were not seen."""
        said = {name: self.reading.get(f"decoder_{name}") for name in _DECODER}
        row = {**self.row, **dict(self.get("decoder")), "bare": False}
        own = dataclasses.replace(self, row=row, reading=changed(self.reading, **said))
        (high, wide), grid = self.sizes[1:]
        width, patches, pixels = own.width, grid[0] * grid[1], high * wide * self.patches().project.inputs
        table = Array("decoder.decoder_pos_embed", (1, 1 + patches, width), trained=False)
        predict = Linear("decoder.decoder_pred", width, pixels)
        if not self.there(predict):
            return None
        return Decoder(
            Linear("decoder.decoder_embed", self.width, width),
            Array("decoder.mask_token", (1, 1, width)),
            Places(table, (1, patches), 1),
            own.stack(),
            predict,
        )


_DECODER = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class TowersBuilder(Builder):
    """A tower for texts and one for images; or that for images with a head of classes."""

    def model(self) -> WholeModel:
        """The whole."""
        vision, scale = self.tower("vision").model(), self.get("scale")
        if self.names is not None and scale["name"] not in self.names:
            return vision
        text = self.tower("text").model()
        assert isinstance(text, TokenModel)
        assert isinstance(vision, ImageModel)
        shape: tuple[int, ...] = tuple(scale["shape"])
        bias = Array(scale["bias"], shape) if "bias" in scale else None
        return Towers(self.reading.model_type, text, vision, Array(scale["name"], shape), bias)

    def tower(self, which: str) -> Builder:
        """The builder of one of the two. Files leave out what the class of the configuration says by itself."""
        said: Value = self.row[which]
        row, builder, defaults = said
        inner = dataclasses.replace(self.reading, config=self.reading.get(f"{which}_config", default={}))
        fields: Value = changed(inner).config
        given = {name: value for name, value in fields.items() if value is not None}
        named = {"id2label": self.reading.table("id2label"), "num_labels": self.reading.get("num_labels", default=None)}
        width = self.reading.get("projection_dim", default=None)
        own = changed(inner, **{**defaults, **given, **named, "projection_dim": width})
        made: Builder = builder(row, own, names=self.names)
        return made
