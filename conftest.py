"""What every test, doctest included, runs under. It is read before any test module and imports no framework."""

import contextlib
import importlib
import os
import tempfile
from pathlib import Path

import pytest

# The proofs are stated for the CPU, and no test reads anything from a network.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What makes the site is Sphinx's to import; a program and its port, for a picture, are no modules of ours.
collect_ignore = ["docs/conf.py", "docs/_site", "docs/port"]

pytest_plugins = ["tests.frameworks", "tests.twin"]


def pytest_collect_file(file_path: Path) -> None:
    """A file of a package after its package: pytest would import it again where the package imports it too."""
    folder = file_path.parent.relative_to(Path(__file__).parent)
    if file_path.suffix == ".py" and folder.parts and folder.parts[0].startswith("maskattn"):
        with contextlib.suppress(ModuleNotFoundError):  # of the framework that is missing
            importlib.import_module(".".join(folder.parts))


def pytest_configure(config: pytest.Config) -> None:
    """What JAX has compiled once in this run is not compiled again: in another test, process or interpreter."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="maskattn-compiled-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
