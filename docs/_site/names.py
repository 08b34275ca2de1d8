"""The public names of the library, which the reference must have: what the modules that people import export."""

from __future__ import annotations

import functools
import importlib
import types

#: Modules that are imported by name, in the documentation or in code of others; what they export is public.
MODULES = (
    "maskattn",
    "maskattn.masks",
    "maskattn.biases",
    "maskattn.recipes",
    "maskattn.corruption",
    "maskattn.schedule",
    "maskattn.show",
    "maskattn.layer",
    "maskattn.layer.from_hf",
    "maskattn.models",
    "maskattn.models.adapters",
    "maskattn.models.axes",
    "maskattn.convert",
    "maskattn.convert.layouts",
    "maskattn.checkpoints",
    "maskattn.optimizers",
    "maskattn.diagnose",
    "maskattn.numerics.rng",
    "maskattn.numerics.dropout",
    "maskattn.numerics.exact",
    "maskattn.parity.attention.adapters",
    "maskattn.parity.attention.cases",
    "maskattn.parity.attention.result",
    "maskattn.parity.attention.run",
    "maskattn.parity.findings",
    "maskattn.parity.plugin",
    "maskattn.standards",
    "maskattn.typing",
    "maskattn_torch",
    "maskattn_torch.cache",
    "maskattn_torch.dropout",
    "maskattn_torch.hugging_face",
    "maskattn_torch.losses",
    "maskattn_torch.lower",
    "maskattn_torch.mha",
    "maskattn_torch.models",
    "maskattn_torch.optimizers",
    "maskattn_torch.parallel",
    "maskattn_torch.params",
    "maskattn_torch.rng",
    "maskattn_torch.types",
    "maskattn_jax",
    "maskattn_jax.cache",
    "maskattn_jax.dropout",
    "maskattn_jax.flax_linen",
    "maskattn_jax.flax_nnx",
    "maskattn_jax.linen",
    "maskattn_jax.losses",
    "maskattn_jax.lower",
    "maskattn_jax.models",
    "maskattn_jax.optimizers",
    "maskattn_jax.params",
    "maskattn_jax.rng",
    "maskattn_jax.types",
)


@functools.cache
def exported() -> dict[str, object]:
    """Each public name, with its module -> what it is; modules, and classes of other libraries, are not among them."""
    found: dict[str, object] = {}
    for module in MODULES:
        space = importlib.import_module(module)
        for name in getattr(space, "__all__", None) or defined(space):
            thing = getattr(space, name)
            foreign = isinstance(thing, type) and not thing.__module__.startswith("maskattn")
            if not (foreign or name == "__version__" or isinstance(thing, types.ModuleType)):
                found[f"{module}.{name}"] = thing
    return found


def defined(space: types.ModuleType) -> list[str]:
    """The functions and classes that a module without `__all__` defines, but for private ones."""
    return [
        name
        for name, thing in vars(space).items()
        if not name.startswith("_") and callable(thing) and getattr(thing, "__module__", "") == space.__name__
    ]
