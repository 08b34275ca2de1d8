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
        options = {key: np.asarray(value) for key, value in tiny.options.items()}
        if tiny.image:
            options["pixel_values"] = draws.standard_normal((2, *tiny.image), np.float32)
        if tiny.inputs == "images":
            return options
        length = tiny.length
        ids = draws.integers(_PLAIN, 90, (2, length))
        mask = np.ones((2, length), np.int64)
        if side:
            cut = slice(length - 3, None) if side == "right" else slice(0, 3)
            mask[1, cut] = 0
            ids[1, cut] = getattr(self.config, "pad_token_id", None) or 0
        made = {"input_ids": ids, "attention_mask": mask}
        if tiny.inputs == "types":
            made["token_type_ids"] = draws.integers(0, self.config.type_vocab_size, (2, length))
        return {**made, **options}

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """What it gives by our names, those that it has: "logits", "hidden_states.N" and so on."""
        import torch

        with torch.no_grad():
            out = self.model(**{key: torch.tensor(x) for key, x in batch.items()}, output_hidden_states=True)
        return {key: x.detach().numpy() for key, x in given_by(out).items()}


#: transformers' names of outputs -> ours.
GIVEN: Mapping[str, str] = {
    "logits": "logits",
    "logits_per_image": "logits",
    "last_hidden_state": "hidden",
    "pooler_output": "pooled",
    "text_embeds": "text_embeds",
    "image_embeds": "image_embeds",
    "mask": "masked",
    "text_model_output": "texts",
    "vision_model_output": "images",
}


def given_by(out: Any, names: Mapping[str, str] = GIVEN) -> dict[str, Any]:
    """Arrays of an output by our names; those of towers behind the tower's name and a dot."""
    found: dict[str, Any] = {}
    for name, ours in names.items():
        x = getattr(out, name, None)
        if x is None:
            continue
        if ours in ("texts", "images"):
            # transformers puts what is compared in the place of what a tower pooled
            found |= {f"{ours}.{key}": y for key, y in given_by(x, names).items() if key.startswith("hidden")}
        else:
            found[ours] = x
    return found | {f"hidden_states.{n}": x for n, x in enumerate(getattr(out, "hidden_states", None) or ())}


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
