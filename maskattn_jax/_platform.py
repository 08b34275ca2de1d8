"""Where what is traced now will run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

__all__ = ["assumed", "interpreted", "platform"]

_ASSUMED: ContextVar[tuple[str, bool] | None] = ContextVar("assumed", default=None)


def platform(*arrays: object) -> str:
    """The platform of these arrays, or of what is traced from them: "cpu", "gpu" or "tpu".

    It is that of the first of the arrays that says so, by its devices or the mesh of its sharding; else of the mesh in
    use, of `jax_default_device`, or of the default backend. What is traced under `jax.jit` may still be compiled for
    another: a program has to be right there, too.
    """
    assumption = _ASSUMED.get()
    if assumption is not None:
        return assumption[0]
    for x in arrays:
        if isinstance(x, jax.Array):
            name = _of_mesh(getattr(jax.typeof(x).sharding, "mesh", None))
            if name is None and not isinstance(x, jax.core.Tracer):
                name = next(iter(x.devices())).platform
            if name is not None:
                return name
    name = _of_mesh(jax.sharding.get_abstract_mesh())
    if name is not None:
        return name
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else str(device.platform)


def interpreted() -> bool:
    """Whether kernels of the assumed platform are interpreted here."""
    assumption = _ASSUMED.get()
    return assumption is not None and assumption[1]


@contextmanager
def assumed(name: str, *, interpret: bool = False) -> Iterator[None]:
    """What is traced meanwhile is for this platform, wherever it is traced: to lower, for tests.

    `interpret`: kernels that are written for it are interpreted, so that they run here. JAX keeps what it traced:
    functions that were traced outside must not be called inside, nor the other way round.
    """
    token = _ASSUMED.set((name, interpret))
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def _of_mesh(mesh: object) -> str | None:
    """The platform of the devices of a mesh, None where it has none or does not say."""
    device = getattr(mesh, "abstract_device", None)
    if device is None:
        return None
    # of an abstract device made by hand only the kind may be known
    return getattr(device, "platform", None)
