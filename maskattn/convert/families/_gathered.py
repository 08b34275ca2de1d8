"""What models hold, gathered into the modules of a family: names in files, kinds, and layouts of attention."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.config_json import HEADS, KV_HEADS
from maskattn.convert.families._family import Rule
from maskattn.convert.families._names import canonical
from maskattn.convert.layouts import Layout
from maskattn.convert.layouts._base import Extra, Stored
from maskattn.convert.layouts._extras import EXTRAS, Axes, bind
from maskattn.layer.from_hf import Row
from maskattn.models.attention import Attention, Fused, Latent, Packed
from maskattn.models.block import Stack
from maskattn.models.forms import Form, file_shape, pieces
from maskattn.models.images import Probe
from maskattn.models.leaves import Array, Conv, Embedding, Leaf, Linear, Norm, Tensor
from maskattn.models.model import WholeModel
from maskattn.models.towers import Towers

W = TypeVar("W", bound=WholeModel)
Shape = tuple[int, ...]
_DIGITS = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclasses.dataclass
class _Module:
    """A module of a family, over all models that it is gathered from; of attention what its layout stores."""

    kind: str
    canonical: str
    prefixed: bool
    transposed: bool = False
    sparse: bool = False
    computed: bool = False
    needed: int = 0
    biases: set[bool] = dataclasses.field(default_factory=set)
    stored: dict[str, Stored] = dataclasses.field(default_factory=dict)
    extras: dict[str, Extra] = dataclasses.field(default_factory=dict)
    scale: float | None = None
    turning: bool = False
    layers: list[tuple[AttentionConfig, dict[str, Shape]]] = dataclasses.field(default_factory=list)


class _Places:
    """Where the blocks of a model are."""

    def __init__(self, whole: WholeModel) -> None:
        self.attention: list[tuple[str, Attention]] = []
        self.blocks: dict[str, set[str]] = {}
        self._depths: dict[str, int] = {"": 0}
        for part in whole.parts():
            if isinstance(part, Probe):
                self.attention.append(("", part.attention))
            for place, block in zip(part.places, part.blocks, strict=True) if isinstance(part, Stack) else ():
                self.attention += [(f"{place}.", each) for each in (block.attention, block.cross) if each is not None]
                self.blocks.setdefault(_starred(f"{place}."), set()).add(f"{place}.")
                numbers = list(_DIGITS.finditer(place))
                self._depths |= {f"{place[: at.end()]}.": number + 1 for number, at in enumerate(numbers)}

    def of(self, name: str) -> tuple[str, int]:
        """The layer, or the stage, that a name lies in, and how many numbers say which; "" and 0 where in none."""
        within = max((place for place in self._depths if name.startswith(place)), key=len)
        return within, self._depths[within]

    def sparse(self, within: set[str]) -> bool:
        """Whether these are not all layers that are alike; a stage is none."""
        every = self.blocks.get(_starred(next(iter(within))))
        return within != {""} and within != every


def moved(module: str, form: Form) -> str:
    """What a file calls a module."""
    return pieces(f"{module}.x", form)[0].file.removesuffix(".x")


def _starred(name: str, depth: int | None = None) -> str:
    """A name with the first numbers, or all, as *."""
    return name if depth == 0 else _DIGITS.sub("*", name, count=depth or 0)


class Gathered:
    """The modules of a family, by their patterns in files.

    Attributes:
        layers: patterns of layers -> the key of their number in a configuration.
        shapes: of tensors as Flax has them, by what all families of the model call them. attention: of its layers.
        computed: tensors that a file may leave to be computed.
    """

    def __init__(self, form: Form, base: str) -> None:
        self._form, self._base, self._wholes = form, base, 0
        self._modules: dict[str, _Module] = {}
        self.layers: dict[str, str] = {}
        self.shapes: dict[str, Shape] = {}
        self.attention: dict[str, AttentionConfig] = {}
        self.computed: set[str] = set()

    def add(self, whole: WholeModel, row: Row, *, needed: bool) -> None:
        """What one model holds. ``needed``: it holds nothing that may be missing."""
        body, seen = _headless(whole), dict[str, dict[str, set[str]]]()
        self._places, self._prefix, self._seen = _Places(body), str(row.get("prefix", "")), seen
        tensors = {
            f"{path}.{name}" if name else path: (leaf, tensor)
            for path, leaf in body.leaves()
            for name, tensor in leaf.tensors().items()
        }
        for path, attention in self._places.attention:
            for name in self._attention(path, attention):
                tensors.pop(name, None)
        for name, (leaf, tensor) in tensors.items():
            self._plain(name, leaf, tensor)
        self._wholes += needed
        for pattern, parts in seen.items():
            module = self._modules[pattern]
            module.needed += needed and not module.computed
            module.sparse |= self._places.sparse(set(parts))
            module.biases |= {"bias" in each for each in parts.values()}

    def _enter(self, kind: str, file: str, name: str, depth: int, within: str, part: str) -> _Module:
        """The module of a tensor: ``file`` and ``name`` are the module's, in the file and in the model."""
        pattern, prefixed = _starred(file, depth), file.startswith(self._prefix)
        pattern, shared = pattern.removeprefix(self._prefix), _starred(self._canonical(name), depth)
        self._seen.setdefault(pattern, {}).setdefault(within, set()).add(part)
        return self._modules.setdefault(pattern, _Module(kind, shared, prefixed))

    def _canonical(self, name: str) -> str:
        return canonical(self._base, name.removeprefix(self._prefix))

    def _plain(self, name: str, leaf: Leaf, tensor: Tensor) -> None:
        """A tensor that is none of an attention layer's."""
        within, depth = self._places.of(name)
        several = pieces(name, self._form, tensor.shape)
        for piece in several:
            kind, flax, axes = _kind(leaf), tensor.flax, 2 if len(several) > 1 else len(tensor.shape)
            if isinstance(leaf, Array):
                kind, flax = _kind_of_array(piece.file, axes)
            file, own = (each if kind == "raw" else each.rpartition(".")[0] for each in (piece.file, name))
            own = file if len(several) > 1 or piece.there else own
            entry = self._enter(kind, file, own, depth + (len(several) > 1), within, flax)
            entry.transposed = isinstance(leaf, Linear) and leaf.turned
            shape = file_shape(piece, tensor.shape)
            turned = kind == "dense" and not entry.transposed
            full = ".".join(filter(None, (self._canonical(own), flax)))
            self.shapes[full] = shape[::-1] if turned else tuple(shape[axis] for axis in tensor.order)
            if callable(tensor.begins) and not tensor.trained:
                entry.computed = True
                self.computed.add(full)

    def _attention(self, path: str, attention: Attention) -> list[str]:
        """One layer of attention; the model's names of what belongs to it."""
        roles = _roles(path, attention)
        if not roles:
            return []
        files: dict[str, Stored] = {}
        for name, stored in roles.items():
            piece = pieces(name, self._form, (1,))[0]
            before = files.get(piece.file, dataclasses.replace(stored, roles=()))
            files[piece.file] = dataclasses.replace(before, roles=before.roles + stored.roles)
        extras = {pieces(name, self._form)[0].file: (name, *extra) for name, extra in _extras(path, attention).items()}
        file, name = _common(files), _common(roles)
        within, depth = self._places.of(name + ".")
        module = self._enter("attention", file, name, depth, within, "")
        for each, stored in files.items():
            local = each.removeprefix(f"{file}.")
            module.stored.setdefault(local, dataclasses.replace(stored, name=local))
        inside = {each.removeprefix(f"{file}."): it for each, it in extras.items() if each.startswith(f"{file}.")}
        for local, (_, extra, _) in inside.items():
            module.extras.setdefault(local, dataclasses.replace(extra, name=local))
        config = attention.config
        self.attention[self._canonical(name)] = config
        plain = config.cosine is not None or config.scale in (config.head_dim**-0.5, 1 / math.sqrt(config.head_dim))
        module.scale = None if plain else config.scale
        module.turning |= config.rotary is not None
        held = {(role, each.part) for each in files.values() for role in each.roles}
        sizes = config.replace(qkv_bias=("query", "bias") in held, out_bias=("out", "bias") in held, softcap=None)
        module.layers.append((sizes, {local: shape for local, (_, _, shape) in inside.items()}))
        if within:
            block = _starred(moved(within.removesuffix("."), self._form)).removeprefix(self._prefix)
            self.layers[block] = _of_stack(block)[1]
        return [*roles, *(name for name, *_ in inside.values())]

    def rules(self) -> Iterator[Rule]:
        """The lines of the family."""
        for pattern, module in self._modules.items():
            bias = "maybe" if len(module.biases) > 1 else "yes" if True in module.biases else "no"
            more: dict[str, Any] = {"bias": bias} if module.kind in ("dense", "conv", "norm") else {}
            if module.kind == "attention":
                kv_heads = "" if self._base == "hf-falcon" else KV_HEADS
                more = {"layout": _layout(self._base, module), "heads": _of_stack(pattern)[0], "kv_heads": kv_heads}
            yield Rule(
                pattern,
                module.kind,
                module.canonical,
                required=module.needed == self._wholes and not module.sparse,
                sparse=module.sparse,
                transposed=module.transposed,
                prefixed=module.prefixed,
                **more,
            )
            yield from _computed(pattern, module)


