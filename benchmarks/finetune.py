"""A real model fine-tuned in both twins, step for step: how far apart losses and parameters are in the end.

    python benchmarks/finetune.py [--json FILE]

all-MiniLM-L6-v2 learns which paragraph of Python's own language reference follows which: each of 8 paragraphs is to
find the one behind it (`losses.contrastive` of the pooled vectors). AdamW by torch.optim and by optax, 20 steps, five
times through 4 batches, with dropout, the same key for each step. A third run, in float64, shows how much of the
difference is rounding. Then each twin's model is saved, and read by both, by transformers, and by sentence-transformers
where that is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax
import torch
from flax import nnx
from transformers import AutoModel, AutoTokenizer

import maskattn_jax
import maskattn_torch
from maskattn import rng
from maskattn.parity.checkpoint.minilm import checkpoint_folder, quiet

STEPS, PAIRS, BATCHES, LENGTH, SEED = 20, 8, 4, 48, 7
# Powers of two, so that both libraries' rules for the decay round alike: docs/training.md says why.
RATE, DECAY, EPSILON = 2.0**-15, 2.0**-6, 1e-8
RUNS = ("jax", "torch", "float64")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def pairs() -> list[tuple[str, str]]:
    """The first two paragraphs of each topic that has two, as plain prose."""
    found = []
    for text in topics.values():
        blocks = [" ".join(block.split()) for block in text.split("\n\n") if not block.startswith((" ", "*", "="))]
        prose = [block for block in blocks if len(block) > 80 and "***" not in block]
        found += [(prose[0], prose[1])] if len(prose) > 1 else []
    return found


def batches(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and attention masks, [2 * PAIRS, LENGTH] each: the first paragraphs, then those behind them."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for step in range(STEPS):
        first = step % BATCHES * PAIRS
        chosen = pairs()[first : first + PAIRS]
        texts = [pair[side] for side in (0, 1) for pair in chosen]
        made = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np")
        yield made["input_ids"], made["attention_mask"]


def key(step: int) -> np.ndarray:
    """What each step's dropout draws from."""
    return rng.fold_in(rng.key(SEED), step)


