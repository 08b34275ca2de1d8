"""What PyTorch's attention costs around SDPA: short calls in microseconds, bool arrays as masks in milliseconds.

    python benchmarks/overhead.py [--repeat 20] [--json FILE]

Eager, one thread, float32. Beside each call stands `scaled_dot_product_attention` with the same mask in its own form;
`blockwise` stands beside SDPA without a mask. Medians, in alternation, and the ratio.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import torch

import maskattn_torch
from maskattn import masks

SHORT = {"B1 L64 S64": (1, 64, 64), "B1 L1 S1000": (1, 1, 1000)}
LENGTHS = (512, 1024)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, **options).transpose(1, 2)


def arrays(batch: int, q_len: int, kv_len: int, trained: bool) -> list[torch.Tensor]:
    lengths = (q_len, kv_len, kv_len)
    return [torch.randn(batch, length, 4, 64, requires_grad=trained) for length in lengths]


def short(batch: int, q_len: int, kv_len: int, trained: bool) -> dict[str, dict[str, Callable[[], Any]]]:
    """By name, our call and SDPA's."""
    given = arrays(batch, q_len, kv_len, trained)
    lengths = torch.full((batch,), kv_len - kv_len // 4)
    keep = torch.ones(batch, 1, q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
    ours, plain = partial(maskattn_torch.attention, *given), partial(sdpa, *given)
    return {
        "no mask": {"ours": ours, "SDPA": plain},
        "Causal()": {"ours": lambda: ours(masks.Causal()), "SDPA": partial(plain, is_causal=True)},
        "KeyPadding": {
            "ours": lambda: ours(masks.KeyPadding(lengths)),
            "SDPA": lambda: plain(attn_mask=(torch.arange(kv_len) < lengths[:, None])[:, None, None]),
        },
        "bool array": {"ours": partial(ours, keep), "SDPA": partial(plain, attn_mask=keep)},
        "blockwise": {"ours": partial(ours, kernel="blockwise"), "SDPA": plain},
    }


def dense(length: int, trained: bool) -> dict[str, dict[str, Callable[[], Any]]]:
    """By the array, our call and SDPA's; with the backward pass where `trained`."""
    given = arrays(2, length, length, trained)

    def call(function: Callable[[], torch.Tensor]) -> None:
        out = function()
        if trained:
            torch.autograd.grad(out, given, torch.ones_like(out))

    keeps = {
        "causal [B, 1, L, S]": torch.ones(2, 1, length, length, dtype=torch.bool).tril(),
        **{f"random {shape}": torch.rand(*shape, length, length) < 0.5 for shape in ((2, 1), (1, 4), (2, 4))},
    }
    return {
        name: {
            "ours": partial(call, partial(maskattn_torch.attention, *given, keep)),
            "SDPA": partial(call, partial(sdpa, *given, attn_mask=keep)),
        }
        for name, keep in keeps.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    groups = {f"{name}{', training' if t else ''}": short(*s, t) for name, s in SHORT.items() for t in (False, True)}
    groups |= {f"L{n}{', both passes' if t else ''}": dense(n, t) for n in LENGTHS for t in (False, True)}
    for group, cases in groups.items():
        for name, calls in cases.items():
            found = measure.medians(measure.alternate(calls, arguments.repeat))
            results[f"{group}: {name}"] = found | {"ratio": found["ours"] / found["SDPA"]}
            ours, peer = found["ours"] * 1e6, found["SDPA"] * 1e6
            print(f"{group:24} {name:22} ours {ours:9.1f} us   SDPA {peer:9.1f} us   x {ours / peer:.2f}", flush=True)
    measure.write(arguments.json, measure.report(results, ("numpy", "torch"), repeat=arguments.repeat))


if __name__ == "__main__":
    main()