def _headless(whole: W) -> W:
    """The model without what makes logits."""
    if isinstance(whole, Towers):
        return dataclasses.replace(whole, vision=_headless(whole.vision))
    heads: dict[str, Any] = {name: None for name in ("head", "task") if hasattr(whole, name)}
    return dataclasses.replace(whole, **heads)


def _roles(path: str, attention: Attention) -> dict[str, Stored]:
    """The tensors of a layer's projections, by the model's names; none of a layer of latents."""
    inputs, three = attention.inputs, ("query", "key", "value")
    linear: list[tuple[Linear, tuple[str, ...]]] = [(attention.out, ("out",))]
    found: dict[str, Stored] = {}
    if isinstance(inputs, Latent):
        return {}
    if isinstance(inputs, Packed):
        found = {inputs.weight.name: Stored("", three), inputs.bias.name: Stored("", three, "bias")}
    elif isinstance(inputs, Fused):
        linear.insert(0, (inputs.all, three))
    else:
        linear[:0] = [(inputs.query, three[:1]), (inputs.key, three[1:2]), (inputs.value, three[2:])]
    order = inputs.order if isinstance(inputs, Fused) else "blocks"
    for leaf, roles in linear:
        form, own = "conv1d" if leaf.turned else "linear", order if len(roles) > 1 else "blocks"
        for part, name in (("kernel", "weight"), ("bias", "bias"))[: 1 + leaf.bias]:
            found[f"{leaf.name}.{name}"] = Stored("", roles, part, form, own)
    return {path + name: stored for name, stored in found.items()}


