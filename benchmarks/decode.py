"""Decoding 512 tokens with room for 4096: what a step of one layer costs, beside Flax's and transformers' own caches.

    python benchmarks/decode.py [--repeat 5] [--batch 1 4] [--json FILE]

float32, greedy steps of one token, eager PyTorch with one thread and jitted JAX. One layer of 8 heads of 64 (in PyTorch
2 key/value heads and rotary embedding, transformers' LlamaAttention with sdpa; in JAX Flax's attention of 8 heads): the
same weights and projections, and in each only the cache and the attention differ. In JAX the cache is donated to every
step. The `module` is MultiHeadAttention given the cache (in PyTorch with rotary embedding, whose turns it makes in each
step, as the LlamaAttention that it is measured by does here). `ragged` are rows of different lengths, which
transformers pads on the left, with a mask. Medians of whole runs of 512 steps, in alternation, in microseconds a step,
and the ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import measure
import numpy as np

from maskattn import masks

TOKENS, SIZE, EMBED, HEADS, KV_HEADS, WIDTH = 512, 4096, 512, 8, 2, 64
#: The window of the rolling cache, and of the window's mask.
WINDOW = 256


def of_torch(batch: int) -> dict[str, Callable[[], None]]:
    """By name, what decodes all tokens."""
    import torch
    from transformers import LlamaConfig
    from transformers.cache_utils import DynamicCache, StaticCache
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding, apply_rotary_pos_emb

    from maskattn.layer import Rotary
    from maskattn_torch import MultiHeadAttention, attention
    from maskattn_torch.cache import Cache

    torch.set_num_threads(1)
    config = LlamaConfig(
        hidden_size=EMBED,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_hidden_layers=1,
        attn_implementation="sdpa",
    )
    layer = LlamaAttention(config, 0).eval()
    tokens = torch.randn(TOKENS, batch, 1, EMBED)
    rotary = LlamaRotaryEmbedding(config)
    options: dict[str, Any] = {"num_kv_heads": KV_HEADS, "qkv_bias": False, "out_bias": False, "rotary": Rotary()}
    module = MultiHeadAttention(EMBED, HEADS, **options).eval()
    turned = rotary(tokens, torch.arange(SIZE)[None])
    turns = [(turned[0][:, i : i + 1], turned[1][:, i : i + 1]) for i in range(TOKENS)]

    def theirs(static: bool, ragged: bool = False) -> None:
        cache = StaticCache(config, SIZE) if static else DynamicCache(config=config)
        keep = None
        missing = torch.arange(batch).flip(0)[:, None]
        if ragged:
            start = torch.zeros(batch, KV_HEADS, batch, WIDTH)
            cache.update(start, start, 0)
        for i, (x, turn) in enumerate(zip(tokens, turns, strict=True)):
            if static:  # a model makes it once for all layers
                keep = (torch.arange(SIZE) <= i)[None, None, None]
            elif ragged:
                keep = (torch.arange(batch + i + 1) > missing)[:, None, None]
            layer(x, position_embeddings=turn, attention_mask=keep, past_key_values=cache)

    def ours(mask: masks.Mask, rolling: bool = False, ragged: bool = False) -> None:
        cache = Cache.empty(batch, WINDOW if rolling else SIZE, KV_HEADS, WIDTH, rolling=rolling)
        if ragged:
            start = torch.zeros(batch, batch, KV_HEADS, WIDTH)
            cache = cache.update(start, start, lengths=torch.arange(batch))
        shape = (batch, 1, -1, WIDTH)
        for x, (cos, sin) in zip(tokens, turns, strict=True):
            query, key = layer.q_proj(x).view(shape), layer.k_proj(x).view(shape)
            query, key = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
            cache = cache.update(key, layer.v_proj(x).view(shape))
            out = attention(query, cache.key, cache.value, cache.mask(mask, 1))
            layer.o_proj(out.flatten(2))

    def their_module() -> None:
        cache = DynamicCache(config=config)
        for i, x in enumerate(tokens):
            turn = rotary(x, torch.tensor([[i]]))
            layer(x, position_embeddings=turn, attention_mask=None, past_key_values=cache)

    def our_module() -> None:
        cache, mask = Cache.for_config(module.config, batch, SIZE), masks.Causal()
        for x in tokens:
            _, cache = module(x, mask=mask, cache=cache)

    window = masks.Causal() & masks.SlidingWindow(WINDOW - 1)

    def quiet(run: Callable[[], None]) -> Callable[[], None]:
        return torch.no_grad()(run)

    return {
        "ours": quiet(lambda: ours(masks.Causal())),
        "ours, ragged": quiet(lambda: ours(masks.Causal(), ragged=True)),
        "ours, window": quiet(lambda: ours(window)),
        "ours, rolling": quiet(lambda: ours(window, rolling=True)),
        "ours, module": quiet(our_module),
        "DynamicCache": quiet(lambda: theirs(static=False)),
        "DynamicCache, module": quiet(their_module),
        "DynamicCache, ragged": quiet(lambda: theirs(static=False, ragged=True)),
        "StaticCache": quiet(lambda: theirs(static=True)),
    }


def of_jax(batch: int) -> dict[str, Callable[[], None]]:
    """By name, what decodes all tokens."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from maskattn_jax import MultiHeadAttention, attention
    from maskattn_jax.cache import Cache

    tokens = list(jnp.asarray(np.random.default_rng(0).standard_normal((TOKENS, batch, 1, EMBED)), jnp.float32))
    linen = nn.MultiHeadDotProductAttention(HEADS, decode=True)
    start = linen.init(jax.random.key(0), jnp.zeros((batch, SIZE, EMBED)))
    weights = start["params"]

    def step_of_linen(cache: Any, x: Any) -> Any:
        out, changed = linen.apply({"params": weights, "cache": cache}, x, mutable=["cache"])
        return changed["cache"], out

    module = nnx.MultiHeadAttention(HEADS, EMBED, decode=True, rngs=nnx.Rngs(0))
    module.init_cache((batch, SIZE, EMBED))
    definition, kept, rest = nnx.split(module, nnx.Cache, ...)

    def step_of_nnx(cache: Any, x: Any) -> Any:
        merged = nnx.merge(definition, cache, rest)
        out = merged(x)
        return nnx.split(merged, nnx.Cache, ...)[1], out

    def project(x: Any, name: str) -> Any:
        return jnp.einsum("ble,ehd->blhd", x, weights[name]["kernel"]) + weights[name]["bias"]

    def ours(mask: masks.Mask) -> Callable[[Any, Any], Any]:
        def step(cache: Any, x: Any) -> Any:
            cache = cache.update(project(x, "key"), project(x, "value"))
            out = attention(project(x, "query"), cache.key, cache.value, cache.mask(mask, 1))
            return cache, jnp.einsum("blhd,hde->ble", out, weights["out"]["kernel"]) + weights["out"]["bias"]

        return step

    inside, state = nnx.split(MultiHeadAttention(EMBED, HEADS, rngs=nnx.Rngs(0)))

    def step_of_module(cache: Any, x: Any) -> Any:
        out, cache = nnx.merge(inside, state)(x, mask=masks.Causal(), cache=cache, deterministic=True)
        return cache, out

    def run(step: Callable[[Any, Any], Any], fresh: Callable[[], Any]) -> Callable[[], None]:
        compiled = jax.jit(step, donate_argnums=0)

        def decode() -> None:
            cache, out = fresh(), None
            for x in tokens:
                cache, out = compiled(cache, x)
            jax.block_until_ready((cache, out))

        return decode

    def copied(cache: Any) -> Any:
        return jax.tree.map(lambda x: x + 0, cache)

    def empty(ragged: bool = False, rolling: bool = False) -> Any:
        cache = Cache.empty(batch, WINDOW if rolling else SIZE, HEADS, WIDTH, rolling=rolling)
        if ragged:
            zeros = jnp.zeros((batch, batch, HEADS, WIDTH))
            cache = cache.update(zeros, zeros, lengths=jnp.arange(batch))
        return cache

    window = masks.Causal() & masks.SlidingWindow(WINDOW - 1)
    return {
        "ours": run(ours(masks.Causal()), empty),
        "ours, ragged": run(ours(masks.Causal()), lambda: empty(ragged=True)),
        "ours, window": run(ours(window), empty),
        "ours, rolling": run(ours(window), lambda: empty(rolling=True)),
        "ours, module": run(step_of_module, empty),
        "Flax Linen": run(step_of_linen, lambda: copied(start["cache"])),
        "Flax NNX": run(step_of_nnx, lambda: copied(kept)),
    }


