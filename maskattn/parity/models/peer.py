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
#: Tokens of a decoder beside an encoder.
_DECODED = 9


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
            for key, each in {id(x): (key, x) for key, x in saved.items() if x.is_floating_point()}.values():
                drawn = torch.randn(each.shape, generator=draws)
                spread = 0.3 if each.ndim < 2 or each.shape[-1] <= 40 else 0.2
                spread *= 0.2 if tiny.small and key.endswith(tiny.small) else 1.0
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
            few = length // 3 if tiny.inputs == "sound" else 3
            cut = slice(length - few, None) if side == "right" else slice(0, few)
            mask[1, cut] = 0
            ids[1, cut] = getattr(self.config, "pad_token_id", None) or 0
        made = {"input_ids": ids, "attention_mask": mask}
        if tiny.inputs == "types":
            made["token_type_ids"] = draws.integers(0, self.config.type_vocab_size, (2, length))
        if tiny.inputs == "sound":
            made = {"input_values": draws.standard_normal((2, length)).astype(np.float32), "attention_mask": mask}
        if tiny.inputs == "spectrum":
            shape = (2, self.config.num_mel_bins, length)
            made = {"input_features": draws.standard_normal(shape).astype(np.float32)}
        if tiny.inputs in ("both", "spectrum"):
            made["decoder_input_ids"] = draws.integers(_PLAIN, 90, (2, _DECODED))
            kept = np.arange(_DECODED) < np.array([[_DECODED], [_DECODED - 2]])
            made |= {"decoder_attention_mask": kept.astype(np.int64)} if tiny.inputs == "both" else {}
        if not side:
            made.pop("attention_mask", None)
        return {**made, **options}

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """What it gives by our names, those that it has: "logits", "hidden_states.N" and so on."""
        import torch

        with torch.no_grad():
            out = self.model(**{key: torch.tensor(x) for key, x in batch.items()}, output_hidden_states=True)
        return {key: x.detach().numpy() for key, x in given_by(out).items()}

    def kept(self, batch: Mapping[str, Array], what: str, shape: tuple[int, ...]) -> Array:
        """bool, which of the first axes of a result of `run` are no padding: all others mean nothing."""
        two = getattr(self.config, "is_encoder_decoder", False) and "decoder_input_ids" in batch
        mask = batch.get("decoder_attention_mask" if two and not what.startswith("encoder") else "attention_mask")
        sound = "input_values" in batch
        if what == "pooled" or mask is None or shape[1] == 1 or not (sound or shape[:2] == mask.shape):
            return np.ones(shape[:1], bool)
        if sound:
            import torch

            mask = self.model._get_feature_vector_attention_mask(shape[1], torch.tensor(mask)).numpy()
        return mask.astype(bool)


#: transformers' names of outputs -> ours.
GIVEN: Mapping[str, str] = {
    "logits": "logits",
    "logits_per_image": "logits",
    "last_hidden_state": "hidden",
    "pooler_output": "pooled",
    "text_embeds": "text_embeds",
    "image_embeds": "image_embeds",
    "mask": "masked",
    "encoder_last_hidden_state": "encoder_hidden",
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
    for name in ("hidden_states", "decoder_hidden_states", "encoder_hidden_states"):
        states = enumerate(getattr(out, name, None) or ())
        found |= {f"{name.removeprefix('decoder_')}.{n}": x for n, x in states}
    return found


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
