"""The pytest plugin: `--parity-impl pkg.mod:ADAPTER` runs the suite over other people's attention.

Loading it imports neither a framework nor the suite; that happens in the first test that asks.
"""

from __future__ import annotations

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --parity-impl, --parity-samples and --parity-kernel."""
    group = parser.getgroup("parity", "maskattn's parity suite")
    group.addoption(
        "--parity-impl",
        action="append",
        default=[],
        metavar="PKG.MOD:ADAPTER",
        help="judge this implementation instead of maskattn's twins (repeatable)",
    )
    group.addoption("--parity-samples", type=int, default=None, metavar="N", help="draw random cases until N numbers")
    group.addoption("--parity-kernel", default=None, help="the twins' kernel: exact, reference, ... (default: each)")


@pytest.fixture(scope="session")
def parity_impls(request: pytest.FixtureRequest) -> list[Any]:
    """The adapters named by --parity-impl; [] where the twins are meant."""
    from maskattn.parity.attention import adapters

    return [adapters.load(spec) for spec in request.config.getoption("--parity-impl")]


@pytest.fixture(scope="session")
def parity_samples(request: pytest.FixtureRequest) -> int | None:
    """The number given by --parity-samples, or None."""
    number: int | None = request.config.getoption("--parity-samples")
    return number


@pytest.fixture(scope="session")
def parity_kernels(request: pytest.FixtureRequest) -> list[str]:
    """See `kernels`."""
    return kernels(request.config)


def kernels(config: pytest.Config) -> list[str]:
    """The kernels judged: the one asked for, or exact and reference ("given" for other people's implementations)."""
    asked = config.getoption("--parity-kernel")
    if asked:
        return [asked]
    return ["given"] if config.getoption("--parity-impl") else ["exact", "reference"]
