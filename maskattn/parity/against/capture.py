"""A small model of Hugging Face at random, run once: what each attention layer was given, gave, and its gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskattn.convert import layouts
from maskattn.parity.against.families import Family, Site
from maskattn.typing import NumPyArray as Array

if TYPE_CHECKING:
    import torch
    from torch import nn

#: What a module is given and gives, by name.
Seen = dict[str, Any]


@dataclass
class Captured:
    """One layer as Hugging Face ran it.

    Attributes:
        query, key: what it was given, [B, L, E]; key is query in self-attention.
        relative: the table of relative positions it was given.
        keys: bool [B, S], the tokens that are no padding. rows: [B, L] likewise, the outputs that are compared.
        tensors: its parameters, by names without prefix.
        output: [B, L, out]. cotangent: of the output, 0 where it is not compared.
        gradients: of query, key (where it is another) and every tensor, by name.
    """

    query: Array
    key: Array
    relative: Array | None
    keys: Array
    rows: Array
    global_tokens: Array | None
    tensors: dict[str, Array]
    output: Array
    cotangent: Array
    gradients: dict[str, Array] = field(default_factory=dict)


def configuration(family: Family) -> Any:
    """The configuration of transformers."""
    import transformers

    return getattr(transformers, family.model).config_class(**family.config)


def capture(family: Family, seed: int = 0) -> tuple[Any, list[Captured]]:
    """A model's configuration, and its layers as they ran: eager attention, float32, evaluation."""
    import torch
    import transformers

    config = configuration(family)
    torch.manual_seed(seed)
    with quiet():
        model = getattr(transformers, family.model)._from_config(config, attn_implementation="eager").eval()
    _draw(model, seed)
    given, valid = _inputs(family, config, seed)
    seen: list[Seen] = []
    handles = []
    for site in family.sites:
        found: Seen = {}
        seen.append(found)
        enters = model.get_submodule((site.prefix + site.enters).rstrip("."))
        handles.append(enters.register_forward_pre_hook(_entering(found, enters), with_kwargs=True))
        leaves = model.get_submodule(site.prefix + family.out)
        handles.append(leaves.register_forward_hook(lambda module, args, out, found=found: found.update(output=out)))
    try:
        model(**given)
    finally:
        for handle in handles:
            handle.remove()
    made = [_captured(family, site, model, found, valid) for site, found in zip(family.sites, seen, strict=True)]
    return config, made


def _draw(model: nn.Module, seed: int) -> None:
    """Every parameter anew: those that begin as ones or zeros would hide how they are used."""
    import torch

    draws = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=draws)
            if parameter.ndim > 1 and "logit_scale" not in name:
                fan = parameter.shape[-1]
                parameter.copy_(values * (1.0 if "embed" in name or "table" in name else fan**-0.5 * 1.3))
            else:
                parameter.add_(0.4 * values)


def _inputs(family: Family, config: Any, seed: int) -> tuple[Seen, dict[str, Array]]:
    """What the model is called with, and which tokens count, by part ("" of a model of one stack)."""
    import torch

    draws, length = torch.Generator().manual_seed(seed + 2), family.length
    if family.inputs == "pixels":
        side = config.image_size
        return {"pixel_values": torch.randn(2, 3, side, side, generator=draws)}, {}

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(5, 95, (2, count), generator=draws)

    if family.inputs == "sound":
        frames = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions, generator=draws)
        return {"input_features": frames, "decoder_input_ids": tokens(length - 4)}, {}
    valid = np.ones((2, length), bool)
    if family.padding == "right":
        valid[1, -3:] = False
    elif family.padding == "left":
        valid[1, :3] = False
    given = {"input_ids": tokens(length), "attention_mask": torch.tensor(valid).long()}
    if family.inputs == "tokens, tokens":
        given["decoder_input_ids"] = tokens(length - 4)
    if family.globals:
        marked = torch.zeros(2, length, dtype=torch.long)
        marked[:, list(family.globals)] = 1
        given["global_attention_mask"] = marked
    return given, {"": valid, "encoder": valid}


def _entering(found: Seen, module: nn.Module) -> Callable[..., tuple[tuple[object, ...], Seen]]:
    """A hook that keeps what a layer is given, as leaves of its gradients."""
    signature = inspect.signature(module.forward)

    def enter(module: nn.Module, args: tuple[object, ...], kwargs: Seen) -> tuple[tuple[object, ...], Seen]:
        bound = signature.bind(*args, **kwargs)
        held = bound.arguments
        found["query"] = held["hidden_states"] = held["hidden_states"].detach().requires_grad_()
        for name in ("key_value_states", "encoder_hidden_states"):
            if held.get(name) is not None:
                found["key"] = held[name] = held[name].detach().requires_grad_()
        if held.get("rel_embeddings") is not None:
            found["relative"] = held["rel_embeddings"] = held["rel_embeddings"].detach()
        return bound.args, bound.kwargs

    return enter


def _captured(family: Family, site: Site, model: nn.Module, found: Seen, valid: dict[str, Array]) -> Captured:
    import torch

    query, output = found["query"], found["output"]
    output = output.reshape(*query.shape[:2], -1)
    key: torch.Tensor = found["key"] if "key" in found else query
    ones = {length: np.ones((query.shape[0], length), bool) for length in (query.shape[1], key.shape[1])}
    rows = valid.get(site.part or "", ones[query.shape[1]])
    keys = valid.get("encoder" if site.part == "cross" else site.part or "", ones[key.shape[1]])
    draws = np.random.default_rng(site.layer + 7)
    cotangent = draws.standard_normal(output.shape).astype(np.float32) * rows[..., None]
    parameters = {n[len(site.prefix) :]: x for n, x in model.named_parameters() if n.startswith(site.prefix)}
    named = {name: parameters[name] for name in _held(family, parameters)}
    wanted = {"query": query} | ({} if key is query else {"key": key}) | named
    gradients = torch.autograd.grad(
        output, list(wanted.values()), torch.tensor(cotangent), retain_graph=True, allow_unused=True
    )
    tokens = None
    if family.globals:
        tokens = np.zeros(rows.shape, bool)
        tokens[:, list(family.globals)] = True
    relative = found.get("relative")
    array = query.detach().numpy()
    return Captured(
        array,
        array if key is query else key.detach().numpy(),
        None if relative is None else relative.reshape(-1, relative.shape[-1]).numpy(),
        keys,
        rows,
        tokens,
        {name: parameter.detach().numpy() for name, parameter in named.items()},
        output.detach().numpy(),
        cotangent,
        {
            name: np.zeros(tuple(x.shape), np.float32) if gradient is None else gradient.numpy()
            for (name, x), gradient in zip(wanted.items(), gradients, strict=True)
        },
    )


def _held(family: Family, names: Iterable[str]) -> list[str]:
    """Those of the names below a layer's prefix that are attention's."""
    kind = layouts.get(family.layout)
    known = {entry.name for entry in kind.projections} | {extra.name for extra in kind.extras}
    return [name for name in names if name in known]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers says; as it was afterwards."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
