"""Whole models of the PyTorch twin over two processes: what each reads and holds, and what it gives."""

from pathlib import Path

import pytest

from tests import scripts


@pytest.mark.torch
def test_two_processes():
    scripts.run(Path(__file__).with_name("models_meshes_torch.py"))
