"""Layers with parts over two processes: heads divided by `HeadParallel`, parameters by FSDP2."""

from pathlib import Path

import pytest

from tests import scripts

SCRIPT = Path(__file__).parent / "spread_layers_torch.py"


@pytest.mark.torch
def test_two_processes(tmp_path):
    for found in scripts.of_processes(SCRIPT, 2, tmp_path):
        assert len(found) > 20
        assert not any(found.values()), "\n".join(found.values())
