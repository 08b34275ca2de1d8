"""Where a run took place."""

from __future__ import annotations

import platform
from importlib import metadata


def environment() -> dict[str, str]:
    """Python, the machine and the versions of what took part (installed or absent)."""
    versions = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for package in ("maskattn", "numpy", "torch", "jax", "flax"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
