"""What files call a model's tensors, where that is not what the model calls them: rules that say both ways at once.

A rule rewrites a model's name to a file's, and says which numbers of the file's tensor are the model's. Names of files
are never rewritten: what a file has is found by asking for what the model would have there.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

#: Where numbers lie in a tensor: on its first axes; () is all of it.
Index: TypeAlias = tuple[int | slice, ...]


class Piece(NamedTuple):
    """Numbers of a file's tensor that are numbers of a model's.

    Attributes:
        file: the name of the file's tensor.
        there: which of its numbers. here: where they are in the model's.
    """

    file: str
    there: Index = ()
    here: Index = ()


@dataclass(frozen=True)
class Rule:
    """What stands in a file's name where a pattern stands in the model's.

    Attributes:
        part: (which, of how many): the model's tensor is an equal part of the file's, along its first axis.
        more: of tensors that a file has for each entry of the model's first axis, whose number is {} in their names:
            those behind the first, one after the other within the entry.
    """

    pattern: str
    to: str
    part: tuple[int, int] | None = None
    more: tuple[str, ...] = ()


Form: TypeAlias = tuple[Rule, ...]


def pieces(name: str, form: Form, shape: Sequence[int] | None = None) -> tuple[Piece, ...]:
    """What a model's tensor is made of in a file; without its shape, only the names, and the first of many entries."""
    which, several = None, [name]
    for rule in form:
        if re.search(rule.pattern, several[0]):
            several = [re.sub(rule.pattern, to, several[0]) for to in (rule.to, *rule.more)]
            which = rule.part or which
    if "{}" in several[0]:
        count, rows = (1, 0) if shape is None else (shape[0], shape[1] // len(several))
        places = [(entry, at) for entry in range(count) for at in range(len(several))]
        return tuple(Piece(several[at].format(n), (), (n, slice(at * rows, (at + 1) * rows))) for n, at in places)
    if which is None or shape is None:
        return (Piece(several[0]),)
    return (Piece(several[0], (slice(which[0] * shape[0], (which[0] + 1) * shape[0]),)),)


class Names(Container[str]):
    """The names of a model's tensors that a file has, in whichever of the forms that its model type is published in.

    Args:
        model_type: as configurations call it. files: the names that the file has.
    """

    def __init__(self, model_type: str, files: Container[str]) -> None:
        self._files = files
        own = dict.fromkeys(((), *PUBLISHED.get(model_type, ())))
        self._forms = [form + more for more in ((), LEGACY) for form in own]

    def __contains__(self, name: object) -> bool:
        return self.find(str(name)) is not None

    def find(self, name: str, shape: Sequence[int] | None = None) -> tuple[Piece, ...] | None:
        """Where a model's tensor lies in the file; None where the file does not have it."""
        for form in self._forms:
            if all(piece.file in self._files for piece in pieces(name, form)):
                return pieces(name, form, shape)
        return None


def published(model_type: str, name: str, shape: Sequence[int] | None = None) -> tuple[Piece, ...]:
    """Where a model's tensor lies in a new file: as transformers writes it."""
    return pieces(name, PUBLISHED.get(model_type, ((),))[0], shape)


def of_flax(name: str, axes: int) -> tuple[str, tuple[int, ...]]:
    """A tensor of a tree that a Flax class of transformers 4 wrote: its name in PyTorch, and which of its axes come
    first there. These classes have PyTorch's names, but for the last part.
    """
    module, _, last = name.rpartition("/")
    order = (axes - 1, axes - 2, *range(axes - 2)) if last == "kernel" else tuple(range(axes))
    last = "weight" if last in ("kernel", "embedding", "scale") else last
    return ".".join((*module.split("/"), last)).lstrip("."), order


def file_shape(piece: Piece, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a file's tensor, as far as one of the pieces shows it, which has this shape in the model."""
    if piece.there:
        last = piece.there[0]
        assert isinstance(last, slice)
        return (last.stop, *shape[1:])
    if piece.here:
        rows = piece.here[1]
        assert isinstance(rows, slice)
        return (rows.stop - rows.start, *shape[2:])
    return tuple(shape)


# The forms ------------------------------------------------------------------------------------------------------------


def _renamed(**names: str) -> Form:
    """Rules of whole parts of names; "__" stands for a dot."""
    return tuple(Rule(rf"(?<![^.]){re.escape(ours.replace('__', '.'))}(?![^.])", to) for ours, to in names.items())


def _parts(to: str, *ours: str) -> Form:
    return tuple(Rule(re.escape(name), to, (at, len(ours))) for at, name in enumerate(ours))


def _experts(gate: str, up: str, down: str) -> Form:
    """Experts, each by itself in a file."""
    names = [rf"experts.{{}}.{name}.weight" for name in (gate, up, down)]
    return (
        Rule(r"experts\.gate_up_proj$", names[0], more=(names[1],)),
        Rule(r"experts\.down_proj$", names[2]),
    )


#: Names of TensorFlow's norms, and of weight norm before PyTorch 2.
LEGACY: Form = (
    Rule(r"LayerNorm\.weight$", "LayerNorm.gamma"),
    Rule(r"LayerNorm\.bias$", "LayerNorm.beta"),
    Rule(r"\.parametrizations\.weight\.original0$", ".weight_g"),
    Rule(r"\.parametrizations\.weight\.original1$", ".weight_v"),
)
_LAYERS = Rule(r"(?<![^.])layers\.(?=\d)", "encoder.layer.")
_MLP = _renamed(mlp__fc1="intermediate.dense", mlp__fc2="output.dense")
_INNER = _renamed(
    attention__q_proj="attention.attention.query",
    attention__k_proj="attention.attention.key",
    attention__v_proj="attention.attention.value",
    attention__o_proj="attention.output.dense",
)
_VIT: Form = (_LAYERS, *_INNER, *_MLP)
_DINOV2: Form = (
    *_INNER,
    *_parts("mlp.weights_in", "mlp.gate_proj", "mlp.up_proj"),
    *_renamed(mlp__down_proj="mlp.weights_out"),
)
_EXPERTS = _experts("gate_proj", "up_proj", "down_proj")
_TEXT: Form = (Rule(r"^(?!text_)", "text_model."),)
_VISION: Form = (Rule(r"^(?!vision_|visual_)", "vision_model."),)

#: model type -> the forms that its files have; a new file has the first.
PUBLISHED: Mapping[str, tuple[Form, ...]] = {
    "beit": (
        (
            *_renamed(relative_position_bias="attention.attention.relative_position_bias"),
            *_renamed(shared_position_bias="encoder.relative_position_bias"),
            *_VIT,
        ),
    ),
    "clip_text_model": (_TEXT,),
    "clip_vision_model": (_VISION,),
    "deepseek_v2": (_EXPERTS,),
    "deepseek_v3": (_EXPERTS,),
    "deit": (_VIT,),
    "dinov2": (_DINOV2,),
    "dinov2_with_registers": (_DINOV2,),
    "dinov3_vit": ((Rule(r"^model\.layer\.", "layer."),),),
    "esm": tuple(
        (Rule(r"rotary_embeddings\.inv_freq$", f"encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"),)
        for layer in "*0"  # as transformers writes it; and the first layer's, whose numbers it reads
    ),
    "gpt_neox": ((Rule(r"^lm_head\.", "embed_out."),),),
    "mixtral": ((*_renamed(mlp="block_sparse_moe"), *_experts("w1", "w3", "w2")),),
    "nomic_bert": (
        (
            Rule(r"(?<![^.])layers\.(?=\d)", "encoder.layers."),
            *_renamed(embeddings__LayerNorm="emb_ln", self_attn__o_proj="attn.out_proj"),
            *_renamed(mlp__up_proj="mlp.fc11", mlp__gate_proj="mlp.fc12", mlp__down_proj="mlp.fc2"),
            *_renamed(post_attention_layernorm="norm1", post_mlp_layernorm="norm2"),
            *_parts("attn.Wqkv", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ),
    ),
    "olmoe": (_EXPERTS,),
    "qwen2_moe": (_EXPERTS,),
    "qwen3_moe": (_EXPERTS,),
    "siglip_text_model": (_TEXT,),
    "siglip_vision_model": (_VISION,),
    "swin": (
        (
            *_renamed(attention__q_proj="attention.self.query", attention__k_proj="attention.self.key"),
            *_renamed(attention__v_proj="attention.self.value", attention__o_proj="attention.output.dense"),
            *_renamed(attention__relative_position_bias="attention.self"),
            *_MLP,
        ),
    ),
    "vit": (_VIT,),
    # what was published, and what transformers 5.23 writes of the decoder
    "vit_mae": (_VIT, (Rule(r"decoder_layers\.(?=\d)", "decoder_encoder.layer."), *_VIT)),
}
