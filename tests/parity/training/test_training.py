"""Training step for step in both frameworks, across them, and with mistakes planted."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from maskattn.cli.parity import command
from maskattn.models import adapters
from maskattn.parity.report import training as report, training_picture
from maskattn.parity.training import data, faults, run
from maskattn.parity.training.run import Setting, TrainingOutcome
from maskattn.parity.training.tasks import TASKS
from maskattn.standards import value
from tests.frameworks import in_both

pytestmark = pytest.mark.hurried

STEPS = 12


@pytest.fixture(scope="module", autouse=True)
def one_block():
    """Models have one block here, and compile in half the time; Swin's has both."""
    whole = {name: TASKS[name] for name in (faults.SETTING.task, "lora")}
    for name, task in whole.items():
        stack = task.table.stack
        table = replace(task.table, stack=replace(stack, blocks=stack.blocks[:1], places=stack.places[:1]))
        TASKS[name] = replace(task, table=table)
    yield
    TASKS.update(whole)


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
    first, last = np.split(outcomes[0].curves["torch"], 2)
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
    tensors = {name: np.ones(3) for name in ("self.key.bias", "attention.k_proj.bias", "self.query.bias")}
    moved = {name: array * 2 for name, array in tensors.items()}
    assert run.distance(moved, tensors) == (1.0, 1.0)
    moved["self.query.bias"] = tensors["self.query.bias"]
    assert run.distance(moved, tensors) == (0.0, 0.0)


@in_both
def test_an_adapter_alone_is_trained_and_goes_to_peft(tmp_path):
    """From PyTorch to JAX half way; saved there, PEFT reads it, and so does the twin."""
    import peft
    import torch

    import maskattn_jax.models as in_jax
    import maskattn_torch.models as in_torch

    setting, task = Setting("lora", "adamw", "float64"), TASKS["lora"]
    trainers = [run.trainer(twin, setting) for twin in run.TRAINERS]
    begin = run.start(setting)
    losses, (half, end) = run.train(trainers[0], setting, begin, STEPS // 2, STEPS)
    assert half.moments is not None and all(".lora_" in name for name in half.moments.names)
    moved, (crossed,) = run.train(trainers[1], setting, half, STEPS)
    limit = value("tier3.float64")
    assert np.allclose(moved, losses[STEPS // 2 :], limit, 0) and run.distance(crossed.tensors, end.tensors)[0] <= limit
    for name, array in crossed.tensors.items():
        assert (array.tobytes() == begin.tensors[name].tobytes()) == (".lora_" not in name), name

    in_jax.save_adapter(trainers[1].model, tmp_path)
    ids = torch.from_numpy(task.batch(0)["tokens"]).long()
    right = trainers[0].model.eval()(ids).logits
    read = adapters.read(tmp_path)

    def start(name, tensor):
        return torch.from_numpy(read.tensors.get(name, crossed.tensors[name]).astype(np.float32))

    ours = in_torch.Model(task.table, start, adapter=read).eval()(ids).logits
    plain = in_torch.Model(adapters.without(task.table), start).eval()
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path)(ids).logits
    most = value("tier4.float32") * right.abs().max()
    assert (ours - right).abs().max() <= most >= (theirs - right).abs().max()


def test_the_text_is_text_with_padding():
    batch = data.sentences(3, 8, 32)
    tokens, lengths = batch["tokens"], batch["lengths"]
    assert len(set(lengths)) > 3 and lengths.min() >= 7 and lengths.max() <= 32
    assert ((np.arange(32) >= lengths[:, None]) == (tokens == data.PAD)).all()
    assert (tokens[:, 0] == data.CLS).all() and (tokens[np.arange(8), lengths - 1] == data.SEP).all()
    assert not (tokens == data.MASK).any() and tokens.max() < data.VOCABULARY
    assert not np.array_equal(tokens, data.sentences(4, 8, 32)["tokens"])
    passage = data.passages(0, 1, 300)["tokens"][0]
    assert " the " in "".join(chr(token - 4 + 32) for token in passage)


def test_images_of_several_digits_hold_each_whole():
    from sklearn.datasets import load_digits

    batch, known = data.digits(0, 3, side=2), load_digits()
    images, known = batch["images"], {x.tobytes(): y for x, y in zip(known.images / 16, known.target, strict=True)}
    assert images.shape == (3, 16, 16, 1)
    for image, label in zip(images[..., 0], batch["labels"], strict=True):
        assert known[image[:8, :8].copy().tobytes()] == label
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
