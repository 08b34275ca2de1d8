"""Loading a whole model: seconds, and the most memory that it takes beside the model's own bytes.

    python benchmarks/loading.py [--megabytes 300] [--json FILE]

A Llama with random numbers is written as one safetensors file. Each reader then loads it in a new process, three times
in turn: both twins, and transformers' own model. Memory is what the process holds at most (VmHWM, set back before the
call), less what it held before; the limit of the twins is 1.3 times the model's bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import numpy as np

READERS = ("maskattn_jax", "maskattn_torch", "transformers")
WIDTH, INNER, VOCABULARY = 1024, 2816, 16000


def write(folder: Path, megabytes: int) -> int:
    """The model; its bytes."""
    from maskattn import checkpoints, models
    from maskattn.models import files

    each = 4 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": max(1, (megabytes * 10**6 - 8 * VOCABULARY * WIDTH) // each),
        "num_attention_heads": 16,
        "tie_word_embeddings": False,
    }
    draws = np.random.default_rng(0)
    tensors = {
        name: draws.standard_normal(tensor.shape, np.float32)
        for name, tensor in files.tensors_of(models.describe(config)).items()
    }
    checkpoints.save(folder / "model.safetensors", tensors, metadata={"format": "pt"})
    checkpoints.write_json(folder / "config.json", config)
    return sum(x.nbytes for x in tensors.values())


def status(name: str) -> int:
    """What the kernel says of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def load(reader: str, folder: str) -> dict[str, float]:
    """One load in this process."""
    if reader == "transformers":
        import torch
        from transformers import AutoModelForCausalLM

        torch.ones(9) @ torch.ones(9)

        def work() -> object:
            return AutoModelForCausalLM.from_pretrained(folder)
    else:
        import importlib

        twin = importlib.import_module(f"{reader}.models")

        def work() -> object:
            return twin.load(folder)

        if reader == "maskattn_jax":
            import jax

            jax.device_put(np.ones(9)).block_until_ready()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    held = work()
    seconds = time.perf_counter() - start
    del held
    return {"seconds": seconds, "peak": status("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--one", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(load(*arguments.one)))
        return
    found: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
    with tempfile.TemporaryDirectory() as folder:
        total = write(Path(folder), arguments.megabytes)
        for _ in range(3):
            for reader in READERS:
                command = [sys.executable, "-W", "ignore", __file__, "--one", reader, folder]
                made = subprocess.run(command, capture_output=True, text=True, check=True)
                found[reader].append(json.loads(made.stdout.splitlines()[-1]))
    results = {}
    for reader, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        ratio = max(run["peak"] for run in runs) / total
        results[reader] = {"seconds": seconds, "peak_over_bytes": ratio}
        print(f"{reader:16} {seconds:7.2f} s, at most {ratio:.2f} times the model's {total / 1e6:.0f} MB")
    measure.write(arguments.json, measure.report(results, megabytes=arguments.megabytes))


if __name__ == "__main__":
    main()
