"""The table of docs/coming-from-flax-transformers.md: what becomes of each Flax class of transformers 4.

    python benchmarks/flax_classes.py

Classes, configurations and trees of parameters are those that `peers/flax_transformers.py` recorded; whether a class
loads is asked of the tables of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from maskattn.checkpoints import TensorInfo
from maskattn.models import ROWS, files
from maskattn.models.forms import of_flax

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests/models/flax_transformers.json"
PAGE = ROOT / "docs/coming-from-flax-transformers.md"
MARKS = "<!-- made by benchmarks/flax_classes.py -->", "<!-- until here -->"
#: Outputs of Flax's classes that there are none of here, and what is said of them.
LOST = {
    "seq_relationship_logits": "without the logits of the next sentence",
    "sop_logits": "without the logits of the order of sentences",
    "projected_states": "without the states of pre-training",
}


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names, joined by slashes, and shapes of a tree of parameters."""
    for name, each in tree.items():
        where = f"{path}/{name}" if path else name
        if isinstance(each, Mapping):
            yield from leaves(each, where)
        else:
            yield where, tuple(each)


def refusal(told: Mapping[str, Any]) -> str:
    """Why a class's checkpoint is not loaded; "" where it is."""
    model_type = told["model_type"]
    if model_type not in ROWS:
        return "two models in one" if model_type.endswith("coder") else "there is no table of it"
    infos = {}
    for name, shape in leaves(told["parameters"]):
        torch_name, order = of_flax(name, len(shape))
        infos[torch_name] = TensorInfo(tuple(shape[axis] for axis in order), np.dtype("float32"))
    source = SimpleNamespace(infos=infos, config=told["config"], where="it")
    try:
        reasons = files.planned(source).reasons
    except ValueError as error:
        return str(error).partition("is refused: ")[2].partition(";")[0]
    return "a part of the model alone" if reasons else ""


def status(told: Mapping[str, Any]) -> str:
    """What the table says of a class."""
    why = refusal(told)
    lost = [said for name, said in LOST.items() if name in told.get("outputs", {})]
    return f"refused: {why}" if why else ", ".join(["loads", *lost])


def table() -> str:
    """The table, between its marks."""
    found = json.loads(RECORDED.read_text(encoding="utf-8"))["classes"]
    lines = ["| transformers 4 | `model_type` | here |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | `{told['model_type']}` | {status(told)} |" for name, told in found.items()]
    return "\n".join([MARKS[0], "", *lines, "", MARKS[1]])


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    PAGE.write_text(before + table() + rest.partition(MARKS[1])[2], encoding="utf-8")


if __name__ == "__main__":
    main()
