"""kernel="blockwise" of JAX on 8 virtual devices: values of one device, and nothing gathered that need not be."""

from pathlib import Path

import pytest

from tests import scripts


@pytest.mark.jax
@pytest.mark.slow
def test_eight_devices():
    scripts.run(Path(__file__).with_name("devices_jax.py"))
