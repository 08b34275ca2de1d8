"""Attention of the JAX twin on 8 virtual devices: automatic and explicit mesh axes, every kernel, modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.jax
def test_a_mesh_of_eight_devices():
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    script = HERE / "meshes_jax.py"
    found = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[-1] == "done"
