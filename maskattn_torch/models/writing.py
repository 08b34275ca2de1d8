"""A model that writes token after token, as `maskattn.models.generate` needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from maskattn.models.encoder_decoder import holds, mask_of
from maskattn.models.model import WholeModel
from maskattn.typing import KernelName, NumPyArray

__all__ = ["Writer"]


@dataclass(frozen=True)
class Writer:
    """See `maskattn.models.generate.Steps`.

    Attributes:
        model: a `Model`. table: what it is.
        given: of a model with an encoder and a decoder, what the encoder reads.
        kernel: as in `attention`. multiple: as in `Steps`.
    """

    multiple = 1

    model: Any
    table: WholeModel
    kernel: KernelName = "auto"
    given: Mapping[str, Any] = field(default_factory=dict)

    def start(self, batch: int, size: int) -> tuple[Any, ...]:
        """Caches without tokens, of `size` slots."""
        return tuple(self.model.new_cache(batch, size))

    def step(
        self, tokens: NumPyArray, valid: NumPyArray, last: NumPyArray, caches: tuple[Any, ...]
    ) -> tuple[NumPyArray, tuple[Any, ...]]:
        """The logits behind the last tokens, and the new caches."""
        device = next(self.model.parameters()).device
        ids = torch.as_tensor(tokens, device=device)
        told = None if valid.all() else torch.as_tensor(valid, device=device)
        at = torch.as_tensor(last, device=device) if ids.shape[1] > 1 else None
        options = {"cache": caches, "valid": told, "logits_at": at, "deterministic": True, "kernel": self.kernel}
        known = self.given if not self.given or not holds(caches) else mask_of(self.given)
        with torch.no_grad():
            out = self.model(**{"decoder_tokens" if self.given else "tokens": ids}, **known, **options)
        return out.logits[:, 0].float().cpu().numpy(), out.cache
