"""What every test, doctest included, runs under. It is read before any test module and imports no framework."""

import os

# The proofs are stated for the CPU, and no test reads anything from a network.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

pytest_plugins = ["tests.frameworks", "tests.twin"]
