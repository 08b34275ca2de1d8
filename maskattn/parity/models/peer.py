"""A tiny model of transformers, every number of it drawn, and what it makes of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskattn.parity.models.tiny import Tiny
from maskattn.typing import NumPyArray as Array

#: The smallest id of a token that means nothing special.
_PLAIN = 7


@dataclass
class Peer:
    """A model of transformers.

    Attributes:
        model: itself, in evaluation mode. config: its configuration.
        tensors: its state dict in NumPy.
    """

    model: Any
    config: Any
    tensors: dict[str, Array]

    @classmethod
    def of(cls, name: str, tiny: Tiny, seed: int = 0) -> Peer:
        """The model of a row; every parameter and every buffer that is saved is drawn: fresh models have norms of ones
        and biases of zeros, in which faults hide."""
        import torch
        import transformers

        kind = name.partition("+")[0]
        config: Any = transformers.AutoConfig.for_model(kind, **tiny.config)
        config._attn_implementation = tiny.attention
        torch.manual_seed(seed)
        model = getattr(transformers, tiny.model)(config).eval()
        draws = torch.Generator().manual_seed(seed + 1)
        saved = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for each in {id(x): x for x in saved.values() if x.is_floating_point()}.values():
                drawn = torch.randn(each.shape, generator=draws)
                spread = 0.3 if each.ndim < 2 or each.shape[-1] <= 40 else 0.2
                each.copy_(each + 0.3 * drawn if each.ndim < 2 else drawn * spread)
        return cls(model, config, {key: x.detach().numpy() for key, x in model.state_dict().items()})

    def batch(self, tiny: Tiny, side: str = "right", seed: int = 7) -> dict[str, Array]:
        """Inputs by transformers' names, NumPy arrays; the second sequence is padded on a side, or not ("")."""
        draws = np.random.default_rng(seed)
        length = tiny.length
        ids = draws.integers(_PLAIN, 90, (2, length))
        mask = np.ones((2, length), np.int64)
        if side:
            cut = slice(length - 3, None) if side == "right" else slice(0, 3)
            mask[1, cut] = 0
            ids[1, cut] = 0 if self.config.pad_token_id is None else self.config.pad_token_id
        made = {"input_ids": ids, "attention_mask": mask}
        if tiny.inputs == "types":
            made["token_type_ids"] = draws.integers(0, self.config.type_vocab_size, (2, length))
        return {**made, **{key: np.asarray(value) for key, value in tiny.options.items()}}

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Its "logits", "pooled" and "hidden_states.N", those that it has."""
        import torch

        with torch.no_grad():
            out = self.model(**{key: torch.tensor(x) for key, x in batch.items()}, output_hidden_states=True)
        found = {"logits": getattr(out, "logits", None), "pooled": getattr(out, "pooler_output", None)}
        found |= {f"hidden_states.{n}": x for n, x in enumerate(out.hidden_states or ())}
        return {key: x.detach().numpy() for key, x in found.items() if x is not None}


#: transformers' names of inputs -> ours.
WORDS: Mapping[str, str] = {
    "input_ids": "tokens",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_types",
    "decoder_input_ids": "decoder_tokens",
    "decoder_attention_mask": "decoder_attention_mask",
    "pixel_values": "images",
    "input_values": "features",
    "input_features": "features",
    "global_attention_mask": "global_tokens",
    "noise": "noise",
}
