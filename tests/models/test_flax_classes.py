"""What the Flax classes of transformers 4 wrote and computed, and what both twins make of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskattn import checkpoints, standards
from maskattn.models import describe
from maskattn.parity.against.hurry import HURRY
from maskattn.parity.models.peer import WORDS
from tests.scripts import of_benchmarks
from tests.twin import load, twin

pytestmark = pytest.mark.hurried

__all__ = ["twin"]

PAGE = of_benchmarks("flax_classes")
PEER = of_benchmarks("peers/flax_transformers")
CLASSES: dict[str, Any] = json.loads(PAGE.RECORDED.read_text(encoding="utf-8"))["classes"]
TEXT = PAGE.PAGE.read_text(encoding="utf-8")
LOADED = re.findall(r"^\| `(Flax\w+)` .*\| loads", TEXT, re.MULTILINE)
#: Of each type the class of which most was recorded.
ONE_EACH = {CLASSES[name]["model_type"]: name for name in sorted(LOADED, key=lambda name: len(str(CLASSES[name])))}
#: Where a Flax class was not what its configuration says: Mistral's let a query attend to one key more.
DIFFERENT = {"mistral": {"sliding_window": 5}}
OUTPUTS = {
    "last_hidden_state": lambda out: out.hidden,
    "pooler_output": lambda out: out.pooled,
    "encoder_last_hidden_state": lambda out: out.encoder_hidden,
    "logits": lambda out: out.logits,
    "prediction_logits": lambda out: out.logits,
    "start_logits": lambda out: out.logits[..., 0],
    "end_logits": lambda out: out.logits[..., 1],
    "text_embeds": lambda out: out.text_embeds,
    "image_embeds": lambda out: out.image_embeds,
    "logits_per_image": lambda out: out.logits,
    "logits_per_text": lambda out: out.logits.T,
}
"""What else a class gives there is none of here: the page says so."""


def run(twin: Any, model: Any, given: dict[str, np.ndarray]) -> Any:
    """A call, compiled in JAX."""
    batch = {WORDS[name]: twin.array(x.astype("int32") if x.dtype.kind == "i" else x) for name, x in given.items()}
    if twin.name == "torch":
        with twin.framework.no_grad():
            return model(**batch)
    from flax import nnx

    graph, state = nnx.split(model)
    call = twin.framework.jit(lambda state, batch: nnx.merge(graph, state)(**batch), compiler_options=HURRY)
    return call(state, batch)


def written(name: str, folder: Path) -> Path:
    """The folder that a class wrote."""
    tensors = {path: np.asarray(PEER.numbers(path, shape)) for path, shape in PAGE.leaves(CLASSES[name]["parameters"])}
    checkpoints.save(folder / "flax_model.msgpack", tensors)
    (folder / "flax_model.msgpack.maskattn.json").unlink()  # which is ours alone
    config = {**CLASSES[name]["config"], **DIFFERENT.get(CLASSES[name]["model_type"], {})}
    checkpoints.write_json(folder / "config.json", config)
    return folder


def held(name: str, twin: Any, folder: Path) -> Any:
    """Loads what a class wrote, and holds it to what the class computed of it."""
    told = CLASSES[name]
    model = twin.models.load(written(name, folder))
    given = PEER.inputs(told["model_type"], name)
    out = run(twin, model, given)
    known = {key: each for key, each in told["outputs"].items() if key in OUTPUTS}
    for key, each in known.items():
        found = np.asarray(OUTPUTS[key](out))
        assert found.shape == tuple(each["shape"]), (name, key)
        right = np.array(each["some"])
        apart = np.abs(PEER.some(found) - right).max()
        assert apart <= standards.value("tier4.float32") * np.abs(right).max(), (name, key, apart)
    return model


@pytest.mark.torch
@pytest.mark.parametrize("name", ONE_EACH.values())
def test_one_class_of_each_type_gives_what_it_gave(name, tmp_path):
    torch = load("torch")
    model = held(name, torch, tmp_path)
    torch.models.save(model, tmp_path / "out")
    again = torch.models.load(tmp_path / "out").state_dict()
    assert all((again[key] == x).all() for key, x in model.state_dict().items())


@pytest.mark.jax
@pytest.mark.parametrize("name", ["FlaxViTModel", "FlaxT5Model"])
def test_jax_reads_the_same(name, tmp_path):
    held(name, load("jax"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADED)
def test_every_class_gives_what_it_gave(name, twin, tmp_path):
    held(name, twin, tmp_path)


@pytest.mark.torch
def test_what_does_not_load_is_refused_by_name(tmp_path):
    for name in sorted(CLASSES.keys() - set(LOADED)):
        told = CLASSES[name]
        with pytest.raises(ValueError, match="is refused|no model is known of model type|is not a whole"):
            if "config" in told:
                load("torch").models.load(written(name, tmp_path))
            describe({"model_type": told["model_type"]})


def test_the_page_has_every_class_and_what_the_tables_say_of_it():
    assert PAGE.table() in TEXT
    assert len(CLASSES) == 133 and all("error" not in told for told in CLASSES.values())
