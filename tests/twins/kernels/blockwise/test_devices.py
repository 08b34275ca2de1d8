"""kernel="blockwise" of JAX on 8 virtual devices: values of one device, and nothing gathered that need not be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.jax
def test_eight_devices():
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[3]), "OMP_NUM_THREADS": "1"}
    script = HERE / "devices_jax.py"
    found = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[-1] == "done"
