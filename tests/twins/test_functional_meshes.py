"""Attention of the JAX twin on 8 virtual devices: automatic and explicit mesh axes, every kernel, modules."""

from pathlib import Path

import pytest

from tests import scripts


@pytest.mark.slow
@pytest.mark.jax
def test_a_mesh_of_eight_devices():
    scripts.run(Path(__file__).with_name("meshes_jax.py"))