def in_torch(folder: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, list[float]]:
    """The model after all steps, and the loss before each."""
    model = maskattn_torch.models.load(folder, param_dtype=dtype).train()
    rule = {"lr": RATE, "weight_decay": DECAY, "eps": EPSILON}
    optimizer, found = torch.optim.AdamW(model.parameters(), **rule), []
    for step, (tokens, mask) in enumerate(batches(folder)):
        vectors = model(torch.tensor(tokens), torch.tensor(mask), dropout_key=key(step)).pooled
        loss = maskattn_torch.losses.contrastive(vectors[:PAIRS], vectors[PAIRS:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
        print(f"PyTorch, {dtype}: step {step + 1}, loss {found[-1]:.4f}", flush=True)
    return model.eval(), found


def in_jax(folder: Path) -> tuple[nnx.Module, list[float]]:
    """The same."""
    model, found = maskattn_jax.models.load(folder, scan_layers=True), []
    rule = optax.adamw(RATE, weight_decay=DECAY, eps=EPSILON)
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)

    @nnx.jit
    def update(model: Any, optimizer: Any, tokens: Any, mask: Any, key: Any) -> jax.Array:
        def loss(model: Any) -> jax.Array:
            vectors = model(tokens, mask, dropout_key=key).pooled
            return maskattn_jax.losses.contrastive(vectors[:PAIRS], vectors[PAIRS:])

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    for step, (tokens, mask) in enumerate(batches(folder)):
        found.append(float(update(model, optimizer, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(key(step)))))
        print(f"JAX: step {step + 1}, loss {found[-1]:.4f}", flush=True)
    return model, found


def numbers(folder: Path) -> dict[str, np.ndarray]:
    """A saved model's parameters, but for key biases, whose gradient is zero in exact arithmetic, and the pooler, which
    nothing reads: optax lets it decay, and torch.optim leaves alone what has no gradient.
    """
    from safetensors.numpy import load_file

    found = {name: x for name, x in load_file(folder / "model.safetensors").items() if x.dtype.kind == "f"}
    return {name: x.astype(np.float64) for name, x in found.items() if "key.bias" not in name and "pooler" not in name}


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of a tensor, norm by norm, and of all tensors together."""
    each = {name: np.linalg.norm(x - other[name]) / np.linalg.norm(other[name]) for name, x in one.items()}
    total = np.sqrt(sum(np.linalg.norm(x - other[name]) ** 2 for name, x in one.items()))
    whole = np.sqrt(sum(np.linalg.norm(x) ** 2 for x in other.values()))
    return {"largest": float(max(each.values())), "all": float(total / whole)}


def read_by(folder: Path) -> dict[str, float]:
    """Of a saved folder, how far both twins are from transformers' hidden states and sentence-transformers' vectors."""
    tokens, mask = next(batches(folder))
    given = torch.tensor(tokens), torch.tensor(mask)
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(folder, local_files_only=True).eval()(*given).last_hidden_state.numpy()
        twins = {"maskattn_torch": maskattn_torch.models.load(folder)(*given)}
    twins["maskattn_jax"] = maskattn_jax.models.load(folder)(tokens, mask)
    kept = mask[..., None] != 0
    found = {
        f"{twin} from transformers": float(np.abs((out.hidden - theirs) * kept).max()) for twin, out in twins.items()
    }
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        encoder.max_seq_length = LENGTH
        vectors = encoder.encode([pair[side] for side in (0, 1) for pair in pairs()[:PAIRS]])
        for twin, out in twins.items():
            found[f"{twin} from sentence-transformers"] = float(np.abs(np.asarray(out.pooled) - vectors).max())
    return found


def trained(name: str, place: Path) -> None:
    """One of the runs: its losses and its model go into a folder, with what else others read there."""
    folder = checkpoint_folder()
    if name == "jax":
        model, losses = in_jax(folder)
        maskattn_jax.models.save(model, place)
    else:
        model, losses = in_torch(folder, torch.float64 if name == "float64" else torch.float32)
        maskattn_torch.models.save(model, place)
    for file in TOKENIZER:
        shutil.copy(folder / file, place)
    (place / "losses.json").write_text(json.dumps(losses))


def compared(places: dict[str, Path]) -> dict[str, Any]:
    """What the runs, by their names, left in their folders."""
    held = {name: numbers(place) for name, place in places.items()}
    losses = {name: json.loads((place / "losses.json").read_text()) for name, place in places.items()}
    two = {f"{one} against {other}": (one, other) for one, other in itertools.combinations(RUNS, 2)}
    differences = {
        said: [abs(x - y) / y for x, y in zip(losses[one], losses[other], strict=True)]
        for said, (one, other) in two.items()
    }
    return {
        "losses": losses,
        "differences": differences,
        "largest difference of losses": {said: max(each) for said, each in differences.items()},
        "parameters": {said: apart(held[one], held[other]) for said, (one, other) in two.items()},
        "moved": apart(held["torch"], numbers(checkpoint_folder())),
        "read again": {name: read_by(places[name]) for name in ("torch", "jax")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("RUN", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.one:
        trained(arguments.one[0], Path(arguments.one[1]))
        return
    with quiet(), tempfile.TemporaryDirectory() as kept:
        places = {name: Path(kept) / name for name in RUNS}
        for name, place in places.items():
            subprocess.run([sys.executable, __file__, "--one", name, str(place)], check=True)
        results = compared(places)
    for name in ("largest difference of losses", "parameters", "moved", "read again"):
        print(f"{name}: {json.dumps(results[name])}")
    packages = ("jax", "flax", "optax", "torch", "transformers", "sentence-transformers")
    settings = {"steps": STEPS, "pairs": PAIRS, "batches": BATCHES, "length": LENGTH}
    settings |= {"learning_rate": RATE, "weight_decay": DECAY}
    measure.write(arguments.json, measure.report(results, packages, **settings))


if __name__ == "__main__":
    main()
