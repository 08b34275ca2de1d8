"""Which families of Hugging Face's models there are: their names, types and forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from maskattn.models import ROWS
from maskattn.models.forms import PUBLISHED, Form, Rule, pieces

#: Families of several types of models, whose names are alike; every other type has one of its own.
_ALIKE: Mapping[str, tuple[str, ...]] = {
    "hf-bert": ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
    "hf-llama": ("llama", "mistral", "ministral", "qwen2", "qwen3"),
    "hf-vit": ("vit", "deit"),
    "hf-dinov2": ("dinov2", "dinov2_with_registers"),
    "hf-t5": ("t5", "mt5", "umt5"),
    "hf-t5-encoder": ("t5", "mt5", "umt5"),
}
#: Types that configurations call otherwise.
ALIASES: Mapping[str, str] = {
    "vit_msn": "vit",
    "donut-swin": "swin",
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
}
#: Types of texts and images, of which files with a head of classes hold the images alone.
_TOWERS: Mapping[str, str] = {"clip": "hf-clip-vision", "siglip": "hf-siglip-vision"}
#: Types whose bodies have the same names in files and in memory; of MAE transformers has saved both.
_SAME_IN_MEMORY = ("clip", "siglip", "gpt_neox", "vit_mae")
#: Families that are told by their names alone, where nothing says the type.
TOLD = (
    *("hf-bert", "hf-bloom", "hf-clip", "hf-clip-text", "hf-clip-vision", "hf-deit", "hf-deit-memory", "hf-dinov2"),
    *("hf-dinov2-memory", "hf-falcon", "hf-gpt-neox", "hf-gpt2", "hf-llama", "hf-phi3", "hf-swin", "hf-swin-memory"),
    *("hf-swinv2", "hf-t5", "hf-t5-encoder", "hf-vit", "hf-vit-mae", "hf-vit-mae-v5", "hf-vit-memory"),
    *("flax-bert", "flax-gpt2"),
)
#: Families that are one model for other libraries, and what they call as ViT does.
_SHARED: Mapping[str, str] = {"hf-deit": "vit", "hf-dinov2": "vit"}
_AS_SWIN: Form = (
    Rule(r"(?<=[\d*]\.)intermediate\.dense", "mlp.fc1"),
    Rule(r"(?<=[\d*]\.)output\.dense", "mlp.fc2"),
)
_AS_VIT: Form = (
    Rule(r"^encoder\.layer\.", "layers."),
    Rule(r"(?<![^.])norm1(?![^.])", "layernorm_before"),
    Rule(r"(?<![^.])norm2(?![^.])", "layernorm_after"),
    Rule(r"^cls_classifier", "classifier"),
)


@lru_cache(maxsize=1)
def table() -> Mapping[str, tuple[tuple[str, ...], Form]]:
    """The names of all families: the types of each, and its form."""
    alike = {name for types in _ALIKE.values() for name in types} - {"deit"}
    alone = {_own(name): (name,) for name in ROWS if name not in alike}
    known = {name: each for family, types in {**_ALIKE, **alone}.items() for name, each in _forms(family, types)}
    return {**known, **{f"flax-{name}": known[f"hf-{name}"] for name in ("bert", "gpt2")}}


def _own(model_type: str) -> str:
    return "hf-" + model_type.replace("_", "-").removesuffix("-model")


def _forms(name: str, types: tuple[str, ...]) -> Iterator[tuple[str, tuple[tuple[str, ...], Form]]]:
    """The forms of a family: as its files are published, and as transformers holds it."""
    published = PUBLISHED.get(types[0], ())
    yield name, (types, published[0] if published else ())
    for form in published[1:]:
        yield f"{name}-v5", (types, form)
    if published and not types[0].startswith(_SAME_IN_MEMORY):
        yield f"{name}-memory", (types, ())


def base_of(name: str) -> str:
    """The family of which this is a form."""
    return name.removesuffix("-memory").removesuffix("-v5").replace("flax-", "hf-")


def model_of(name: str) -> str:
    """What the family of that name describes."""
    return _SHARED.get(base_of(name), base_of(name).removeprefix("hf-"))


def types_of(name: str) -> tuple[str, ...]:
    """What configurations call the models of a family."""
    types = table()[name][0]
    wholes = [whole for whole, part in _TOWERS.items() if name == part]
    return (*types, *(alias for alias, own in ALIASES.items() if own == types[0]), *wholes)


def canonical(base: str, name: str) -> str:
    """What all families of the model call a tensor, or a module, of one."""
    shared = _AS_VIT if base in _SHARED else _AS_SWIN if base == "hf-swinv2" else ()
    return pieces(name, shared)[0].file