def _extras(path: str, attention: Attention) -> dict[str, tuple[Extra, Shape]]:
    """What the parts of a layer learn, by the model's names, and its shape; what is in several pieces lies beside."""
    found = {}
    for name, leaves in attention.held:
        if len(leaves) == 1:
            (tensor,) = leaves[0].tensors().values()
            found[leaves[0].name] = name, tensor.shape
    for name, leaf in attention.further:
        found |= {f"{leaf.name}.{part}": (f"{name}.{each.flax}", each.shape) for part, each in leaf.tensors().items()}
    made = {path + name: (_extra(*each, attention), each[1]) for name, each in found.items()}
    return {name: (extra, shape) for name, (extra, shape) in made.items() if extra is not None}


def _extra(name: str, stored: Shape, attention: Attention) -> Extra | None:
    """An extra that is published in the shape ``stored``, without its name there."""
    shape = attention.shapes.get(name, stored[::-1])
    for axes in EXTRAS.get(name, ()):
        if bind(axes, shape, attention.config) is not None:
            own: Axes = axes + (1,) * (len(stored) - len(axes))
            if name.endswith(".kernel"):
                own = axes[::-1]
            elif len(stored) < len(axes):
                own = ("*".join(map(str, axes)),)
            return Extra(name, "", own, None if own == axes else axes)
    return None


