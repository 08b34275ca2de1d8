"""What a PyTorch program holds, is given and returns: modules, parameters and tensors, by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType

from torch import Tensor, nn
from torch.utils import _pytree as pytree

#: What is not the program's own code.
LIBRARIES = ("torch",)


def held(function: object) -> dict[str, nn.Module]:
    """Modules that a function holds: itself, or those that it names, by these names; one alone has the name ""."""
    found: dict[int, tuple[str, nn.Module]] = {}

    def look(it: object, name: str) -> None:
        if isinstance(it, nn.Module):
            found.setdefault(id(it), (name, it))
        elif isinstance(it, functools.partial):
            for at, one in enumerate((it.func, *it.args, *it.keywords.values())):
                look(one, below(name, str(at)))
        elif isinstance(it, MethodType):
            look(it.__self__, name)
            look(it.__func__, name)
        elif isinstance(it, FunctionType) and (it.__module__ or "").partition(".")[0] not in LIBRARIES:
            for key, one in inspect.getclosurevars(it)._asdict().items():
                if key in ("nonlocals", "globals"):
                    for inner, value in one.items():
                        if value is not it and isinstance(value, (nn.Module, functools.partial, MethodType)):
                            look(value, below(name, inner))

    look(function, "")
    modules = {name: module for name, module in found.values()}
    return {"": next(iter(modules.values()))} if len(modules) == 1 else modules


def below(name: str, key: str) -> str:
    """A path within another one."""
    return f"{name}.{key}" if name and key else name or key


def parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, Tensor]]:
    """Parameters and buffers, each once: "parameter", "saved" or, where no checkpoint has it, "computed"; the name."""
    seen: set[int] = set()
    for name, module in modules.items():
        saved = module.state_dict(keep_vars=True)
        buffers = (("saved" if key in saved else "computed", key, one) for key, one in module.named_buffers())
        parameters = (("parameter", key, one) for key, one in module.named_parameters())
        for kind, key, tensor in (*parameters, *buffers):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield kind, below(name, key), tensor


def names(structure: object) -> list[str]:
    """Paths of the leaves of arguments: names of keyword arguments, numbers of others."""
    return [_path(path) for path, _ in pytree.tree_flatten_with_path(structure)[0]]


def _path(path: Sequence[object]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path[1:])


def tensors(out: object) -> list[tuple[str, Tensor]]:
    """What a program returned: tensors with their paths; a dataclass, a mapping or a sequence is looked into."""
    if isinstance(out, Tensor):
        return [("", out)]
    if isinstance(out, Mapping):
        items = [(str(name), one) for name, one in out.items()]
    elif isinstance(out, (tuple, list)):
        fields = getattr(out, "_fields", range(len(out)))
        items = [(str(name), one) for name, one in zip(fields, out, strict=True)]
    elif hasattr(out, "__dataclass_fields__"):
        items = [(name, getattr(out, name)) for name in out.__dataclass_fields__]
    else:
        return []
    return [(f"{name}.{rest}".rstrip("."), one) for name, each in items for rest, one in tensors(each)]
