"""A mask is one file and one export: a copy of the library with one more has it everywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import maskattn
from maskattn.parity.attention.cases import Shape, families, registry
from maskattn.parity.draws import Draws

FILE = '''
from dataclasses import dataclass

from maskattn.masks._core import Mask


@dataclass(frozen=True)
class AntiDiagonal(Mask):
    """q + k == total."""

    total: int

    @classmethod
    def examples(cls, shape, draws):
        return [cls(shape.kv_len - 1)]

    def allowed(self, b, h, q, k):
        return q + k == self.total

    def tile(self, b, h, q_lo, q_hi, k_lo, k_hi):
        return (q_lo + k_lo <= self.total) & (q_hi + k_hi >= self.total), (q_lo == q_hi) & (k_lo == k_hi) & (
            q_lo + k_lo == self.total
        )
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("newcomer")
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(maskattn.__file__).parent, folder / "maskattn", ignore=skip)
    (folder / "maskattn/masks/anti_diagonal.py").write_text(FILE)
    exports = folder / "maskattn/masks/__init__.py"
    line = "from maskattn.masks.anti_diagonal import AntiDiagonal\n"
    text = exports.read_text().replace("from maskattn.masks.axial", line + "from maskattn.masks.axial", 1)
    exports.write_text(text.replace("__all__ = [", '__all__ = ["AntiDiagonal",', 1))

    def call(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        return subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )

    return call


COMMAND = ("-m", "maskattn.cli.main")


def test_the_registry_and_the_command_have_it(run):
    listed = run(*COMMAND, "parity", "list", "--cases", "AntiDiagonal").stdout.split()
    assert {f"AntiDiagonal/{name}/float32/0" for name in ("square", "wide", "tall")} <= set(listed)
    assert "AntiDiagonal/square/bfloat16/0" in listed
    numpy = ("--impl", "maskattn.parity.attention.adapters:NumpyExact")
    found = run(*COMMAND, "parity", *numpy, "--cases", "AntiDiagonal/*")
    assert found.returncode == 0 and "every case ran and held" in found.stdout, found.stdout + found.stderr


def test_show_draws_it(run):
    found = run(*COMMAND, "show", "anti_diagonal(3)", "--q", "4", "--kv", "4", "--ascii")
    assert found.returncode == 0 and "AntiDiagonal(3)" in found.stdout, found.stderr
    assert "25.00 %" in found.stdout


def test_the_gallery_has_it(run):
    code = "from maskattn.cli._gallery import panels; print([panel.name for panel in panels()])"
    assert "'AntiDiagonal'" in run("-c", code).stdout


@pytest.mark.parametrize("lengths", [(1, 1), (1, 7), (7, 3), (3, 7), (2, 2), (2, 3), (6, 6), (13, 13)])
def test_examples_fit_every_shape(lengths):
    """Neighborhoods larger than a small grid, trees of no node: examples give only what fits."""
    for batch, heads in ((1, 1), (3, 4)):
        shape = Shape(batch, *lengths, heads, 1, 3, 2)
        for name, cls in families().items():
            for mask in cls.examples(shape, Draws(f"{name}{lengths}")):
                assert mask.dense(*lengths, batch=batch, heads=heads).shape == shape.scores


def test_recipes_biases_and_awkward_shapes_have_cases():
    from maskattn.recipes import EXAMPLES

    ids = {case.id for case in registry()}
    assert {f"recipe/{name}/float32" for name in EXAMPLES} <= ids
    assert sum(case.family == "bias" and case.table is not None for case in registry()) >= 5
    random = [case for case in registry() if case.family == "composition"]
    assert {(1, 1), (1, 11), (5, 17), (13, 7)} <= {(case.shape.q_len, case.shape.kv_len) for case in random}