def _common(names: Iterable[str]) -> str:
    """The module that all of these tensors are of."""
    return ".".join(os.path.commonprefix([name.split(".")[:-1] for name in names]))


def _kind(leaf: Leaf) -> str:
    kinds = {Linear: "dense", Conv: "conv", Norm: "norm", Embedding: "embedding"}
    return next((kind for cls, kind in kinds.items() if isinstance(leaf, cls)), "raw")


def _kind_of_array(file: str, axes: int) -> tuple[str, str]:
    """The kind of a module that a tensor by itself is of, and what Flax calls it: by its name."""
    if not file.endswith(".weight") or axes > 2:
        return "raw", ""
    if axes == 1:
        return "norm", "scale"
    return ("dense", "kernel") if "experts." in file else ("embedding", "embedding")


def _layout(base: str, module: _Module) -> Layout | str:
    """A layout of the library that stores the same, or one made for it."""
    stored, extras = set(module.stored.values()), {(each.canonical, each.name) for each in module.extras.values()}
    parts = {(role, each.part) for each in stored for role in each.roles}
    key_bias = ("key", "bias") in parts or ("query", "bias") not in parts
    fitting = [
        layout
        for layout in map(layouts.get, layouts.names())
        if stored <= set(layout.projections)
        and extras <= {(each.canonical, each.name) for each in layout.extras}
        and all((each.canonical, each.name) in extras for each in layout.extras if each.required)
        and layout.key_bias == key_bias
        and not layout.interleaved
        and layout.scale == module.scale
        and not any(layout.unsupported(config) for config, _ in module.layers)
        and all(layout.extra(name, shape, config) for config, held in module.layers for name, shape in held.items())
    ]
    if fitting:
        return min(fitting, key=lambda layout: len(layout.projections) + len(layout.extras)).name
    known = {
        "name": base,
        "projections": tuple(module.stored.values()),
        "extras": tuple(module.extras.values()),
        "key_bias": key_bias,
        "scale": module.scale,
    }
    made: Layout = type("OfRow", (Layout,), known)()
    return made


#: What configurations call the numbers of a stack's heads and layers before they call them as others do.
_OF_STACK: Mapping[str, tuple[str, str]] = {
    "text_model.": ("text_config.num_attention_heads|", "text_config.num_hidden_layers|"),
    "vision_model.": ("vision_config.num_attention_heads|", "vision_config.num_hidden_layers|"),
    "encoder.": ("encoder_attention_heads|", "encoder_layers|"),
    "decoder.": (
        "decoder_attention_heads|decoder_num_attention_heads|",
        "decoder_layers|num_decoder_layers|decoder_num_hidden_layers|",
    ),
}
_COUNT = "num_hidden_layers|n_layer|n_layers|num_layers|vision_config.num_hidden_layers"


def _of_stack(pattern: str) -> tuple[str, str]:
    """Where a configuration says the numbers of heads and of layers."""
    heads, layers = next((own for start, own in _OF_STACK.items() if pattern.startswith(start)), ("", ""))
    return f"{heads}{HEADS}|vision_config.num_attention_heads", "depths" if pattern.count("*") > 1 else layers + _COUNT


def _computed(pattern: str, module: _Module) -> Iterator[Rule]:
    """Tables that models compute when they are built, beside a module."""
    at = pattern.rpartition(".")[0]
    if module.kind == "embedding" and re.search(r"\.position_embeddings?$", pattern):
        yield Rule(f"{at}.position_ids", "buffer", f"{at}.position_ids", maker="arange", required=False)
        yield Rule(f"{at}.token_type_ids", "buffer", f"{at}.token_type_ids", required=False)
    if module.turning:
        yield Rule(f"{pattern}.rotary_emb.inv_freq", "buffer", f"{pattern}.rotary_emb.inv_freq", required=False)
        yield Rule("rotary_emb.inv_freq", "buffer", "rotary_emb.inv_freq", required=False)
