"""What every benchmark shares: runs in alternation, medians, the machine, and one form of report."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

Name = TypeVar("Name")

#: Seconds of rest before a call, and that the calls of one figure take at least.
SETTLE, SPAN = 0.1, 0.02


def alternate(calls: Mapping[Name, Callable[[], Any]], repeat: int, warm_up: int = 1) -> dict[Name, list[float]]:
    """Seconds of each call, `repeat` times, one after the other, so that a slow moment of the machine meets them all.

    A call returns when its result is there. What the first `warm_up` rounds take is not counted. Before it is timed,
    each call waits until the system has taken back what the one before it left (for half a gigabyte of scores one core
    needs 50 ms), and is made untimed: it would otherwise find caches, memory and threads as the other left them. Calls
    shorter than `SPAN` are made several times, and the mean counts.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    console = Console(stderr=True)
    for turn in track(range(warm_up + repeat), console=console, transient=True, disable=not console.is_terminal):
        for name, call in calls.items():
            time.sleep(SETTLE)
            _mean(call)
            seconds = _mean(call)
            if turn >= warm_up:
                times[name].append(seconds)
    return times


def _mean(call: Callable[[], Any]) -> float:
    count, start, seconds = 0, time.perf_counter(), 0.0
    while seconds < SPAN:
        call()
        count, seconds = count + 1, time.perf_counter() - start
    return seconds / count


def medians(times: Mapping[Name, list[float]]) -> dict[Name, float]:
    """The median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def report(results: Any, packages: tuple[str, ...] = ("numpy",), **settings: Any) -> dict[str, Any]:
    """Results with what is needed to read them: settings, versions, the day, machine and threads."""
    found: dict[str, Any] = {**settings, "results": results, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["date"] = datetime.date.today().isoformat()
    found |= {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()}
    if "torch" in packages:
        import torch

        found["torch_threads"] = torch.get_num_threads()
    return found


def write(path: str | Path | None, found: Mapping[str, Any]) -> None:
    """The report as JSON, if a path was given."""
    if path is None:
        return
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=2)
        file.write("\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
