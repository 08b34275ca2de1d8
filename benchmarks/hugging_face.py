"""Models of transformers by attn_implementation="maskattn" and "sdpa", at L = 2048: seconds and their ratio.

    python benchmarks/hugging_face.py [--repeat 3] [--json FILE]

Small random models (2 layers of width 256, 4 heads of 64, float32) on the CPU, in one process and in alternation: a
pass over 2 rows of 2048 tokens without gradients, a training step, and one token more with a cache.

The layers are MultiHeadAttention with rotary embedding, and with norms of queries and keys too, beside LlamaAttention
and Qwen3Attention with sdpa, whose cosines and sines were made before: width 512, 8 heads of 64, 2 key/value heads, one
row, causal, one thread; the fastest of the runs counts, of models the median.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import torch
import transformers

import maskattn_torch
from maskattn import masks
from maskattn.layer import Norm, Rotary

ROWS, LENGTH, WINDOW, CACHED = 2, 2048, 512, 2047
IMPLEMENTATIONS = ("maskattn", "sdpa")
SMALL = {
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}


def model(kind: str, implementation: str, **options: Any) -> Any:
    """A model without a head, the same for each implementation."""
    torch.manual_seed(0)
    options = {**SMALL, **({} if kind == "bert" else {"num_key_value_heads": 2}), **options}
    config = transformers.AutoConfig.for_model(kind, **options)
    return transformers.AutoModel.from_config(config, attn_implementation=implementation).eval()


def keep(left: int = 0, right: int = 0) -> torch.Tensor:
    """[ROWS, LENGTH]: the second row has so much padding."""
    found = torch.ones(ROWS, LENGTH, dtype=torch.long)
    found[1, :left] = 0
    found[1, LENGTH - right :] = 0
    return found


def forward(made: Any, attention_mask: torch.Tensor | None) -> None:
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 256
    with torch.no_grad():
        made(ids, attention_mask=attention_mask)


def step(made: Any, attention_mask: torch.Tensor | None) -> None:
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 256
    made(ids, attention_mask=attention_mask).last_hidden_state.sum().backward()
    made.zero_grad()


def decoding(made: Any, attention_mask: torch.Tensor | None) -> Callable[[], None]:
    """One token with CACHED tokens in the cache, which is cut back each time."""
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 256
    with torch.no_grad():
        cut = None if attention_mask is None else attention_mask[:, :CACHED]
        cache = made(ids[:, :CACHED], attention_mask=cut, use_cache=True).past_key_values

    def token() -> None:
        with torch.no_grad():
            made(ids[:, CACHED:], attention_mask=attention_mask, past_key_values=cache)
        cache.crop(-1)

    return token


def cases() -> dict[str, dict[str, Callable[[], Any]]]:
    """By name, one call for each implementation."""
    found: dict[str, dict[str, Callable[[], Any]]] = {}
    window, padded = {"sliding_window": WINDOW}, {"left": LENGTH // 2}
    kinds = {
        "llama": ("llama", {}, None),
        "llama, half a row of padding on the left": ("llama", {}, keep(**padded)),
        f"mistral, window {WINDOW}": ("mistral", window, None),
        f"mistral, window {WINDOW}, half a row of padding on the left": ("mistral", window, keep(**padded)),
        "bert, half a row of padding on the right": ("bert", {}, keep(right=LENGTH // 2)),
    }
    for name, (kind, options, mask) in kinds.items():
        models = {each: model(kind, each, **options) for each in IMPLEMENTATIONS}
        found[f"{name}: forward"] = {each: partial(forward, made, mask) for each, made in models.items()}
        if kind == "mistral":
            found[f"{name}: training step"] = {each: partial(step, made, mask) for each, made in models.items()}
        if kind == "llama":
            found[f"{name}: one token"] = {each: decoding(made, mask) for each, made in models.items()}
    return found


def layers() -> dict[str, dict[str, Callable[[], Any]]]:
    """By name, one call for our layer and one for theirs."""
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    found: dict[str, dict[str, Callable[[], Any]]] = {}
    sizes: dict[str, Any] = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    ours_has: dict[str, Any] = {"num_kv_heads": 2, "qkv_bias": False, "out_bias": False, "rotary": Rotary()}
    kinds: dict[str, Any] = {
        "rotary": (transformers.LlamaConfig, LlamaAttention, {}),
        "rotary and norms": (transformers.Qwen3Config, Qwen3Attention, {"qk_norm": Norm()}),
    }
    for name, (configured, attention, parts) in kinds.items():
        config = configured(**sizes, attn_implementation="sdpa")
        theirs, ours = attention(config, 0), maskattn_torch.MultiHeadAttention(512, 8, **ours_has, **parts)
        for length in (64, 512, 2048):
            x = torch.randn(1, length, 512)
            turns = LlamaRotaryEmbedding(transformers.LlamaConfig(**sizes))(x, torch.arange(length)[None])
            calls = {
                "maskattn": partial(ours, x, mask=masks.Causal()),
                "sdpa": partial(_first_of, theirs, x, position_embeddings=turns, attention_mask=None),
            }
            found[f"layer, {name}, {length} tokens: forward"] = {
                each: torch.no_grad()(call) for each, call in calls.items()
            }
            if length == 512:
                found[f"layer, {name}, {length} tokens: training step"] = {
                    each: partial(_train, module, call)
                    for module, (each, call) in zip((ours, theirs), calls.items(), strict=True)
                }
    return found


def _first_of(layer: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return layer(*arguments, **options)[0]


def _train(module: torch.nn.Module, call: Callable[[], torch.Tensor]) -> None:
    call().sum().backward()
    module.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    maskattn_torch.register()
    results, threads = {}, torch.get_num_threads()
    for made in (cases, layers):
        torch.set_num_threads(1 if made is layers else threads)
        for name, calls in made().items():
            if arguments.only not in name:
                continue
            times = measure.alternate(calls, arguments.repeat)
            taken = {each: min(x) for each, x in times.items()} if made is layers else measure.medians(times)
            results[name] = {**taken, "ratio": taken["maskattn"] / taken["sdpa"]}
            print(
                f"{name:72s} {taken['maskattn'] * 1e3:9.2f} {taken['sdpa'] * 1e3:9.2f} {results[name]['ratio']:6.2f}",
                flush=True,
            )
    torch.set_num_threads(threads)
    settings = {"repeat": arguments.repeat, "rows": ROWS, "length": LENGTH, "model": SMALL}
    measure.write(arguments.json, measure.report(results, ("torch", "transformers"), **settings))


if __name__ == "__main__":
    main()
