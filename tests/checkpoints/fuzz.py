"""Mutated files against every reader: each must be refused by a ValueError, or give right tensors, and nothing else.

    python tests/checkpoints/fuzz.py --cases 100000

Files with hashes: what is read without an error has the bytes that were written. Files without: no crash, no hang, no
other exception. The readers run in processes of their own with bounded memory, so that a crash, a hang or a wild
allocation is told from an error; the case that made it is named.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np

from maskattn import checkpoints

SUFFIXES = (".safetensors", ".safetensors.index.json", ".npz", ".msgpack", ".pt", ".orbax")
MEMORY = 4 * 2**30  # bytes above what the process has when it starts; torch and its threads reserve much
SECONDS = 60  # for one case
MEMORY_DISK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def tensors():
    draw = np.random.default_rng(0)
    return {
        "layer/query/kernel": draw.standard_normal((5, 2, 3)).astype(np.float32),
        "layer/query/bias": draw.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
        "layer/ids": np.arange(7),
        "step": np.array(3, np.int32),
        "flags": np.array([True, False, True]),
    }


def seeds(suffix, folder):
    """Checkpoints of one format: ours, with hashes, and the same without, as another program would write it."""
    ours, plain = folder / f"ours{suffix}", folder / f"plain{suffix}"
    for path in (ours, plain):
        path.parent.mkdir(exist_ok=True, parents=True)
        checkpoints.save(path, tensors(), **({"max_shard_size": 100} if "index" in suffix else {}))
    strip(plain)
    return [ours, plain]


def strip(path):
    """Removes the hashes of a checkpoint by writing it with another program."""
    if path.name.endswith(".safetensors"):
        import safetensors.numpy

        safetensors.numpy.save_file(tensors(), path)
    elif path.name.endswith(".index.json"):
        for shard in path.parent.glob("plain-*.safetensors"):
            with checkpoints.open(shard) as reader:
                content = dict(reader)
            import safetensors.numpy

            safetensors.numpy.save_file(content, shard)
    elif path.suffix == ".npz":
        np.savez_compressed(path, **tensors())
    elif path.suffix == ".msgpack":
        path.with_name(path.name + ".maskattn.json").unlink()
    elif path.suffix == ".pt":
        import torch

        with checkpoints.open(path) as reader:
            content = {name: torch.from_numpy(a.astype(np.float32)) for name, a in reader.items()}
        torch.save({"state_dict": content, "epoch": 3}, path)
    else:
        about = path / "_CHECKPOINT_METADATA"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"custom_metadata": {}}))


def parts(path):
    """The files that make up a checkpoint."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    stem = path.name.partition(".")[0]
    return sorted(file for file in path.parent.iterdir() if file.name.startswith(stem))


def mutate(data, draw):
    """`data` with one to four faults of the kinds that disks, transfers and attackers make."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        # Headers are where readers decide: half of the faults are near an end.
        size = len(data)
        at = draw.randrange(size) if size else 0
        if size and draw.random() < 0.5:
            at = min(size - 1, draw.randrange(64)) if draw.random() < 0.5 else max(0, size - 1 - draw.randrange(256))
        kind = draw.randrange(8)
        if kind == 0 and size:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and size:
            data[at] = draw.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 4:
            del data[at : at + draw.randrange(1, 17)]
        elif kind == 5:
            data[at:at] = data[at : at + draw.randrange(1, 65)]
        elif kind == 6:
            width = draw.choice((1, 2, 4, 8))
            number = (draw.choice(INTERESTING) % 256**width).to_bytes(width, draw.choice(("little", "big")))
            data[at : at + width] = number
        else:
            digits = [i for i, byte in enumerate(data[:100_000]) if 48 <= byte < 58]
            if digits:
                data[draw.choice(digits)] = draw.choice(b"0123456789-e.")
    return bytes(data)


def copy(source, folder):
    """The checkpoint under the same names in an empty folder."""
    for file in parts(source):
        target = folder / file.relative_to(source.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return folder / source.name


def judge(path, written, sealed):
    """Opens a mutated checkpoint in each way; returns whether it was read. AssertionError where it was read wrongly."""
    read = False
    for verify in (True, False):
        try:
            with checkpoints.open(path, verify=verify) as reader:
                found = dict(reader)
        except ValueError as error:
            assert str(error), "an error without a message"
            continue
        read = True
        if verify and sealed and reader.hashes:
            assert set(found) == set(written), f"names {sorted(found)}"
            for name, array in written.items():
                same = (found[name].shape, found[name].dtype, found[name].tobytes())
                assert same == (array.shape, array.dtype, array.tobytes()), f"{name} is read, and wrong"
    return read


def work(suffix, first, last, seed, status):
    """Cases `first` to `last` of one format; the number of each stands in `status` before it runs."""
    warnings.simplefilter("error")
    logging.disable()
    draw = random.Random()
    counted = [0, 0]
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as name, open(status, "wb", buffering=0) as now:
        folder = Path(name)
        sources = seeds(suffix, folder / "seeds")
        written = tensors()
        for source in sources:  # everything is imported and has started its threads before memory is bounded
            assert judge(source, written, sealed=True)
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for case in range(first, last):
            draw.seed(f"{seed} {suffix} {case}")
            os.pwrite(now.fileno(), b"%d" % case, 0)
            faulthandler.dump_traceback_later(SECONDS, exit=True)  # a hang ends the process, and says where it was
            source = draw.choice(sources)
            place = folder / "case"
            place.mkdir()
            path = copy(source, place)
            victim = draw.choice(parts(path))
            victim.write_bytes(mutate(victim.read_bytes(), draw))
            try:
                counted[judge(path, written, sealed=source is sources[0])] += 1
            except Exception as error:
                kept = Path(tempfile.mkdtemp(prefix="fuzz-")) / place.name
                shutil.copytree(place, kept)
                raise RuntimeError(
                    f"case {case} of {suffix}, kept in {kept}: {type(error).__name__}: {error}"
                ) from error
            shutil.rmtree(place)
        faulthandler.cancel_dump_traceback_later()
    print(counted[0], counted[1])


def run(cases, seed=0, batch=5000, suffixes=SUFFIXES):
    """Runs about `cases` cases; returns, for each format, how many were refused and how many were read."""
    totals = {}
    for suffix in suffixes:
        totals[suffix] = [0, 0]
        wanted = -(-cases // len(suffixes))
        for first in range(0, wanted, batch):
            last = min(wanted, first + batch)
            with tempfile.TemporaryDirectory() as folder:
                status = Path(folder, "case")
                command = [sys.executable, __file__, "--work", suffix, str(first), str(last), str(seed), str(status)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if "Timeout (" in done.stderr:  # a hang is one that comes again: a machine may have stood still
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                case = status.read_text() if status.exists() else "none"
            if done.returncode:
                raise AssertionError(
                    f"case {case} of {suffix}, seed {seed}: exit {done.returncode}\n{done.stderr[-3000:]}"
                )
            for i, count in enumerate(done.stdout.split()[-2:]):
                totals[suffix][i] += int(count)
    return totals


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SUFFIXES)
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        suffix, first, last, seed, status = options.work
        work(suffix, int(first), int(last), int(seed), Path(status))
        return
    started = time.monotonic()
    totals = run(options.cases, options.seed, suffixes=(options.only,) if options.only else SUFFIXES)
    for suffix, (refused, read) in totals.items():
        print(f"{suffix:26} {refused:7} refused {read:7} read")
    cases = sum(map(sum, totals.values()))
    print(f"{cases} mutated files in {time.monotonic() - started:.0f} s: no crash, no hang, no other exception")


if __name__ == "__main__":
    main()
