"""Training step for step in both frameworks, across them, and with mistakes planted."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from maskattn.cli.parity import command
from maskattn.corruption import MLM
from maskattn.parity.report import training as report, training_picture
from maskattn.parity.training import data, faults, names, run
from maskattn.parity.training.run import Setting, TrainingOutcome
from maskattn.parity.training.tasks import TASKS
from maskattn.standards import value
from tests.frameworks import in_both

STEPS = 12


@pytest.fixture(scope="module", autouse=True)
def one_block():
    """The model that faults are planted in has one block here, and compiles in half the time; Swin's has both."""
    whole = TASKS[faults.SETTING.task]
    TASKS[faults.SETTING.task] = replace(whole, stack=replace(whole.stack, depth=1))
    yield
    TASKS[faults.SETTING.task] = whole


@pytest.fixture(scope="module")
def outcomes():
    """One setting in float64, the one that the faults are planted in, and one in float32."""
    return [run.run_setting(faults.SETTING, STEPS), run.run_setting(Setting("swin", "adamw", "float32"), STEPS)]


@in_both
def test_both_frameworks_take_the_same_steps(outcomes):
    for outcome in outcomes:
        assert outcome.error is None
        assert not faults.failed(outcome), [str(finding) for finding in outcome.findings]
        assert {run: len(curve) for run, curve in outcome.curves.items()} == {
            "torch": STEPS,
            "jax": STEPS,
            "torch to jax": STEPS // 2,
            "jax to torch": STEPS // 2,
        }
        first, last = np.split(outcome.curves["torch"], 2)
        assert last.mean() < first.mean()


def planted():
    """Every fault in every twin. Each patch of compiled code is a compilation: one stands for the others."""
    for twin in run.TRAINERS:
        for fault in faults.FAULTS:
            long = twin == "jax" and fault.patches and fault.name != "ignored-counted"
            yield pytest.param(fault, twin, id=f"{fault.name}-{twin}", marks=[pytest.mark.slow] if long else [])


@in_both
@pytest.mark.parametrize(("fault", "twin"), list(planted()))
def test_planted_faults_are_caught(fault, twin):
    seen = faults.caught(fault, twin)
    other = "torch" if twin == "jax" else "jax"
    assert seen and not any(check.startswith("error") for check in seen)
    if fault.name.endswith("-dropped"):  # nothing but the run that came from the other framework lost anything
        assert all(f"{other} to {twin}" in check for check in seen)


@in_both
def test_nothing_planted_stays():
    assert not faults.failed(run.run_setting(faults.SETTING, faults.STEPS))


def test_an_error_is_a_failure_and_nothing_run_is_one():
    def broken(twin, setting):
        raise RuntimeError("no such luck")

    outcome = run.run_setting(faults.SETTING, STEPS, make=broken)
    assert outcome.error == "RuntimeError: no such luck" and not outcome.held
    assert run.exit_code([outcome]) == run.exit_code([]) == 1
    assert not TrainingOutcome(faults.SETTING).held


@in_both
def test_a_nan_is_a_failure(outcomes):
    curves = {name: curve.copy() for name, curve in outcomes[0].curves.items()}
    curves["jax"][-1] = np.nan
    assert not run.judge(replace(outcomes[0], curves=curves, findings=())).held
    tensors = {"a.kernel": np.ones((2, 2)), "b.kernel": np.array([1.0, np.nan])}
    assert np.isnan(run.distance(tensors, {"a.kernel": np.ones((2, 2)), "b.kernel": np.ones(2)})).all()


@in_both
def test_a_run_that_learns_nothing_proves_nothing(outcomes):
    flat = {name: np.full_like(curve, 2.0) for name, curve in outcomes[0].curves.items()}
    judged = run.judge(replace(outcomes[0], curves=flat, findings=()))
    assert [finding.check for finding in judged.findings if not finding.held] == ["learned"]


