"""PyTorch's own attention, and our drop-in for it, called with PyTorch's arguments."""

from __future__ import annotations

import importlib

from maskattn.parity.against.libraries.answer import Answer, Theirs
from maskattn.parity.against.libraries.case import Data
from maskattn.typing import NumPyArray as Array


def module(data: Data, ours: bool) -> Answer:
    """torch.nn.MultiheadAttention, [B, L, E]."""
    import torch

    case, config = data.case, data.config
    params = importlib.import_module("maskattn_torch").params
    bias = config.qkv_bias
    made = torch.nn.MultiheadAttention(
        config.embed_dim, config.num_heads, bias=bias, kdim=config.kdim, vdim=config.vdim, batch_first=True, **case.made
    )
    params.load(made, data.tensors)
    own = importlib.import_module("maskattn_torch.mha").MultiheadAttention.of(made) if ours else made
    own.train(case.trained)
    inputs = [torch.tensor(x, requires_grad=case.trained) for x in data.inputs.values()]
    options = {"need_weights": bool(case.weights), "average_attn_weights": case.weights == "mean", **_tensors(case)}
    with torch.set_grad_enabled(case.trained):
        found, weights = own(*inputs, **options)
    answer = Answer(found.detach().numpy(), weights=None if weights is None else weights.detach().numpy())
    if case.trained:
        held = list(made.parameters())
        gradients = torch.autograd.grad(found, [*inputs, *held], torch.tensor(data.cotangent))
        answer.gradients = {n: g.numpy() for n, g in zip(data.inputs, gradients, strict=False)}
        with torch.no_grad():
            for parameter, gradient in zip(held, gradients[len(inputs) :], strict=True):
                parameter.copy_(gradient)
        answer.gradients |= params.dump(made)
    return answer


def function(data: Data, ours: bool) -> Answer:
    """torch.nn.functional.scaled_dot_product_attention, [B, H, L, D]."""
    import torch

    sdpa: Theirs = torch.nn.functional.scaled_dot_product_attention
    if ours:
        sdpa = importlib.import_module("maskattn_torch").scaled_dot_product_attention
    inputs = [torch.tensor(x, requires_grad=True) for x in data.heads]
    found = sdpa(*(x.transpose(1, 2) for x in inputs), **_tensors(data.case)).transpose(1, 2).flatten(2)
    gradients = torch.autograd.grad(found, inputs, torch.tensor(data.cotangent))
    named = {name: g.flatten(2).numpy() for name, g in zip(data.inputs, gradients, strict=True)}
    return Answer(found.detach().numpy(), named)


def _tensors(case: Theirs) -> dict[str, Theirs]:
    import numpy as np
    import torch

    return {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in case.given.items()}


def twin(data: Data) -> Answer:
    """Our module, under the mask in the algebra."""
    import torch

    ours = importlib.import_module("maskattn_torch")
    own = ours.MultiHeadAttention(data.config)
    ours.params.load(own, data.tensors)
    inputs = [torch.tensor(x, requires_grad=True) for x in data.inputs.values()]
    bias: Array | None = data.case.bias
    given = {"mask": data.case.mask, "bias": None if bias is None else torch.tensor(bias)}
    weights = None
    if data.case.weights:
        found, weights = own(*inputs, **given, return_weights=True)
        weights = data.averaged(weights.detach().numpy())
    else:
        found = own(*inputs, **given)
    held = list(own.parameters())
    gradients = torch.autograd.grad(found, [*inputs, *held], torch.tensor(data.cotangent))
    named = {n: g.numpy() for n, g in zip(data.inputs, gradients, strict=False)}
    with torch.no_grad():
        for parameter, gradient in zip(held, gradients[len(inputs) :], strict=True):
            parameter.copy_(gradient)
    return Answer(found.detach().numpy(), named | ours.params.dump(own), weights)
