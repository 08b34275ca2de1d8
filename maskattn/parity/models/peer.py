"""A tiny model of transformers, every number of it drawn, and what it makes of a batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from maskattn.arrays import to_numpy
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
        large: whether it is itself what `to` makes of it, and no copy; then there are no tensors.
    """

    model: Any
    config: Any
    tensors: dict[str, Array]
    large: bool = False

    @classmethod
    def of(cls, name: str, tiny: Tiny, seed: int = 0) -> Peer:
        """The model of a row; every parameter and every buffer that is saved is drawn: fresh models have norms of ones
        and biases of zeros, in which faults hide."""
        import torch
        import transformers

        # tiny vocabularies have no ids for what configurations say begins and ends a text
        transformers.logging.set_verbosity_error()
        kind = name.partition("+")[0]
        config: Any = transformers.AutoConfig.for_model(kind, **tiny.config)
        config._attn_implementation, config.architectures = tiny.attention, [tiny.model]
        torch.manual_seed(seed)
        model = getattr(transformers, tiny.model)(config).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.padding_idx = None  # which would keep a row's gradients from it
        draws = torch.Generator().manual_seed(seed + 1)
        saved = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for key, each in {id(x): (key, x) for key, x in saved.items() if x.is_floating_point()}.values():
                drawn = torch.randn(each.shape, generator=draws)
                spread = 0.3 if each.ndim < 2 or each.shape[-1] <= 40 else 0.2
                spread *= 0.2 if tiny.small and key.endswith(tiny.small) else 1.0
                each.copy_(each + 0.3 * drawn if each.ndim < 2 else drawn * spread)
        return cls(model, config, {key: to_numpy(x) for key, x in model.state_dict().items()})

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
            drawn = ids[1, cut][1]
            ids[1, cut] = getattr(self.config, "pad_token_id", None) or 0
            ids[1, cut][1] = drawn  # some count what is padding by the mask, and some by the tokens
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

    def kept(self, batch: Mapping[str, Array], what: str, shape: tuple[int, ...]) -> Array:
        """bool, which of the first axes of a result of `run` are no padding: all others mean nothing."""
        two = getattr(self.config, "is_encoder_decoder", False) and "decoder_input_ids" in batch
        mask = batch.get("decoder_attention_mask" if two and not what.startswith("encoder") else "attention_mask")
        first = what == "pooled" or (what == "logits" and len(shape) == 2 and getattr(self.config, "is_decoder", False))
        if first and mask is not None and mask.ndim == 2:
            return mask[:, 0] != 0  # the first token's, which sees nothing in a decoder where it is padding
        sound = "input_values" in batch
        if mask is None or len(shape) < 2 or shape[1] == 1 or not (sound or shape[:2] == mask.shape):
            return np.ones(shape[:1], bool)
        if sound:
            import torch

            mask = self.model._get_feature_vector_attention_mask(shape[1], torch.tensor(mask)).numpy()
        return mask.astype(bool) if mask.shape == tuple(shape[:2]) else np.ones(shape[:1], bool)

    def aliases(self) -> list[list[str]]:
        """The names of each parameter that is trained: of tied ones there are several."""
        names: dict[int, list[str]] = {}
        for name, x in self.model.named_parameters(remove_duplicate=False):
            if x.requires_grad:
                names.setdefault(id(x), []).append(name)
        return list(names.values())

    def to(self, dtype: str) -> Peer:
        """The same model with its parameters rounded to another dtype. What is never rounded where transformers reads a
        model stays as it is; in float64 all that it computes in float32 is computed so too."""
        import torch

        model = self.model if self.large else copy.deepcopy(self.model)
        state = model.state_dict()
        buffers = {name: x for name, x in model.named_buffers() if name.endswith(("inv_freq", "embed_scale"))}
        kept = {name: x.clone() for name, x in buffers.items() if name not in state}
        del state, buffers
        model.to(getattr(torch, dtype))
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")
        for name, x in kept.items():
            model.get_buffer(name).data = x
        tensors = {} if self.large else {name: to_numpy(x) for name, x in model.state_dict().items()}
        return Peer(model, model.config, tensors, self.large)

    def run(
        self, batch: Mapping[str, Array], projections: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """What it gives by our names, those that it has: "logits", "hidden_states.N" and so on; and, by their names,
        gradients of the sum of `projections` times what has their names, where they are given."""
        import torch

        from maskattn_torch.testing.adapter import from_numpy

        dtype = next(self.model.parameters()).dtype
        wide = dtype == torch.float64
        given = {key: from_numpy(x) for key, x in batch.items()}
        given |= {key: given[key].to(dtype) for key in FEATURES & given.keys()}
        with torch.set_grad_enabled(projections is not None), _wide() if wide else nullcontext():
            out = self.model(**given, output_hidden_states=True)
        found = given_by(out)
        # BigBird's hidden states are padded to whole blocks
        most = batch["input_ids"].shape[1] if "input_ids" in batch else None
        found = {key: x[:, :most] if key.startswith("hidden_states.") else x for key, x in found.items()}
        gradients: dict[str, Array] = {}
        if projections is not None:
            every = self.model.named_parameters(remove_duplicate=False)
            held = {name: x for name, x in every if x.requires_grad}
            loss = sum((torch.tensor(x) * found[name]).sum() for name, x in projections.items())
            made = torch.autograd.grad(loss, list(held.values()), allow_unused=True, materialize_grads=True)
            gradients = {name: to_numpy(x) for name, x in zip(held, made, strict=True)}
        return {name: to_numpy(x) for name, x in found.items()}, gradients


#: Inputs of the dtype of a model.
FEATURES = {"pixel_values", "input_values", "input_features"}
#: transformers' names of outputs -> ours.
GIVEN: Mapping[str, str] = {
    "logits": "logits",
    "logits_per_image": "logits",
    "prediction_logits": "logits",
    "last_hidden_state": "hidden",
    "encoder_last_hidden_state": "encoder_hidden",
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
    if getattr(out, "start_logits", None) is not None:
        import torch

        found["logits"] = torch.stack([out.start_logits, out.end_logits], -1)
    for name in ("hidden_states", "decoder_hidden_states", "encoder_hidden_states"):
        states = enumerate(getattr(out, name, None) or ())
        found |= {f"{name.removeprefix('decoder_')}.{n}": x for n, x in states}
    return found


@cache
def _wide() -> Any:
    """What makes float64 of all that a model computes in float32."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Wide(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
            def widened(x: Any) -> Any:
                return torch.float64 if x is torch.float32 else x

            function = torch.Tensor.double if function is torch.Tensor.float else function
            return function(*map(widened, args), **{name: widened(x) for name, x in (named or {}).items()})

    return Wide()


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
