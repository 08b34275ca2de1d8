"""Attention as each library computes it, on the same [B, L, H, D] views: what the benchmarks run in alternation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import maskattn_jax
import maskattn_torch
from maskattn import masks

Array = Any
Call = Callable[[], Any]


@dataclass(frozen=True)
class Problem:
    """Sizes, and the mask as a function of its data, which reach a jitted function as arguments."""

    mask: Callable[..., masks.Mask | None]
    q_len: int
    kv_len: int
    data: tuple[np.ndarray[Any, Any], ...] = ()
    batch: int = 1
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    is_causal: bool = False  # the peers have a word of their own for this mask
    backward: bool = False

    def arrays(self) -> list[np.ndarray[Any, Any]]:
        """query, key, value and a cotangent, float32."""
        rng = np.random.default_rng(0)
        q = (self.batch, self.q_len, self.heads, self.head_dim)
        k = (self.batch, self.kv_len, self.kv_heads, self.head_dim)
        return [rng.standard_normal(shape, np.float32) for shape in (q, k, k, q)]

    def dense(self) -> np.ndarray[Any, Any] | None:
        """The mask as the peers take it: bool [B or 1, H or 1, L, S], or None where they need none."""
        mask = self.mask(*self.data)
        if mask is None or self.is_causal:
            return None
        sizes = (self.batch if "b" in mask.depends else 1, self.heads if "h" in mask.depends else 1)
        return mask.dense(self.q_len, self.kv_len, *sizes)


def chosen(problem: Problem) -> dict[str, str]:
    """The kernel that `auto` chooses in each framework."""
    found = {}
    for name, twin, array in (("jax", maskattn_jax, jnp.asarray), ("torch", maskattn_torch, torch.as_tensor)):
        *qkv, _ = (array(x) for x in problem.arrays())
        found[name] = twin.explain(*qkv, problem.mask(*(array(x) for x in problem.data)))[0]
    return found


def in_jax(problem: Problem, kernels: tuple[str, ...] = ("auto",)) -> dict[str, Call]:
    """Our kernels in JAX, jitted, `jax.nn.dot_product_attention` and Flax NNX's."""
    *qkv, cotangent = (jnp.asarray(x) for x in problem.arrays())
    data = tuple(jnp.asarray(x) for x in problem.data)
    dense = problem.dense()
    peer_mask = None if dense is None else jnp.asarray(dense)

    def run(function: Callable[..., Array], *extra: Array) -> Call:
        def forward_and_backward(q: Array, k: Array, v: Array, cotangent: Array, *extra: Array) -> Any:
            out, pull = jax.vjp(lambda *qkv: function(*qkv, *extra), q, k, v)
            return out, pull(cotangent)

        jitted = jax.jit(forward_and_backward if problem.backward else function)
        arguments = (*qkv, cotangent, *extra) if problem.backward else (*qkv, *extra)
        return lambda: jax.block_until_ready(jitted(*arguments))

    def ours(kernel: str) -> Callable[..., Array]:
        return lambda q, k, v, *data: maskattn_jax.attention(q, k, v, problem.mask(*data), kernel=kernel)

    def jax_nn(q: Array, k: Array, v: Array, mask: Array = None) -> Array:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=problem.is_causal)

    peers = () if peer_mask is None else (peer_mask,)
    calls = {f"jax {kernel}": run(ours(kernel), *data) for kernel in kernels}
    calls["jax.nn"] = run(jax_nn, *peers)
    if not problem.is_causal and problem.heads == problem.kv_heads:
        calls["flax nnx"] = run(lambda q, k, v, mask=None: nnx.dot_product_attention(q, k, v, mask=mask), *peers)
    return calls


def in_torch(problem: Problem, kernels: tuple[str, ...] = ("auto",), flex: bool = False) -> dict[str, Call]:
    """Our kernels in PyTorch, SDPA with a dense mask (`is_causal` where that says it), compiled FlexAttention if asked.

    SDPA and FlexAttention get transposed views of the same [B, L, H, D] tensors.
    """
    *qkv, cotangent = (torch.as_tensor(x) for x in problem.arrays())
    data = tuple(torch.as_tensor(x) for x in problem.data)
    mask = problem.mask(*data)
    dense = problem.dense()
    peer_mask = None if dense is None else torch.as_tensor(dense)
    grouped = problem.heads != problem.kv_heads
    for x in qkv:
        x.requires_grad_(problem.backward)

    def run(function: Callable[..., Array]) -> Call:
        def forward_and_backward() -> Any:
            out = function(*qkv)
            return out, torch.autograd.grad(out, qkv, cotangent)

        return forward_and_backward if problem.backward else lambda: function(*qkv)

    def ours(kernel: str) -> Callable[..., Array]:
        return lambda q, k, v: maskattn_torch.attention(q, k, v, mask, kernel=kernel)

    def sdpa(q: Array, k: Array, v: Array) -> Array:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=peer_mask, is_causal=problem.is_causal, enable_gqa=grouped
        )
        return out.transpose(1, 2)

    calls = {f"torch {kernel}": run(ours(kernel)) for kernel in kernels}
    calls["torch sdpa"] = run(sdpa)
    if flex and not problem.backward:  # FlexAttention has no backward pass on the CPU
        calls["torch flex"] = run(_flex(problem, mask))
    return calls


def _flex(problem: Problem, mask: masks.Mask | None) -> Callable[..., Array]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)
    sizes = (problem.batch, problem.heads, problem.q_len, problem.kv_len)
    blocks = None if mask is None else maskattn_torch.lower.to_block_mask(mask, *sizes)

    def function(q: Array, k: Array, v: Array) -> Array:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return compiled(q, k, v, block_mask=blocks, enable_gqa=problem.heads != problem.kv_heads).transpose(1, 2)

    return function


def product(size: int = 4096) -> dict[str, Call]:
    """A large float32 matrix product in each framework: 2 * size**3 operations."""
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    in_torch, in_jax = torch.as_tensor(a), jnp.asarray(a)
    jitted = jax.jit(jnp.matmul)
    return {
        "torch product": lambda: torch.matmul(in_torch, in_torch),
        "jax product": lambda: jitted(in_jax, in_jax).block_until_ready(),
    }
