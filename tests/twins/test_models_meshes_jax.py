"""Whole models of the JAX twin on 4 virtual devices: what each reads and holds, and what is sent."""

from pathlib import Path

import pytest

from tests import scripts


@pytest.mark.jax
@pytest.mark.slow
def test_a_mesh_of_four_devices():
    scripts.run(Path(__file__).with_name("models_meshes_jax.py"))
