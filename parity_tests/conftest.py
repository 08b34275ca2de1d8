"""The cases of the suite, grouped by what JAX compiles once: two processes never compile the same thing."""

from __future__ import annotations

from maskattn.parity.attention.cases import Case, registry
from maskattn.parity.plugin import kernels


def groups() -> dict[str, list[Case]]:
    """Cases by shape and dtype (recipes, biases, options and modules: by what they are), in the registry's order."""
    found: dict[str, list[Case]] = {}
    for case in registry():
        parts = case.id.split("/")
        if case.family in ("recipe", "bias", "options", "MultiHeadAttention"):
            name = f"{case.family}-{case.dtype}"
        elif case.family == "planted":
            name = f"square-{case.dtype}"
        else:
            name = f"{parts[1]}-{case.dtype}"
        found.setdefault(name, []).append(case)
    return found


def pytest_generate_tests(metafunc: object) -> None:
    """Tests that ask for `group` get every group of cases, under every kernel that is judged."""
    if "group" in metafunc.fixturenames:  # type: ignore[attr-defined]
        made = groups()
        metafunc.parametrize("group", list(made.values()), ids=list(made))  # type: ignore[attr-defined]
        metafunc.parametrize("kernel", kernels(metafunc.config))  # type: ignore[attr-defined]
