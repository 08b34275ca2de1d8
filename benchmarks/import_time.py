"""What importing the library costs: the best of several new interpreters, beside NumPy alone.

    python benchmarks/import_time.py [--repeat 9] [--json FILE]

The times are the cumulative ones of `python -X importtime`, so that starting Python is not counted. The limit for
`import maskattn` is 0.3 s.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

import measure

STATEMENTS = (
    "import numpy",
    "import maskattn",
    "from maskattn import masks, biases",
    "import maskattn.numerics.rng",
    "import maskattn.cli.main",
)
LINE = re.compile(r"import time:\s+\d+ \|\s+(\d+) \|( +)(\S+)")


def seconds(statement: str) -> float:
    """The time one new interpreter spends in a statement's imports."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    outermost = [(match[3], int(match[1])) for match in LINE.finditer(result.stderr) if len(match[2]) == 1]
    # Of the outermost imports only those after `site` are the statement's; the others are Python's own start.
    after = max(index for index, (name, _) in enumerate(outermost) if name == "site") + 1
    return sum(microseconds for _, microseconds in outermost[after:]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for _ in range(arguments.repeat):  # in alternation, so that a slow moment of the machine meets them all
        for statement in STATEMENTS:
            times[statement].append(seconds(statement))
    best = {statement: min(values) for statement, values in times.items()}
    for statement, value in best.items():
        print(f"{value:8.3f} s  {statement}")
    measure.write(arguments.json, measure.report({"best_seconds": best}, repeat=arguments.repeat))


if __name__ == "__main__":
    main()
