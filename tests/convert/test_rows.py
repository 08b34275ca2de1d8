"""Every row of whole models: what transformers saves goes to another form and back, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskattn import checkpoints
from maskattn.convert import families, open_model, plan, run
from maskattn.models import ROWS
from maskattn.parity.models.tiny import TINY
from tests.convert.saved_models import saved
from tests.twin import same_tensors


def converted(source: Path, target: str, there: Path, **options: Any) -> Any:
    """Written in another form, with its config.json."""
    config = json.loads((source / "config.json").read_bytes())
    with checkpoints.open(source) as reader:
        planned = plan(reader.infos, target=target, config=config, provenance=reader.provenance, **options)
        run(planned, reader, there)
    return planned


def rows(*, variants: bool) -> list[Any]:
    """The first row of each type, or all others."""
    return [name for name in TINY if ("+" in name) is variants]


@pytest.mark.parametrize(
    "name", [*rows(variants=False), *(pytest.param(n, marks=pytest.mark.slow) for n in rows(variants=True))]
)
def test_a_row_goes_to_flax_and_back_and_is_the_same_model(name: str, tmp_path: Path) -> None:
    source, there = saved(name, "float32", tmp_path / "source")[0], tmp_path / "there"
    there.mkdir()
    planned = converted(source, "flax-nnx", there / "model.npz")
    assert planned.exact and planned.source.startswith("hf-")
    assert not [each for each in planned.outputs if each.endswith((".weight", "/weight"))]
    with checkpoints.open(there / "model.npz") as middle, checkpoints.open(source) as first:
        back = plan(middle.infos, provenance=middle.provenance)
        found = back.evaluate({name: middle[name] for name in middle})
        same_tensors({name: first[name] for name in sorted(first)}, {name: found[name] for name in sorted(found)})
    (there / "config.json").write_bytes((source / "config.json").read_bytes())
    with open_model(source) as one, open_model(there) as other:
        names = sorted(one.infos)
        same_tensors({name: one[name] for name in names}, {name: other[name] for name in names})
        assert names == sorted(other.infos)


def test_every_type_has_a_family_and_every_row_is_tried() -> None:
    assert all(families.of_type(name)[0].startswith("hf-") for name in ROWS)
    assert {name.partition("+")[0] for name in TINY} == set(ROWS)


def test_weight_norm_may_be_called_as_before_pytorch_2(tmp_path: Path) -> None:
    folder, config = saved("wav2vec2", "float32", tmp_path / "source")
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    with checkpoints.open(folder) as reader:
        infos = {name: info for name, info in reader.infos.items()}
    for now, before in older.items():
        infos = {name.replace(now, before): info for name, info in infos.items()}
    there = plan(infos, target="flax-linen", config=config)
    assert [name for name in there.outputs if name.endswith(("/weight_g", "/weight_v"))]
    form = {"form": there.source, "whole": True}
    provenance = {"source": form, "target": {**form, "form": there.target}, **there.record}
    assert plan(there.outputs, config=config, provenance=provenance).outputs == infos
