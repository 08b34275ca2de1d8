"""What converting a checkpoint costs beside copying it: Llama shapes in bfloat16, from Hugging Face's form to Flax's.

    python benchmarks/convert.py [--size 2 8] [--files single sharded] [--repeat 3] [--folder DIR] [--json FILE]

A plain copy of the same bytes and the conversion run in turn, each synced to the disk. Every matrix is transposed,
every tensor hashed, and the source's files are hashed too. Each conversion has a process of its own, whose peak of
resident memory is compared with what it held before. The checkpoints are made on the spot, in a folder that is removed
afterwards. Results of other sizes in FILE are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import ml_dtypes
import numpy as np

from maskattn import checkpoints
from maskattn.checkpoints import TensorInfo
from maskattn.convert import plan, run

WIDTH, INNER, VOCABULARY, HEADS, KV_HEADS, HEAD = 2048, 8192, 32768, 32, 8, 64
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHARD = 500_000_000
CONFIG = {"model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}


def shapes(gigabytes: float) -> dict[str, TensorInfo]:
    """As many layers as make up ``gigabytes``; everything else is the same whatever the size."""
    whole = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
        "self_attn.q_proj.weight": (HEADS * HEAD, WIDTH),
        "self_attn.k_proj.weight": (KV_HEADS * HEAD, WIDTH),
        "self_attn.v_proj.weight": (KV_HEADS * HEAD, WIDTH),
        "self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
        "mlp.gate_proj.weight": (INNER, WIDTH),
        "mlp.up_proj.weight": (INNER, WIDTH),
        "mlp.down_proj.weight": (WIDTH, INNER),
    }
    fixed = sum(TensorInfo(shape, BFLOAT16).nbytes for shape in whole.values())
    each = sum(TensorInfo(shape, BFLOAT16).nbytes for shape in layer.values())
    number = max(1, round((gigabytes * 1e9 - fixed) / each))
    whole |= {f"model.layers.{i}.{name}": shape for i in range(number) for name, shape in layer.items()}
    return {name: TensorInfo(shape, BFLOAT16) for name, shape in (whole | {"model.norm.weight": (WIDTH,)}).items()}


def make(folder: Path, gigabytes: float, sharded: bool) -> Path:
    infos = shapes(gigabytes)
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 2**16, max(info.nbytes for info in infos.values()) // 2, np.uint16)
    limit = SHARD if sharded else None
    with checkpoints.create(folder / "model.safetensors", infos, max_shard_size=limit) as writer:
        for name in writer.order:
            count = infos[name].nbytes // 2
            writer.write(name, bits[:count].view(BFLOAT16).reshape(infos[name].shape))
        return writer.path


def copy(source: Path, target: Path) -> float:
    """Seconds to copy every file of ``source``'s folder, synced."""
    start = time.perf_counter()
    target.mkdir()
    for file in sorted(source.parent.iterdir()):
        with open(file, "rb", buffering=0) as read, open(target / file.name, "wb", buffering=0) as write:
            shutil.copyfileobj(read, write, 2**24)
            os.fsync(write.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def convert(source: Path, target: Path) -> dict[str, float]:
    """Converts in this process: seconds, and the peak of resident memory above what was held before, in bytes."""
    before = resident("VmRSS")
    start = time.perf_counter()
    with checkpoints.open(source) as reader:
        planned = plan(reader.infos, target="flax-linen", config=CONFIG)
        sharded = SHARD if source.name.endswith(".json") else None
        run(planned, reader, target, max_shard_size=sharded)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": resident("VmHWM") - before, "planned_bytes": planned.peak_memory}


def resident(field: str) -> int:
    """Bytes of resident memory of this process, now ("VmRSS") or at most so far ("VmHWM")."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measured(folder: Path, gigabytes: float, sharded: bool, repeat: int) -> dict[str, float]:
    source_folder = folder / "source"
    source_folder.mkdir()
    source = make(source_folder, gigabytes, sharded)
    infos = shapes(gigabytes)
    total = sum(info.nbytes for info in infos.values())
    copies, conversions = [], []
    for _ in range(repeat + 1):  # the first warms up
        copies.append(copy(source, folder / "copied"))
        (folder / "converted").mkdir()
        command = [sys.executable, __file__, "--convert", str(source), str(folder / "converted" / "model.safetensors")]
        conversions.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        shutil.rmtree(folder / "converted")
    shutil.rmtree(source_folder)
    copied = statistics.median(copies[1:])
    converted = statistics.median(run["seconds"] for run in conversions[1:])
    largest = max(info.nbytes for info in infos.values())
    peak = max(run["peak_bytes"] for run in conversions)
    return {
        "bytes": total,
        "tensors": len(infos),
        "largest_tensor": largest,
        "copy_gigabytes_per_second": total / copied / 1e9,
        "convert_gigabytes_per_second": total / converted / 1e9,
        "ratio": copied / converted,
        "peak_bytes": peak,
        "planned_bytes": conversions[0]["planned_bytes"],
        "allowed_bytes": 512 * 2**20 + 2 * largest,
        "repeat": repeat,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, nargs="+", default=[2, 8], metavar="GB")
    parser.add_argument("--files", nargs="+", choices=["single", "sharded"], default=["single", "sharded"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--convert", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        print(json.dumps(convert(*arguments.convert)))
        return
    needed = int(3.1e9 * max(arguments.size))
    free = shutil.disk_usage(arguments.folder or tempfile.gettempdir()).free
    if free < needed:
        raise SystemExit(f"needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free; --folder names another")
    results = json.loads(arguments.json.read_text())["results"] if arguments.json and arguments.json.exists() else {}
    for size in arguments.size:
        for files in arguments.files:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                row = measured(Path(folder), size, files == "sharded", arguments.repeat)
            results[f"{size:g} GB, {files}"] = row
            print(
                f"{size:g} GB {files:8} copy {row['copy_gigabytes_per_second']:.2f} GB/s  "
                f"convert {row['convert_gigabytes_per_second']:.2f} GB/s  ratio {row['ratio']:.2f}  "
                f"peak {row['peak_bytes'] / 2**20:.0f} MiB of {row['allowed_bytes'] / 2**20:.0f} allowed",
                flush=True,
            )
    form = {"from": "hf-llama", "to": "flax-linen", "dtype": "bfloat16", "file": "safetensors"}
    measure.write(arguments.json, measure.report(results, form=form))


if __name__ == "__main__":
    main()
