"""A row and a configuration make a model of tokens.

The keys of a row, each a value or what reads it from the configuration (`maskattn.layer.from_hf`). Names are paths,
from the prefix, or of a block's own from the block:

prefix           of all but the head
table            of tokens; `vocabulary` rows, `table_width` numbers where that is not the blocks' width; times
                 `table_scale`; `types` and `positions` beside it with `types_rows`, `position_rows`, `position_rule`,
                 `position_offset`, `position_width` and `position_pad` (`models.tokens`); `position_table` is
                 "learned", "halves" or "spread" (saved, but not learned) or "computed" (`models.sinusoids`); then
                 `table_norm`, and `table_project`, or with `table_late` the other way round; `dropped`, `blank`
                 (`models.tokens.Tokens`)
layers, count    the path of a block, {} its number, and how many there are
attention        query, key, value and out, or one for all and out; `fused` is then the order of its columns;
                 `attention_bias` of the four where the layer's own does not say it
held, further    what the parts of a layer learn, by canonical names; and their further projections. `shared`: what
                 all blocks share, from the prefix
norms            by slots of a block (`models.block.Slots`); `norm`, `eps`, `norm_scale`, `norm_bias`, `plus_one` say
                 what they are; `final` is the last one, `final_dropout` behind it; `project` gives the table's width;
                 `bare` (`models.block.Stack`)
mlp              up and down; or gate, up and down; or with `halves` gate and up as one; with `mlp_width`, `mlp_bias`,
                 `activation`; `turned` where matrices are [in, out]; `inner_dropout`
sparse           BigBird's pattern, {"size", "random"} (`models.attention.Sparse`)
relative, local, frequencies
                 DeBERTa's table, {"table", "rows", "norm"}, and convolution, {"conv", "norm", "size", "groups",
                 "activation"}; `relative_dropout`; the path of frequencies of a rotary embedding that are held
experts, latent  of layers that have them, in place of mlp and of attention (`models.build_experts`)
parallel, residual, scales, normed_sum, dropout, drop_path, layerdrop
                 of the blocks (`models.block.Block`); a rate of all branches, or two
head             logits of the vocabulary: its path, or {"project", "bias", "dense", "norm", "activation"}; `tied`,
                 `head_bias`, `logit_scale`, `softcap`; `bias_buffer` where the bias is [1, rows], and is not trained
pooler           a layer of the first token; `pooled` "last" or "end": a layer, if any, of the last one or of the one
                 that ends the text. `embeds`: a projection behind it, without a bias, to `embeds_width`
refused          options that are refused where they are set, and why; `untrained` what is done in training alone, and
                 here not: calls that draw anything are then refused (`models.model`)
contacts         a layer of attention's weights, held and not computed

and those of `models.build_tasks`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from maskattn import masks
from maskattn._hf_config import Reading, Value
from maskattn.config import AttentionConfig
from maskattn.layer.from_hf import Row, settled
from maskattn.models.attention import Attention, Fused, Latent, Separate, Sparse
from maskattn.models.block import Block, Inner, Slots, Stack
from maskattn.models.build_disentangled import local_of, relative_of
from maskattn.models.build_experts import experts_of, latent_of
from maskattn.models.build_tasks import LABELLED, labels_of, sentence_of
from maskattn.models.heads import Chosen, First, Vocabulary
from maskattn.models.leaves import Array, Embedding, Leaf, Linear, Norm
from maskattn.models.mlp import Gated, Halves, Plain
from maskattn.models.model import TokenModel, WholeModel
from maskattn.models.part import ACTIVATIONS
from maskattn.models.sinusoids import Sinusoids, halves, spread
from maskattn.models.tasks import Labels, Sentence
from maskattn.models.tokens import Positions, Tokens
from maskattn.modules import head_shapes
from maskattn.modules.parameters import parameters

#: What the columns of queries, keys and values are.
_HEADS = ("heads", "kv_heads", "kv_heads")
#: How tables of positions begin that are saved, but not learned.
_FIXED = {"halves": halves, "spread": spread}
#: Layers: a file that says more was damaged, or is meant to take all memory.
_MOST = 10_000
_COUNT = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Builder:
    """One stack of a configuration by its row.

    Attributes:
        part: "encoder" or "decoder" of models with both, else "".
        names: of the tensors that there are, which decide about heads, poolers and the prefix; None: as the row says.
        tied: whether the head is the table of tokens; None: as the row says.
    """

    row: Row
    reading: Reading
    part: str = ""
    names: Container[str] | None = None
    tied: bool | None = None

    def get(self, name: str, default: Value = None) -> Value:
        """What a key of the row says, for the layer of the reading; the default where it says None."""
        found = self.settle(self.row.get(name))
        return default if found is None else found

    def settle(self, spec: object) -> Value:
        """What a value of a row says."""
        return _settled(spec, self.reading, self.part)

    def at(self, layer: int) -> Self:
        """The same, of a layer."""
        return replace(self, reading=replace(self.reading, layer=layer))

    @property
    def prefix(self) -> str:
        """Of all names but the head's; a model without a head is published without its first part, and some with one
        for a task have another.
        """
        prefix = str(self.get("prefix", ""))
        table = f"{self.get('table') or self.get('patches')}.weight"
        known = (prefix, prefix.partition(".")[2], "", "transformer.")
        return next((one for one in known if self.names is not None and one + table in self.names), prefix)

    def there(self, leaf: Leaf) -> bool:
        """Whether the tensors of a leaf are among the names."""
        names = [f"{leaf.name}.{name}" if name else leaf.name for name in leaf.tensors()]
        return self.names is None or all(name in self.names for name in names)

    @property
    def width(self) -> int:
        """Of the blocks."""
        return self.attention().embed_dim

    def attention(self, part: str | None = None) -> AttentionConfig:
        """The configuration of the layer's attention."""
        return AttentionConfig.from_hf(self.reading.config, self.reading.layer, part or self.part or None)

    # Leaves ----------------------------------------------------------------------------------------------------------

    def norm(self, name: str | None, width: int | None = None) -> Norm | None:
        """A norm as the row says it."""
        if name is None:
            return None
        kind = self.get("norm", "layer")
        return Norm(
            name,
            self.width if width is None else width,
            kind,
            float(self.get("eps", 1e-5)),
            self.get("norm_scale", True),
            self.get("norm_bias", kind == "layer"),
            self.get("plus_one", False),
        )

    def linear(self, name: str, inputs: int, outputs: int, bias: bool, axes: tuple[str | None, str | None]) -> Linear:
        """A layer of a block."""
        return Linear(name, inputs, outputs, bool(bias), self.get("turned", False), axes)

    # Blocks ----------------------------------------------------------------------------------------------------------

    def projections(self, config: AttentionConfig, names: tuple[str, ...]) -> tuple[Separate | Fused | Latent, Linear]:
        """What makes queries, keys and values, and the layer of the output."""
        latent = self.get("latent")
        if latent is not None:
            return latent_of(latent, config)
        widths = [heads * width for heads, width in head_shapes(config)]
        given = self.get("attention_bias", (config.qkv_bias,) * 3 + (config.out_bias,))
        inputs = (config.embed_dim, config.kdim, config.vdim)
        out = self.linear(names[-1], config.num_heads * config.v_head_dim, config.out_dim, given[3], ("heads", "embed"))
        if len(names) == 2:
            both = self.linear(names[0], config.embed_dim, sum(widths), given[0], ("embed", "heads"))
            return Fused(both, self.get("fused", "blocks")), out
        three = [
            self.linear(name, one, width, bias, ("embed", axis))
            for name, one, width, bias, axis in zip(names, inputs, widths, given, _HEADS, strict=False)
        ]
        return Separate(*three), out

    def layer(self, names: tuple[str, ...], part: str | None = None) -> Attention:
        """One attention of a block."""
        config = self.attention(part)
        inputs, out = self.projections(config, names)
        known, held = parameters(config), dict(self.get("held", {}))
        cross = part == "cross"
        shared = () if cross else tuple(self.get("shared", {}))
        own = tuple((name, _published(config, name, held[name])) for name in known if name in held)
        further = []
        for name, path in dict(self.get("further", {})).items():
            if f"{name}.kernel" in known:
                sizes = known[f"{name}.kernel"].shape
                further.append(
                    (name, self.linear(path, sizes[0], sizes[1], f"{name}.bias" in known, ("embed", "heads")))
                )
        mask: masks.Mask = masks.Full()
        if self.get("sparse") is None:
            mask = masks.for_hf(self.reading.config, self.reading.layer, part or self.part or None)
        sparse = self.get("sparse")
        return Attention(
            config,
            inputs,
            out,
            own,
            tuple(further),
            shared,
            mask,
            None if sparse is None else Sparse(int(sparse["size"]), int(sparse["random"])),
            float(self.get("relative_dropout", 0.0)),
        )

    def mlp(self) -> Inner:
        """The MLP of a block, or its experts."""
        experts = self.get("experts")
        if experts is not None:
            return experts_of(experts, self.width, self.activation("activation", "gelu"))
        names, inner, bias = self.get("mlp"), int(self.get("mlp_width", 4 * self.width)), self.get("mlp_bias", True)
        into, out_of = ("embed", "mlp"), ("mlp", "embed")
        down = self.linear(names[-1], inner, self.width, bias, out_of)
        activation = self.activation("activation", "gelu")
        rate = float(self.get("inner_dropout", 0.0))
        if self.get("halves", False):
            return Halves(self.linear(names[0], self.width, 2 * inner, bias, into), down, activation, rate)
        ups = [self.linear(name, self.width, inner, bias, into) for name in names[:-1]]
        return Gated(ups[0], ups[1], down, activation, rate) if len(ups) == 2 else Plain(ups[0], down, activation, rate)

    def activation(self, name: str, default: str) -> str:
        """One of the functions of `ACTIVATIONS`."""
        return self.activation_of(self.get(name, default))

    def activation_of(self, found: str) -> str:
        """One of the functions of `ACTIVATIONS`, by any of its names."""
        if found not in ACTIVATIONS:
            raise ValueError(f"{self.reading.where}: activation must be one of {', '.join(ACTIVATIONS)}, got {found!r}")
        return ACTIVATIONS[found]

    def block(self) -> Block:
        """The block of the reading's layer."""
        norms = {slot: self.norm(name) for slot, name in self.get("norms").items()}
        scales = self.get("scales")
        return Block(
            self.layer(self.get("attention")),
            self.mlp(),
            Slots(**norms),
            None if self.get("cross") is None else self.layer(self.get("cross"), "cross"),
            parallel=bool(self.get("parallel", False)),
            residual=float(self.get("residual", 1.0)),
            scales=() if scales is None else tuple(Array(name, (self.width,), 1.0) for name in scales),
            normed_sum=bool(self.get("normed_sum", False)),
            dropout_rates=self.rates("dropout"),
            depth_rates=self.rates("drop_path"),
            layer_rate=float(self.get("layerdrop", 0.0)),
        )

    def rates(self, name: str) -> tuple[float, float]:
        """Of attention's branches and of the MLP's, of which one number may stand for both."""
        found = self.get(name, 0.0)
        both = found if isinstance(found, tuple) else (found, found)
        return float(both[0]), float(both[1])

    def stack(self, layers: range | None = None) -> Stack:
        """All blocks, or some of them, and the norm behind them."""
        prefix = self.prefix
        layers = range(int(self.get("count") or self.reading.get(*_COUNT))) if layers is None else layers
        if not 0 < len(layers) <= _MOST:
            raise ValueError(f"{self.reading.where}: the number of layers must be in [1, {_MOST}], got {len(layers)}")
        each = [self.at(layer) for layer in layers]
        places = tuple(prefix + str(one.get("layers")).format(one.reading.layer).rstrip(".") for one in each)
        config = self.attention()
        shared = tuple(
            (name, _published(config, name, prefix + path)[0]) for name, path in self.get("shared", {}).items()
        )
        final, project = self.get("final"), self.get("project")
        if project is not None:
            project = Linear(prefix + project, self.width, int(self.get("table_width")), False)
        frequencies = None
        if self.names is not None and config.rotary is not None and self.get("frequencies") is not None:
            pairs = (config.rotary.width or config.head_dim) // 2
            frequencies = Array(prefix + self.get("frequencies"), (pairs,), trained=False)
            frequencies = frequencies if self.there(frequencies) else None
        return Stack(
            tuple(one.block() for one in each),
            places,
            shared,
            self.norm(None if final is None else prefix + final),
            project,
            float(self.get("final_dropout", 0.0)),
            bool(self.get("bare", False)),
            relative_of(self),
            local_of(self),
            frequencies,
        )

    # Ends ------------------------------------------------------------------------------------------------------------

    def tokens(self) -> Tokens:
        """What comes before the blocks."""
        prefix, width = self.prefix, int(self.get("table_width", self.width))
        types = self.get("types")
        norm, project = self.get("table_norm"), self.get("table_project")
        table = Embedding(
            prefix + self.get("table"), int(self.get("vocabulary") or self.reading.get("vocab_size")), width
        )
        if types is not None:
            types = Embedding(prefix + types, int(self.get("types_rows")), width, (None, "embed"))
        if project is not None:
            project = Linear(
                prefix + project, width, self.width, self.get("table_project_bias", True), axes=(None, "embed")
            )
        return Tokens(
            table,
            float(self.get("table_scale", 1.0)),
            types,
            self.positions(width),
            self.norm(None if norm is None else prefix + norm, self.width if self.get("table_late", False) else width),
            project,
            float(self.get("table_dropout", self.get("dropout", 0.0))),
            bool(self.get("table_late", False)),
            self.get("dropped"),
            bool(self.get("blank", False)),
        )

    def positions(self, width: int) -> Positions | None:
        """The table of positions, for a table of tokens of this width."""
        name, kind = self.get("positions"), self.get("position_table", "learned")
        if name is None and kind != "computed":
            return None
        rows, offset, pad = (
            int(self.get("position_rows")),
            int(self.get("position_offset", 0)),
            self.get("position_pad"),
        )
        width = int(self.get("position_width", width))
        if kind == "computed":
            table: Embedding | Array | Sinusoids = Sinusoids(rows, width, offset, pad)
        elif kind == "learned":
            table = Embedding(self.prefix + name, rows, width, (None, "embed"))
        else:
            name = f"{self.prefix}{name}.weight"
            table = Array(name, (rows, width), _FIXED[kind], trained=False, axes=(None, "embed"))
        return Positions(table, self.get("position_rule", "all"), offset, pad)

    def task(self, table: Embedding) -> Labels | None:
        """The logits of a task, where the model was trained for one."""
        return labels_of(self, table.width if self.get("project") is not None else self.width)

    def labels(self) -> int:
        """How many labels, or classes, there are."""
        named = self.reading.table("id2label")
        return int(self.reading.get("num_labels", default=None) or len(named) or 2)

    def head(self, table: Embedding) -> Vocabulary | None:
        """The logits of the vocabulary; None where there are those of a task."""
        given = self.get("head")
        if given is None or self.task(table) is not None:
            return None
        named = {"project": given} if isinstance(given, str) else given
        rows = table.rows
        width, dense, norm, bias = table.width, named.get("dense"), named.get("norm"), named.get("bias")
        biased, inner = bool(self.get("head_bias", False)), f"{named['project']}.bias"
        own = Linear(named["project"], width, rows, biased, axes=("embed", "vocab"))
        said = self.get("tied", False) if self.tied is None else self.tied
        tied, buffer = bool(said) and not self._apart(own, table), self.get("bias_buffer", False)
        if tied:
            bias = inner if bias is None and biased else bias
        elif bias is not None and not buffer and (self.names is None or inner in self.names):
            own, bias = replace(own, bias=True), None  # its own: what is tied to it elsewhere is read by nothing
        learned = None if bias is None else Array(bias, (rows,), 0.0, axes=("vocab",))
        if bias is not None and buffer:
            learned = Array(bias, (1, rows), 0.0, False, (None, "vocab"))
            learned = learned if self.there(learned) else None
        made = Vocabulary(
            None if tied else own,
            table if tied else None,
            learned,
            None if dense is None else Linear(dense, self.width, width, self.get("dense_bias", True)),
            self.activation("head_activation", "linear") if dense is not None else "linear",
            self.norm(norm, width),
            float(self.get("logit_scale", 1.0)),
            self.get("softcap"),
        )
        held = [leaf for _, leaf in made.leaves() if leaf is not table]
        there = all(map(self.there, held)) and (bool(held) or self._has_head())
        return made if there else None

    def _apart(self, own: Leaf, table: Leaf) -> bool:
        """Whether a checkpoint has other numbers in both: then they are not tied, whatever its configuration says."""
        held, names = self.names, [f"{leaf.name}.weight" for leaf in (own, table)]
        if not isinstance(held, Mapping) or not all(name in held for name in names):
            return False
        one, other = (held[name] for name in names)
        return one is not other and not np.array_equal(one, other)

    def _has_head(self) -> bool:
        """Whether a model whose head has no tensors of its own has one: by its class, or by the prefix of its names."""
        named = self.reading.architecture
        if named:
            return named.endswith("LMHeadModel") or not named.endswith(("Model", *LABELLED))
        return self.prefix == self.get("prefix", "")

    def pooler(self) -> First | Chosen | Sentence | None:
        """One vector for each sequence."""
        return sentence_of(self.reading) or self.own_pooler()

    def own_pooler(self) -> First | Chosen | None:
        """The same, by layers of the model itself."""
        name, rule = self.get("pooler"), self.get("pooled")
        if rule is not None:
            width = int(self.reading.get("projection_size", default=self.width))
            dense = None if name is None else Linear(self.prefix + name, self.width, width)
            return Chosen(dense, self.reading.get("eos_token_id") if rule == "end" else None)
        if name is None:
            return None
        made: First | Chosen = First(
            Linear(self.prefix + name, self.width, self.width), self.activation("pooler_activation", "tanh")
        )
        return made if all(self.there(leaf) for _, leaf in made.leaves()) else None

    def projection(self) -> Linear | None:
        """From the pooled vector to the one that texts and images are compared by."""
        name = self.get("embeds")
        if name is None:
            return None
        made = Linear(name, self.width, int(self.get("embeds_width")), bias=False)
        return made if self.there(made) else None

    def model(self) -> WholeModel:
        """The whole."""
        tokens = self.tokens()
        stack, head, pooler = self.stack(), self.head(tokens.table), self.pooler()
        own = self.own_pooler() if isinstance(pooler, Sentence) else None
        unread: tuple[Leaf, ...] = () if own is None else tuple(leaf for _, leaf in own.leaves())
        if self.get("contacts") is not None:
            heads = sum(block.attention.config.num_heads for block in stack.blocks)
            unread += tuple(filter(self.there, [Linear(self.prefix + self.get("contacts"), heads, 1)]))
        task, embeds = self.task(tokens.table), self.projection()
        return TokenModel(self.reading.model_type, tokens, stack, head, pooler, embeds, unread, task)


def _published(config: AttentionConfig, name: str, path: str) -> tuple[Leaf, ...]:
    """A parameter of a layer's parts as it is published: flat where a norm is over all heads, and one for each head
    where the path has a place for its number."""
    parameter = parameters(config)[name]
    shape = parameter.shape
    if "{}" in path:
        return tuple(Array(path.format(head), shape[1:], parameter.begins) for head in range(shape[0]))
    if name.endswith(".kernel"):  # as linear layers are published
        return (Array(path, shape[::-1], parameter.begins),)
    if config.cosine is not None and name == "logit_scale":
        return (Array(path, (*shape, 1, 1), parameter.begins),)
    flat = config.qk_norm is not None and config.qk_norm.over == "all" and "_norm." in name
    return (Array(path, (math.prod(shape),) if flat else shape, parameter.begins),)


def _settled(spec: object, reading: Reading, part: str) -> Value:
    found = settled(spec, reading, part)
    if isinstance(found, Mapping):
        made = {name: _settled(value, reading, part) for name, value in found.items()}
        return {name: value for name, value in made.items() if value is not None}
    if isinstance(found, tuple):
        return tuple(_settled(value, reading, part) for value in found)
    return found
