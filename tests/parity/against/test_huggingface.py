"""The matrix against Hugging Face: every cell holds or says why, a wrong fact shows, and the page is current."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from maskattn import masks
from maskattn.cli.main import main
from maskattn.config import AttentionConfig
from maskattn.layer import Norm, T5Table, Temperature
from maskattn.parity.against.capture import capture
from maskattn.parity.against.compare import Judge, Torch, layout_of
from maskattn.parity.against.families import FAMILIES
from maskattn.parity.against.run import COLUMNS, NOT_DECODED, Cell, Row, chosen, examine
from maskattn.parity.report.against import as_json, as_page
from tests.frameworks import optional, torch

optional("transformers")
PAGE = Path(__file__).parents[3] / "docs" / "against-huggingface.md"


@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.parametrize("name", FAMILIES)
def test_every_cell_of_a_family_holds_or_says_why(name):
    row = examine(name, FAMILIES[name], quick=True)
    assert row.held, {column: (cell.share, cell.what) for column, cell in row.cells.items()}
    assert tuple(row.cells) == tuple(COLUMNS)
    assert (row.cells["decoding"].reason == NOT_DECODED) != FAMILIES[name].decodes


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_holds_in_jax_too(name):
    assert examine(name, FAMILIES[name]).held


@cache
def captured(name):
    return capture(FAMILIES[name])


def made(name, number, change=lambda config: config):
    """The judge of one layer of a family, with a configuration that a test may change."""
    config, layers = captured(name)
    site = FAMILIES[name].sites[number]
    found = AttentionConfig.from_hf(config, site.layer, site.part)
    return Judge(site, layers[number], change(found), layout_of(FAMILIES[name].layout))


def rotary(**changes):
    return part("rotary", **changes)


def scaling(**changes):
    return lambda config: part("rotary", scaling=replace(config.rotary.scaling, **changes))(config)


def part(name, **changes):
    return lambda config: config.replace(**{name: replace(getattr(config, name), **changes)})


WRONG = {
    "theta": ("mistral", 0, rotary(theta=51.0)),
    "pairs": ("mistral", 0, rotary(pairs="interleaved")),
    "pairs of llama 4": ("llama4_text", 0, rotary(pairs="half")),
    "no rotary": ("falcon", 0, lambda config: config.replace(rotary=None)),
    "width": ("gpt_neox", 0, rotary(width=8)),
    "linear scaling": ("qwen3", 0, rotary(scaling=None)),
    "yarn": ("gpt_oss", 1, scaling(whole=True)),
    "attention factor": ("gpt_oss", 1, scaling(attention_factor=1.0)),
    "eps": ("qwen3", 0, part("qk_norm", eps=0.05)),
    "eps without scale": ("llama4_text", 0, part("qk_norm", eps=0.05)),
    "plus one": ("qwen3", 0, part("qk_norm", plus_one=True)),
    "kind of norm": ("qwen3", 0, part("qk_norm", kind="layer")),
    "norm after rotary": ("qwen3", 0, part("qk_norm", after_rotary=True)),
    "a norm too many": ("llama4_text", 1, lambda config: config.replace(qk_norm=Norm(scale="none"))),
    "temperature": ("llama4_text", 1, part("temperature", scale=0.69)),
    "floor": ("llama4_text", 1, part("temperature", floor=4.0)),
    "no temperature": ("llama4_text", 1, lambda config: config.replace(temperature=None)),
    "a temperature too many": ("mistral", 0, lambda config: config.replace(temperature=Temperature(0.7, 3.0))),
    "scale": ("gemma2", 0, lambda config: config.replace(scale=24**-0.5)),
    "softcap": ("gemma2", 0, lambda config: config.replace(softcap=1.8)),
    "no softcap": ("gemma2", 0, lambda config: config.replace(softcap=None)),
    "no slopes": ("bloom", 0, lambda config: config.replace(position_bias=None)),
    "largest cosine scale": ("swinv2", 0, part("cosine", most=2.0)),
    "window of the table's network": ("swinv2", 0, part("position_bias", pretrained=(4, 4))),
    "buckets' end": ("t5", 0, part("position_bias", max_distance=16)),
    "buckets' sides": ("t5", 1, lambda config: config.replace(position_bias=T5Table(8, 11, True))),
    "DeBERTa's scale": ("deberta-v2", 0, lambda config: config.replace(scale=7**-0.5)),
    "DeBERTa's buckets": ("deberta-v2", 0, part("position_bias", buckets=0)),
    "DeBERTa's terms": ("deberta-v2", 0, part("position_bias", from_position=False)),
}


@pytest.mark.torch
@pytest.mark.parametrize("fact", WRONG)
def test_one_wrong_fact_of_a_layer_shows(fact):
    name, number, change = WRONG[fact]
    judge = made(name, number, change)
    found = judge.output(Torch(judge).run(judge.written, gradients=False)[0])
    assert not found.held, found
    right = made(name, number)
    assert right.output(Torch(right).run(right.written, gradients=False)[0]).held


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral", lambda config: config.replace(qkv_bias=True)),
        ("qwen3", lambda config: config.replace(qkv_bias=False)),
        ("bert", lambda config: config.replace(out_bias=False)),
        ("mistral", lambda config: config.replace(num_kv_heads=None)),
        ("gpt_oss", lambda config: config.replace(sinks=False)),
        ("t5", lambda config: config.replace(scale=None)),
    ],
)
def test_a_layer_whose_tensors_do_not_fit_is_refused(name, change):
    with pytest.raises(ValueError, match="is not what layout"):
        made(name, 0, change)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "number", "mask"),
    [
        ("mistral", 0, masks.Causal() & masks.SlidingWindow(5, 0)),
        ("gemma2", 0, masks.Causal() & masks.SlidingWindow(2, 0)),
        ("llama4_text", 0, masks.Causal()),
        ("longformer", 0, masks.SlidingWindow(1, 1)),
        ("swinv2", 1, masks.Full()),
        ("clip_text_model", 0, masks.Full()),
        ("big_bird", 0, masks.Full()),
    ],
)
def test_a_wrong_mask_shows(name, number, mask):
    judge = made(name, number)
    assert not judge.output(Torch(judge).run(judge.whole(mask), gradients=False)[0]).held


@pytest.mark.torch
def test_padding_that_is_not_heeded_and_a_key_met_once_show():
    judge = made("bert", 0)
    assert not judge.output(Torch(judge).run(masks.Full(), gradients=False)[0]).held
    judge = made("big_bird", 0)
    judge.bias = None
    assert not judge.output(Torch(judge).run(judge.written, gradients=False)[0]).held


@pytest.mark.torch
def test_the_reason_of_falcon_with_alibi_is_what_it_says():
    def narrow(x):
        return torch.tensor(x, dtype=torch.bfloat16)

    name = "falcon, ALiBi"
    slopes = made(name, 0).config.position_bias.slopes
    judge = made(name, 0, lambda config: config.replace(position_bias=None))
    places = np.maximum(np.cumsum(judge.captured.keys, 1) - 1, 0) * judge.captured.keys
    width = judge.config.head_dim**0.5
    once = narrow([slope * width for slope in slopes])[:, None] * narrow(places)[:, None]
    judge.bias = 2 * once.float().numpy()[:, :, None] / width
    found = judge.output(Torch(judge).run(judge.written, gradients=False)[0])
    assert found.held, found
    judge.bias = judge.bias / 2
    assert not judge.output(Torch(judge).run(judge.written, gradients=False)[0]).held


@pytest.mark.torch
def test_a_wrong_gradient_shows():
    judge = made("qwen3", 0)
    _, gradients = Torch(judge).run(judge.written)
    assert judge.gradients(gradients).held
    for name in gradients:
        wrong = dict(gradients)
        wrong[name] = wrong[name] * 1.1
        assert judge.gradients(wrong).what == name and not judge.gradients(wrong).held


@pytest.mark.torch
@pytest.mark.parametrize("name", ["qwen3", "swinv2", "deberta-v2", "longformer"])
def test_hugging_face_is_within_its_own_bound_of_the_oracle(name):
    judge = made(name, 0)
    error = np.abs(judge.captured.output - judge.verdict.output)[judge.captured.rows]
    assert np.all(error <= judge.verdict.limit[judge.captured.rows])


def expected():
    """The matrix as it is when everything holds, without running it."""
    for name, family in FAMILIES.items():
        cells = {}
        for column in COLUMNS:
            reason = family.reasons.get(column, "")
            cells[column] = Cell(column, 2.0 if reason else 0.0, "", reason)
        if not family.decodes:
            cells["decoding"] = Cell("decoding", None, "", NOT_DECODED)
        yield Row(name, cells)


def test_the_page_is_current():
    assert PAGE.read_text() == as_page(list(expected()))


def test_a_cell_that_does_not_hold_is_named_and_a_reason_that_is_none_too(monkeypatch):
    rows = [Row("mistral", {c: Cell(c, 3.0 if c == "output" else 0.0, "layer 1, torch") for c in COLUMNS})]
    monkeypatch.setattr("maskattn.parity.against.run.matrix", lambda names, progress: iter(rows))
    said = CliRunner().invoke(main, ["parity", "against", "huggingface", "--types", "mistral"])
    assert said.exit_code == 1 and "mistral, output: layer 1, torch" in said.output and "1 of 1" in said.output
    assert not Cell("output", 0.5, "", "counted twice").held and '"held": false' in as_json(rows)
    rows[:] = list(expected())
    said = CliRunner().invoke(main, ["parity", "against", "huggingface"])
    assert said.exit_code == 0 and f"{len(FAMILIES)} families: all held" in said.output
    assert "falcon, ALiBi, output: transformers' eager attention adds ALiBi twice" in said.output


def test_families_are_chosen_by_name():
    assert chosen("falcon*") == ("falcon", "falcon, multi-query", "falcon, ALiBi")
    assert chosen("deberta-v2")[0] == "deberta-v2"
    said = CliRunner().invoke(main, ["parity", "against", "huggingface", "--types", "lama5"])
    assert said.exit_code == 2 and "no family matches 'lama5'" in said.output
