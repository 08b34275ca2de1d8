"""Layers with parts of the JAX twin on 4 virtual devices: training, shardings, and caches that are divided."""

from pathlib import Path

import pytest

from tests import scripts


@pytest.mark.jax
@pytest.mark.slow
def test_layers_on_a_mesh_of_four_devices():
    scripts.run(Path(__file__).with_name("meshes_layers_jax.py"))
