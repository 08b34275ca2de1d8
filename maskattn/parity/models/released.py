"""A released model of transformers as what is compared with: out of its files, or, of a file in another form, with the
numbers that are read from it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from maskattn.arrays import to_torch
from maskattn.convert import open_model
from maskattn.convert.compare import read
from maskattn.models import files, gguf
from maskattn.parity.checkpoint.minilm import quiet
from maskattn.parity.models.peer import WORDS, Peer
from maskattn.typing import NumPyArray as Array

#: The files of a folder that transformers reads.
OWN = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def released(path: Path) -> tuple[Peer, str, list[str]]:
    """The model of a checkpoint in float32; how transformers came by its numbers; parameters that the file has none of.

    Raises:
        ImportError: transformers is not installed. ValueError: it cannot make such a model.
    """
    import torch
    import transformers

    packed = gguf.found(path)
    folder = path.parent if packed is not None and path.is_file() else path
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # it shows how far it is, whatever it is told
        if packed is not None or (folder.is_dir() and any((folder / name).is_file() for name in OWN)):
            options: dict[str, Any] = {"local_files_only": True, **({"gguf_file": packed.name} if packed else {})}
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            kind = _class(config) if packed is None else transformers.AutoModelForCausalLM
            more = {"attn_implementation": _attention(config), "dtype": torch.float32, "output_loading_info": True}
            model, said = kind.from_pretrained(folder, config=config, **options, **more)
            missing, how = said["missing_keys"], "read by transformers itself"
        else:
            model, missing = _filled(path)
            how = "put into transformers' model as they are read here, since it has no such files"
    return Peer(model.eval(), model.config, {}, large=True), how, sorted(missing)


def _filled(path: Path) -> tuple[Any, list[str]]:
    """A model with the numbers that are read here, and what the file has none of."""
    import transformers

    with open_model(path) as source:
        told = {
            name: value for name, value in source.config.items() if name not in ("model_type", "transformers_version")
        }
        config: Any = transformers.AutoConfig.for_model(source.config["model_type"], **told)
        config._attn_implementation = _attention(config)
        table, numbers = read(source)
        tensors = files.tensors_of(table)
        state = {name: to_torch(numbers(name, tensor)).float() for name, tensor in tensors.items()}
    kind = _class(config)
    model = kind(config) if hasattr(kind, "base_model_prefix") else kind.from_config(config)
    model.float().load_state_dict(state, strict=False)
    model.tie_weights()
    known = {
        parameter.data_ptr() for name, parameter in model.named_parameters(remove_duplicate=False) if name in state
    }
    every = model.named_parameters(remove_duplicate=False)
    return model, [name for name, parameter in every if name not in state and parameter.data_ptr() not in known]


def _class(config: Any) -> Any:
    """The class that a configuration names; else that of the model without a head."""
    import transformers

    named = (getattr(config, "architectures", None) or [""])[0]
    found = getattr(transformers, named, None)
    return transformers.AutoModel if found is None else found


def _attention(config: Any) -> str:
    """Which attention of transformers is compared with: eager counts the bias of ALiBi twice."""
    return "sdpa" if config.model_type == "falcon" and getattr(config, "alibi", False) else "eager"


def batch_of(given: dict[str, Array], config: Any) -> dict[str, Array]:
    """Inputs of a twin's model by transformers' names."""
    sound = "input_features" if getattr(config, "is_encoder_decoder", False) else "input_values"
    names = {ours: theirs for theirs, ours in WORDS.items()} | {"features": sound}
    return {names[name]: x * 1 for name, x in given.items()}
