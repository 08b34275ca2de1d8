"""What a checkpoint is that no family describes: an adapter, quantized weights, a model behind a prefix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskattn import checkpoints
from maskattn.checkpoints import TensorInfo
from maskattn.convert._identity import About
from maskattn.convert._match import matches

ADVICE = "a family of your own is a file: docs/converting.md#a-family-of-your-own; --family names it"
_SHOWN = 5
_PARTS = 8
"""Parts of a name that a prefix may have."""
_SHARE = 0.6
"""How many of all names must begin with a prefix, for it to be one."""
_COPIES = 0.1
"""How many must, for it to be that of one model of several."""

#: What PyTorch's wrappers put into the names of what they wrap, wherever that stands.
_WRAPPED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

#: What names that contain this are of, and what to do: the first that fits is told.
_STRANGE = (
    (
        r"\.lora_([AB]|embedding_[AB]|magnitude_vector)\b|\.lora_(down|up)\.|\.lora_linear_layer\.|\.hada_w[12]_[ab]\b|\.oft_[rR]\b|\.vera_lambda",
        "an adapter (LoRA or another of PEFT's), not a model",
        "merge it into its base first: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...)",
    ),
    (
        r"\bprompt_embeddings\b|\.ia3_l\b|\bprompt_encoder\.",
        "an adapter (PEFT), not a model",
        "it has no weights of attention; convert its base",
    ),
    (
        r"\.(qweight|qzeros|g_idx)$",
        "quantized (GPTQ or AWQ): whole numbers that stand for weights",
        "convert the weights it was made of, or dequantize it with the library that made it",
    ),
    (
        r"\.scales$|_(blocks|scales)$",
        "quantized (MLX or MXFP4): whole numbers that stand for weights, and their scales",
        "dequantize it first: mlx_lm.convert --dequantize, or transformers' Mxfp4Config(dequantize=True)",
    ),
    (
        r"\.(absmax|quant_map|nested_absmax|SCB)$|quant_state\.bitsandbytes",
        "quantized (bitsandbytes)",
        "load it with transformers, call model.dequantize() and save that",
    ),
    (
        r"\.(weight_scale(_inv)?|weight_packed|weight_zero_point|input_scale|W_q)$",
        "quantized (scales stand beside the weights: FP8, compressed-tensors, HQQ)",
        "convert the weights it was made of, or dequantize it with the library that made it",
    ),
)


def refuse_what_is_no_model(names: Iterable[str], model_config: Mapping[str, Any]) -> None:
    """ValueError for an adapter or quantized weights: what they are, and what to do."""
    names = list(names)
    for pattern, what, advice in _STRANGE:
        found = [name for name in names if re.search(pattern, name)]
        if found:
            raise ValueError(f"this is {what}: {len(found)} of {len(names)} names are as {found[0]}; {advice}")
    if model_config.get("peft_type"):
        raise ValueError(
            f"this is an adapter ({model_config['peft_type']}, PEFT), not a model: merge it into its base first"
        )


def refuse_a_shard(path: Path) -> None:
    """Refuses one of the several files of a model, and a folder of Meta's that holds such files.

    Args:
        path: of a checkpoint; nothing is read of it but the names of files.

    Raises:
        ValueError: it is one shard of a model, or a folder of shards; says of how many, and what to do.
    """
    part = checkpoints.shard(path)
    if part:
        raise ValueError(f"{path}: {part}")


def outer(strip_prefix: str, infos: Mapping[str, TensorInfo], about: About) -> str:
    """What is to be taken off all names; ValueError where nothing has it, or none is found."""
    if not strip_prefix:
        return ""
    if strip_prefix == "auto":
        prefix, _, _ = hidden_by(infos, about)
        if not prefix:
            _look_for_wrappers(infos, about)
            _look_for_several(infos, about)
            raise ValueError(f"strip_prefix: no prefix hides the names of a family; they are {some(infos)}")
        return prefix
    if "*" in strip_prefix or not any(name.startswith(strip_prefix) for name in infos):
        near = prefixes(infos)
        hint = f"; most begin with {near[0]!r}" if near else ""
        raise ValueError(f"strip_prefix: no name begins with {strip_prefix!r}{hint}: {some(infos)}")
    return strip_prefix


def look_for_a_prefix(infos: Mapping[str, TensorInfo], about: About, faults: int) -> None:
    """ValueError with the prefix that hides a family: without it, its names are exactly those of one, and fewer are
    left than the ``faults`` there are with it.
    """
    if about.outer:
        return
    prefix, form, rest = hidden_by(infos, about)
    if prefix and len(rest) < faults:
        how = f"all {len(infos)} names begin" if not rest else f"{len(infos) - len(rest)} of {len(infos)} names begin"
        beside = f"; beside it {some(rest)}: --rest keep or drop" if rest else ""
        raise ValueError(f"{how} with {prefix!r}, and are those of {form} without it: --strip-prefix {prefix}{beside}")
    if not prefix:
        _look_for_dots(infos, about)
        _look_for_wrappers(infos, about)
        _look_for_several(infos, about)


def hidden_by(infos: Mapping[str, TensorInfo], about: About) -> tuple[str, str, dict[str, TensorInfo]]:
    """The prefix, the form that the names are without it, and what has no such prefix; empty where there is none."""
    for prefix in prefixes(infos):
        inner = {name.removeprefix(prefix): info for name, info in infos.items() if name.startswith(prefix)}
        form = _form_of(inner, about)
        if form:
            rest = {name: info for name, info in infos.items() if not name.startswith(prefix)}
            return prefix, form, rest
    return "", "", {}


def _form_of(infos: Mapping[str, TensorInfo], about: About) -> str:
    """The form that has exactly these names; empty where there is none."""
    models = matches(infos, about.config, about.forms([about.own] if about.own else about.told))
    return str(models[0].form) if models else ""


def _look_for_wrappers(infos: Mapping[str, TensorInfo], about: About) -> None:
    """ValueError where the names are a family's but for what PyTorch's wrappers put into them."""
    inner = {_WRAPPED.sub("", name): info for name, info in infos.items()}
    found = sorted({match[0] for name in infos for match in _WRAPPED.finditer(name)})
    form = _form_of(inner, about) if found and len(inner) == len(infos) else ""
    if form:
        count = sum(_WRAPPED.search(name) is not None for name in infos)
        renamed = "".join(f".replace({part!r}, '')" for part in found)
        raise ValueError(
            f"{count} of {len(infos)} names have {' and '.join(map(repr, found))} within them (torch.compile, FSDP or "
            f"checkpointing of a part), and are those of {form} without: save them renamed, name{renamed}"
        )


def _look_for_dots(infos: Mapping[str, TensorInfo], about: About) -> None:
    """ValueError where the names are those of a Flax tree, joined by dots."""
    if any("/" in name for name in infos):
        return
    form = _form_of({name.replace(".", "/"): info for name, info in infos.items()}, about)
    if form:
        raise ValueError(
            f"all {len(infos)} names are those of {form}, joined by dots instead of slashes: save them renamed, "
            f"name.replace('.', '/'), or as safetensors with metadata={{'format': 'flax'}}, which says it"
        )


def _look_for_several(infos: Mapping[str, TensorInfo], about: About) -> None:
    """ValueError where several models stand beside each other, each behind a prefix: a student and its teacher."""
    found: dict[str, str] = {}
    for prefix in prefixes(infos, _COPIES):
        if not any(prefix.startswith(other) for other in found):
            form = _form_of({n.removeprefix(prefix): i for n, i in infos.items() if n.startswith(prefix)}, about)
            found |= {prefix: form} if form else {}
    if len(found) > 1:
        listed = ", ".join(f"{prefix!r} ({form})" for prefix, form in found.items())
        raise ValueError(
            f"{len(found)} models in one file, each behind its prefix: {listed}; --strip-prefix {next(iter(found))} "
            f"--rest drop takes one"
        )


def prefixes(names: Iterable[str], share: float = _SHARE) -> list[str]:
    """What so many of all names begin with, the shortest first: whole parts of names."""
    names = list(names)
    counts: Counter[str] = Counter()
    for name in names:
        ends = [match.end() for match in re.finditer(r"[./]", name)]
        counts.update(name[:end] for end in ends[:_PARTS])
    return sorted((prefix for prefix, count in counts.items() if count >= share * len(names)), key=len)


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more if listed else "no tensors"