def peers_of(name: str, steps: dict[str, float]) -> list[float]:
    """What others take for the same: modules for modules and ragged rows for such, where there are any."""
    others = {other: us for other, us in steps.items() if "ours" not in other}
    special = {kind: {other: us for other, us in others.items() if kind in other} for kind in ("module", "ragged")}
    kind = next((kind for kind, found in special.items() if kind in name and found), None)
    plain = {other: us for other, us in others.items() if not any(other in found for found in special.values())}
    return list((plain if kind is None else special[kind]).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--twin", choices=("torch", "jax"), nargs="*", default=["torch", "jax"])
    parser.add_argument("--json")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for twin in options.twin:
        for batch in options.batch:
            calls = (of_torch if twin == "torch" else of_jax)(batch)
            times: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(options.repeat + 1):
                for name, call in calls.items():
                    begin = time.perf_counter()
                    call()
                    if turn:  # the first compiles
                        times[name].append((time.perf_counter() - begin) / TOKENS)
            steps = {name: round(seconds * 1e6, 1) for name, seconds in measure.medians(times).items()}
            ratios = {
                f"{name}, of the faster peer": round(us / min(peers_of(name, steps)), 2)
                for name, us in steps.items()
                if "ours" in name
            }
            results[f"{twin}, batch {batch}"] = {"us_per_step": steps, "ratio": ratios}
            print(f"{twin}, batch {batch}: ", "  ".join(f"{name} {us:.0f}" for name, us in steps.items()))
            print("   ", "  ".join(f"{name}: {ratio:.2f}" for name, ratio in ratios.items()))
    packages = ("numpy", "torch", "transformers", "jax", "flax")
    measure.write(options.json, measure.report(results, packages, tokens=TOKENS, slots=SIZE))


if __name__ == "__main__":
    main()
