"""What is refused by name: options and classes that there is no part for, and inputs of a call that do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping

from maskattn._hf_config import Reading
from maskattn._problems import Problems, show
from maskattn.arrays import dtype_name
from maskattn.layer.from_hf import Row
from maskattn.masks import Mask
from maskattn.models.build_tasks import TASKS
from maskattn.typing import Traced

#: Of all models of one stack.
EVERYWHERE: Mapping[str, str] = {"add_cross_attention": "layers with cross-attention are no part of this model's table"}
#: How classes end of which it is known what they give.
CLASSES = (
    *("Model", "EncoderModel", "ModelWithProjection", "LMHeadModel", "WithLMHeadModel", "MTModel", "ForCausalLM"),
    *("ForMaskedLM", "ForConditionalGeneration", "ForCTC", "ForMaskedImageModeling", "ForImageClassification"),
    *("ForImageClassificationWithTeacher", *TASKS),
)


def check(row: Row, reading: Reading) -> None:
    """Refuse a configuration in which an option of `row["refused"]`, a name and why, is set, or that names a class
    which is not of its model type, or has a head that is not known.

    Raises:
        ValueError: names the option, or the class, and says why.
    """
    named = reading.architecture
    found = re.fullmatch(rf"(\w*?)({'|'.join(CLASSES)})?", named)
    if named and (found is None or found[2] is None or not _plain(reading.model_type).startswith(_plain(found[1]))):
        raise ValueError(
            f"{reading.where}: {named} is refused: it is no class of {reading.model_type!r}, or what its head computes "
            f"is not known; without architectures, config.json means a plain {reading.model_type}"
        )
    refused = row.get("refused", {})
    assert isinstance(refused, Mapping)
    known = {} if reading.get("is_encoder_decoder", default=False) else EVERYWHERE
    for name, why in {**known, **refused}.items():
        value = reading.get(name, default=None)
        if value:
            raise ValueError(f"{reading.where}: {reading.model_type!r} with {name}={value!r} is refused: {why}")


def check_inputs(given: Mapping[str, Traced]) -> None:
    """Refuse inputs of a call (`models.model.Inputs`) that are of another kind than they must be, or do not fit.

    Raises:
        TypeError, ValueError: lists all of them.
    """
    problems = Problems("Model")
    arrays = {name: x for name, x in given.items() if hasattr(x, "shape") and hasattr(x, "dtype")}
    shapes = {name: tuple(x.shape) for name, x in arrays.items()}
    for name, kinds, said in _KINDS:
        if name in arrays and not dtype_name(arrays[name]).startswith(kinds):
            problems.type(f"{name} must be {said}, got {dtype_name(arrays[name])}")
    for name, shape in list(shapes.items()):
        if 0 in shape or (name in ("tokens", "decoder_tokens") and len(shape) != 2):
            wanted = "[B, L] and not empty" if name.endswith("tokens") else "not empty"
            problems.value(f"{name} must be {wanted}, got {list(shapes.pop(name))}")
    if given["tokens"] is not None and "tokens" not in arrays:
        problems.type(f"tokens must be an array, got {show(given['tokens'])}")
    for name in _MASKS:
        if isinstance(given[name], Mask):
            got = f"{given[name]!r}: a model has its mask from its configuration"
            problems.type(f"{name} must be bool or integers, 1 = keep, got {got}")
    read = shapes.get("tokens", shapes.get("features", ()))
    written = shapes.get("decoder_tokens", read)
    cached = given["cache"] is not None
    for name, beside in (
        ("token_types", read),
        ("attention_mask", () if cached else read),
        ("global_tokens", read),
        ("decoder_tokens", (*read[:1], *written[1:])),
        ("decoder_attention_mask", () if cached else written),
    ):
        if name in shapes and len(beside) == 2 and shapes[name] not in (beside, (1, *beside[1:])):
            problems.value(f"{name} must be {list(beside)}, as the rest is, got {list(shapes[name])}")
    if shapes.get("logits_at", written[:1]) not in (written[:1], (1,)):
        problems.value(f"logits_at must be [B], here {list(written[:1])}, got {list(shapes['logits_at'])}")
    problems.raise_if_any()


_MASKS = ("attention_mask", "decoder_attention_mask")
_INTEGERS, _KEPT = ("int", "uint"), ("bool", "int", "uint")
_KINDS = (
    *((name, _INTEGERS, "integers") for name in ("tokens", "decoder_tokens", "token_types", "positions", "logits_at")),
    *((name, _KEPT, "bool or integers, 1 = keep") for name in (*_MASKS, "global_tokens", "valid")),
)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
