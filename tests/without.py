"""Python as someone has it who has not installed a framework: `python tests/without.py jax -m pytest tests/masks`."""

import runpy
import sys
from importlib.machinery import PathFinder

PACKAGES = {
    "jax": {"chex", "equinox", "flax", "haliax", "jax", "jaxlib", "optax", "orbax"},
    "torch": {"keras", "safetensors.torch", "torch", "torchvision", "transformers"},
}


def hide(framework: str) -> None:
    """From here on, what belongs to the framework is not found."""
    find = PathFinder.find_spec

    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in PACKAGES[framework] or name in PACKAGES[framework]
        return None if hidden else find(name, path, target)

    PathFinder.find_spec = classmethod(find_spec)


if __name__ == "__main__":
    hide(sys.argv[1])
    if sys.argv[2] == "-m":
        sys.argv = sys.argv[3:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name="__main__")
