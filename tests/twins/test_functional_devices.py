"""DTensors in PyTorch: attention and modules over four processes give what one gives, and send only what they must."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "spread_torch.py"
CHECKS = re.findall(r"@check\ndef (\w+)", SCRIPT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What went wrong in each check, in each process: they take seconds to start, so all checks are done in one go."""
    folder = tmp_path_factory.mktemp("spread")
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "store"), str(folder / "found")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(4)
    ]
    said = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(said)
    return [json.loads((folder / f"found.{rank}").read_text(encoding="utf-8")) for rank in range(4)]


@pytest.mark.torch
@pytest.mark.parametrize("check", CHECKS)
def test_four_processes(found, check):
    assert [one[check] for one in found] == [""] * 4


def test_every_check_is_seen():
    assert len(CHECKS) > 15
