"""Losses over several devices equal those of one, however the counted positions are spread over them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.twins.losses.loss_cases import devices_cases

HERE = Path(__file__).parent
SHARED = {"cross_entropy", "accuracy", "masked_mean", "mae_loss", "simmim_loss", "contrastive"}


def started(script, *arguments):
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.jax
def test_eight_devices_of_jax():
    process = started("devices_jax.py")
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert out.split() == [case.loss for case in devices_cases(8)] and set(out.split()) == SHARED


@pytest.mark.torch
def test_two_processes_of_pytorch(tmp_path):
    processes = [started("devices_torch.py", str(rank), str(tmp_path / "store")) for rank in (0, 1)]
    results = [process.communicate(timeout=900) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    lines = results[0][0].split()
    assert lines == [case.loss for case in devices_cases(2)] and set(lines) == SHARED
