"""Derivatives of SDPA's gradients, which SDPA's own kernels have not: those of the formula. (Run on CPUs alone.)"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor as Array

from maskattn.attention import Call
from maskattn.biases import DenseBias
from maskattn.masks import Causal
from maskattn_torch._derivatives import computed, gradients_of
from maskattn_torch.kernels import reference

__all__ = ["twice_differentiable"]

#: Of each of SDPA's kernels the node of its gradients, and what that calls a mask that is added.
_NODES = {
    "ScaledDotProductFlashAttentionForCpuBackward0": "_saved_attn_mask",
    "ScaledDotProductFlashAttentionBackward0": "",
    "ScaledDotProductEfficientAttentionBackward0": "_saved_attn_bias",
    "ScaledDotProductCudnnAttentionBackward0": "_saved_attn_bias",
}
#: The one whose causal mask ends where the keys end.
_END_ALIGNED = "ScaledDotProductFlashAttentionBackward0"


def twice_differentiable(out: Array) -> None:
    """Let the gradients through `out`, what SDPA gave, be differentiated again. They keep their bits.

    What is needed then is read from the graph's own node, so that nothing is kept longer than without this.
    """
    node = out.grad_fn
    if node is not None and node.name() in _NODES:
        node.register_hook(_again)


def _again(gradients: tuple[Array | None, ...], cotangents: tuple[Array | None, ...]) -> Any:
    d_out = cotangents[0]
    if not torch.is_grad_enabled() or d_out is None:
        return None
    node: Any = torch._C._current_autograd_node()
    mask = getattr(node, _NODES[node.name()], None)
    causal, scale = node._saved_is_causal, node._saved_scale
    lengths = node._saved_query.shape[-2], node._saved_key.shape[-2]
    offset = lengths[1] - lengths[0] if node.name() == _END_ALIGNED else 0
    wanted = [n for n, x in enumerate(gradients) if x is not None]

    def formula(query: Array, key: Array, value: Array, added: Array | None) -> tuple[Array]:
        bias = None if added is None else DenseBias(added.reshape((1,) * (4 - added.ndim) + added.shape))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        scaled = query.shape[-1] ** -0.5 if scale is None else scale
        output, _ = reference.by_rows(Call(query, key, value, Causal(offset) if causal else None, bias, scaled))
        return (output.transpose(1, 2),)

    def again(*given: Any) -> list[Array]:
        found = gradients_of(formula, 4)(*given[:5])
        return [found[n] for n in wanted]

    given = (node._saved_query, node._saved_key, node._saved_value, mask, d_out)
    results = computed(
        lambda *given: [x.clone() for x in given[5:]], again, *given, *(x.detach() for x in gradients if x is not None)
    )
    replaced = dict(zip(wanted, results, strict=True))
    return tuple(replaced.get(n) for n in range(len(gradients)))
