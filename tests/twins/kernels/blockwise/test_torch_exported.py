"""Programs that leave their process: the mask of the blockwise kernel goes with them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.fx.experimental.proxy_tensor import make_fx

import maskattn_torch
from maskattn import biases, masks
from maskattn._fields import data
from maskattn.parity.attention.cases import Shape, families
from maskattn.parity.draws import Draws
from maskattn_torch.kernels.blockwise import packing

CASES = {
    "no mask": (None, {}),
    "no data": (masks.SlidingWindow(3), {}),
    "parts": (masks.PerHead([masks.Causal() | masks.Strided(4), ~masks.Chunked(5)]), {}),
    "data": (masks.Causal() & masks.KeyPadding([20, 9]), {}),
    "twice data": (masks.KeyPadding([20, 9]) & masks.QueryMask(np.arange(24)[None] % 3 > 0), {"return_lse": True}),
    "softcap, sinks": (masks.PrefixLM(4), {"softcap": 3.0, "sinks": torch.linspace(-1, 1, 2)}),
    "bias": (masks.Causal(), {"bias": biases.ALiBi(2, form="key")}),
    "table": (masks.Causal(), {"bias": biases.T5Buckets(torch.linspace(-1, 1, 64).reshape(32, 2))}),
    "dropout": (masks.Causal(), {"dropout_rate": 0.3, "dropout_key": 5, "dropout_broadcast": ("batch",)}),
}

#: Loads every program of a folder, and says which gives what it gave.
LOAD = """
import sys
from pathlib import Path
import torch, maskattn_torch
from maskattn import masks
if sys.argv[2] == "after another mask":
    q = torch.ones(1, 8, 2, 4)
    for mask in (masks.Causal(5), masks.Strided(3), masks.Full(), masks.SlidingWindow(4)):
        maskattn_torch.attention(q, q, q, mask, kernel="blockwise")
for path in sorted(Path(sys.argv[1]).glob("*.pt2")):
    x, expected = torch.load(path.with_suffix(".results"))
    made = torch.export.load(path).module()(x), torch.load(path.with_suffix(".graph"), weights_only=False)(x)
    for found in made:
        found = found if isinstance(found, tuple) else (found,)
        print(path.stem, all(map(torch.equal, found, expected)))
"""


class Model(torch.nn.Module):
    def __init__(self, mask, options):
        super().__init__()
        self.mask, self.options = mask, options

    def forward(self, x):
        return maskattn_torch.attention(x * 1, x * 2, x * 3, self.mask, kernel="blockwise", **self.options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("programs")
    x = torch.sin(torch.arange(2 * 24 * 2 * 8.0)).reshape(2, 24, 2, 8)
    for name, (mask, options) in CASES.items():
        model, path = Model(mask, options), made / name
        result = model(x)
        torch.save((x, result if isinstance(result, tuple) else (result,)), path.with_suffix(".results"))
        torch.export.save(torch.export.export(model, (x,)), path.with_suffix(".pt2"))
        torch.save(make_fx(model)(x), path.with_suffix(".graph"))
    return made


@pytest.mark.parametrize("before", ["alone", "after another mask"])
def test_a_program_means_the_same_in_another_process(folder, before):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), before], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} True" for name in sorted(CASES) for _ in range(2)]


@pytest.mark.parametrize("family", families())
def test_every_mask_is_written_as_it_is(family):
    for mask in families()[family].examples(Shape(2, 24, 24, 2, 2, 8, 8), Draws(family)):
        given = maskattn_torch.lower.bind(mask)
        text, leaves = packing.pack(given, None, None)
        assert text.startswith("[[") and packing._read(text) == packing._STRUCTURES[text]
        assert packing.unpack(text, leaves) == [given, None, None]


def own(level):
    """A class of the same name at every call."""

    @dataclass(frozen=True)
    class Own(biases.Bias):
        base: object
        slope: object = data()

        def values(self, b, h, q, k):
            return level * self.slope * (q - k)

    return Own


def test_classes_of_one_name_stay_apart():
    q = torch.sin(torch.arange(12.0)).reshape(1, 6, 1, 2)
    made = [own(1), own(2)]
    first, second, again = (cls(None, torch.tensor(1.0)) for cls in (*made, made[0]))
    outputs = [
        [maskattn_torch.attention(q, q, q, bias=bias, kernel=kernel) for bias in (first, second, again)]
        for kernel in ("blockwise", "reference")
    ]
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(*outputs, strict=True))
    assert not torch.equal(outputs[0][0], outputs[0][1])


def test_what_another_process_cannot_know_is_refused():
    cls = own(1)
    for bias, match in (
        (cls(7, torch.ones(())), "no class .*Gone is known"),
        (cls(len, torch.ones(())), "of process another"),
    ):
        text, leaves = packing.pack(None, bias, None)
        assert packing.unpack(text, leaves)[1] is not None
        with pytest.raises(ValueError, match=match):
            packing.unpack(text.replace("Own", "Gone").replace(packing._PROCESS, "another"), leaves)


def test_what_cannot_leave_its_process_is_not_exported():
    q = torch.ones(1, 6, 1, 2)
    with pytest.raises(ValueError, match="cannot be exported: .*built-in function len.* cannot be written"):
        torch.export.export(Model(None, {"bias": own(1)(len, torch.ones(()))}), (q,))


def test_fields_of_another_version_are_refused():
    text, leaves = packing.pack(masks.SlidingWindow(3), None, None)
    with pytest.raises(ValueError, match=r"SlidingWindow has the fields \['left', 'right'\] here, and had \['before'"):
        packing.unpack(text.replace('"left"', '"before"'), leaves)