def test_key_biases_alone_are_left_out():
    tensors = {"blocks.0.attention.key.bias": np.ones(3), "blocks.0.attention.query.bias": np.ones(3)}
    moved = {name: array * 2 for name, array in tensors.items()}
    assert run.distance(moved, tensors) == (1.0, 1.0)
    moved["blocks.0.attention.query.bias"] = tensors["blocks.0.attention.query.bias"]
    assert run.distance(moved, tensors) == (0.0, 0.0)


@pytest.mark.parametrize("task", TASKS)
@in_both
def test_the_models_have_the_same_parameters_and_names_go_both_ways(task):
    setting = Setting(task, "sgd", "float64")
    trainers = [run.trainer(twin, setting) for twin in run.TRAINERS]
    begin = run.start(setting, trainers)  # raises where the models differ
    layers = TASKS[task].layers()
    for trainer in trainers:
        there = names.from_canonical(begin.tensors, trainer.name, layers)
        assert {name: array.shape for name, array in there.items()} == trainer.shapes()
        back = names.to_canonical(there, trainer.name, layers)
        assert list(back) == list(begin.tensors)
        assert all(back[name].tobytes() == begin.tensors[name].tobytes() for name in back)


def test_the_text_is_text_with_padding():
    batch = data.sentences(3, 8, 32)
    tokens, lengths = batch["tokens"], batch["lengths"]
    assert len(set(lengths)) > 3 and lengths.min() >= 7 and lengths.max() <= 32
    assert ((np.arange(32) >= lengths[:, None]) == (tokens == data.PAD)).all()
    assert (tokens[:, 0] == data.CLS).all() and (tokens[np.arange(8), lengths - 1] == data.SEP).all()
    assert not (tokens == data.MASK).any() and tokens.max() < data.VOCABULARY
    assert not np.array_equal(tokens, data.sentences(4, 8, 32)["tokens"])
    scheme = TASKS["mlm"].scheme
    assert isinstance(scheme, MLM) and (scheme.mask_id, scheme.vocab_size) == (data.MASK, data.VOCABULARY)
    passage = data.passages(0, 1, 300)["tokens"][0]
    assert " the " in "".join(chr(token - 4 + 32) for token in passage)


def test_images_of_several_digits_hold_each_whole():
    from sklearn.datasets import load_digits

    images = data.digits(0, 3, side=2)["images"]
    known = {image.tobytes() for image in load_digits().images / 16}
    assert images.shape == (3, 16, 16, 1)
    for image in images[..., 0]:
        assert all(image[y : y + 8, x : x + 8].copy().tobytes() in known for y in (0, 8) for x in (0, 8))


@in_both
def test_table_and_data(outcomes):
    console = Console(record=True, width=80, file=io.StringIO())
    report.render(outcomes, console, steps=STEPS, wide=True)
    text = console.export_text()
    assert "mlm" in text and "swin" in text and "1e-06 / 3e-06" in text
    found = json.loads(report.as_json(outcomes))["runs"]
    assert [r["setting"]["task"] for r in found] == ["mlm", "swin"]
    assert np.array(found[1]["losses"]["jax"]).tobytes() == outcomes[1].curves["jax"].tobytes()
    worst = [f["worst"] for f in found[0]["findings"] if f["check"] == "loss"]
    assert 0 <= max(worst) <= value("tier3.float64")


@in_both
def test_a_picture_of_it(outcomes, tmp_path):
    training_picture.write_png(outcomes, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="none was completed"):
        training_picture.write_png([TrainingOutcome(faults.SETTING, error="no")], tmp_path / "none.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training", "--cases", "no-such-task"], "matches none of mlm/sgd/float64"),
        (["training", "--html", "x.html"], "No such option"),
        (["faults", "--training", "--cases", "mlm"], "No such option"),
        (["--png", "x.png"], "No such option"),
        (["training", "--kernel", "no-such-kernel"], "--kernel must be one of"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(arguments, message):
    found = CliRunner().invoke(command, arguments)
    assert found.exit_code == 2 and message in " ".join(found.output.split())
