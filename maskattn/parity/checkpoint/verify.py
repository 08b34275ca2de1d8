"""A checkpoint whose model is not known: its attention layers in both twins, bit for bit, and beside an oracle."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from maskattn import checkpoints, standards
from maskattn.config import AttentionConfig
from maskattn.convert import config_json
from maskattn.convert.compare import Compared
from maskattn.convert.layouts import Layout
from maskattn.convert.twins import both, random_inputs
from maskattn.parity.checkpoint.against import compare
from maskattn.parity.checkpoint.layers import canonical_layer, find
from maskattn.parity.checkpoint.result import CheckpointResult, Layer
from maskattn.parity.findings import bits_equal
from maskattn.typing import NumPyArray as Array

Progress = Callable[[str], None]

LENGTHS = (9, 4, 1)
"""Of the random sequences; the longest is the length they are padded to."""
ABOUT = (
    "compared too: that live modules hold the file's bytes; in exact arithmetic, which is judged as well, that both "
    "twins give the same bits, and each sequence by itself, without padding, those of its rows in the padded batch"
)


def verify_checkpoint(
    path: str | os.PathLike[str],
    *,
    layout: str = "auto",
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    kernel: str = "reference",
    against: str | os.PathLike[str] | None = None,
    against_layout: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckpointResult:
    """Every attention layer of a checkpoint in both twins, on random padded inputs of its dtype.

    Args:
        path: what ``checkpoints.open`` opens.
        layout: its layout, or ``"auto"`` where exactly one fits.
        num_heads, num_kv_heads: needed where the layout does not store them; taken from ``config.json`` beside the
            checkpoint where not given.
        kernel: judged against the float64 oracle, beside ``exact``, in which the twins must be bit-equal.
        against, against_layout: another checkpoint, which must hold the same canonical tensors byte for byte.
        seed: of the random inputs.
        progress: called with the name of each layer when it is begun.

    Raises:
        ValueError: no layer, several layouts that fit, a layer that is not what its layout calls for, unknown heads.
    """
    found_heads = config_json.heads(config_json.beside(Path(path)))
    num_heads = found_heads[0] if num_heads is None else num_heads
    num_kv_heads = found_heads[1] if num_kv_heads is None else num_kv_heads
    difference = None
    if against is not None:
        heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
        difference = compare(path, against, layout=layout, against_layout=against_layout, **heads)
    results = []
    with checkpoints.open(path) as reader:
        kind, configs, tensors = find(reader, layout, num_heads, num_kv_heads)
        for prefix, config in configs.items():
            if progress is not None:
                progress(prefix)
            results.append(_verify_layer(prefix, kind, tensors(prefix), config, kernel, seed))
    described = f"random, lengths {', '.join(map(str, LENGTHS))}, padded, seed {seed}"
    return CheckpointResult(
        str(path),
        kind.name,
        "float64 oracle",
        described,
        tuple(results),
        (ABOUT,),
        None if against is None else str(against),
        difference,
        kernel,
    )


def _verify_layer(
    prefix: str, kind: Layout, tensors: Mapping[str, Array], config: AttentionConfig, kernel: str, seed: int
) -> Layer:
    """One layer in both twins; tensors by their names without prefix."""
    canonical = canonical_layer(kind, tensors, config, prefix)
    beside = list(kind.extras_of(tensors, config))
    if beside:
        raise ValueError(f"layer {prefix!r} holds {', '.join(beside)}: what is run here is attention without them")
    dtype = canonical["query.kernel"].dtype
    lengths = np.array(LENGTHS, np.int32)
    inputs, others = random_inputs(config, LENGTHS, dtype, seed)
    allowed = (np.arange(max(LENGTHS)) < lengths[:, None])[:, None, None, :]
    right = standards.module_oracle(inputs[0], canonical, allowed, dtype.name, **others)
    limit = standards.module_limit(inputs[0], canonical, allowed, dtype.name, **others)
    modules = both(tensors, kind.name, config)
    weights = []
    for module in modules:
        held = module.dump()
        subject = f"{module.name} module = checkpoint"
        weights += [bits_equal("weights", subject, name, held[name], canonical[name]) for name in canonical]
    exact, judged, alone = {}, dict[str, Compared](), []
    for judged_kernel in dict.fromkeys((kernel, "exact")):
        for module in modules:
            output = module(inputs, lengths, judged_kernel)
            one = _judge(judged_kernel, output, right, limit)
            judged[module.name] = max(judged.get(module.name, one), one, key=lambda each: each.share)
            if judged_kernel == "exact":
                exact[module.name] = output
    for module in modules:
        rows = [module(tuple(x[b : b + 1, :n] for x in inputs), None, "exact") for b, n in enumerate(lengths)]
        together = [exact[module.name][b : b + 1, :n] for b, n in enumerate(lengths)]
        left, padded = (np.concatenate([x.reshape(-1) for x in part]) for part in (rows, together))
        alone.append(bits_equal("alone", f"{module.name}, alone = padded batch", "output", left, padded))
    twin = bits_equal("twins", "torch = jax", "output", exact["torch"], exact["jax"])
    failed = (each for each in (*weights, twin, *alone) if not each.held)
    wrong = next((f"{each.quantity}: {each.message} ({each.subject})" for each in failed), "")
    return Layer(prefix, judged, None, twin.differing, wrong)


def _judge(kernel: str, output: Array, right: Array, limit: Array) -> Compared:
    error = np.abs(output.astype(np.float64) - right)
    error = standards.beyond_rounding(error, right, output.dtype)
    share = standards.share(error, limit)
    at = int(np.argmax(np.nan_to_num(error, nan=np.inf)))
    return Compared(kernel, float(error.flat[at]), float(limit.flat[at]), float(share.max(initial=0)))
