"""The tiny models of `maskattn parity models`, as transformers saves them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskattn.parity.models.peer import Peer
from maskattn.parity.models.tiny import TINY, Tiny

#: And some that only conversion knows, or that have no head where others' have one.
MODELS: dict[str, Tiny] = {
    **TINY,
    "gpt2+cross": replace(TINY["gpt2"], config={**TINY["gpt2"].config, "add_cross_attention": True}),
    "dinov2+base": replace(TINY["dinov2"], model="Dinov2Model"),
    "bert+pretrained": replace(TINY["bert"], model="BertForPreTraining"),
}


def build(name: str, dtype: str = "float32") -> Any:
    """A random model; every parameter is drawn, biases and norms too, so that no two are the same by accident."""
    import torch

    return Peer.of(name, MODELS[name]).model.to(getattr(torch, dtype))


def saved(name: str, dtype: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder that ``save_pretrained`` wrote, and the config.json in it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    build(name, dtype).save_pretrained(folder)
    return folder, json.loads((folder / "config.json").read_text())
