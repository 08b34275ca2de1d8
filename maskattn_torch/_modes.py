"""Which modes of PyTorch are on: whether a tensor is what it seems, and whether anybody can ask for a gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["bare", "plain", "unwatched"]

_WHOLE = (Tensor, torch.nn.Parameter)


def plain() -> bool:
    """Whether tensors are what they seem: none is traced, fake or of a transform, nor would one made now be. What is
    read of them, and what is made, may then be kept for later calls.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
    )


def unwatched(*arrays: Tensor | None) -> bool:
    """Whether nobody can ask for a gradient, in any mode of differentiation, of what is computed from these.

    An operator is then called by itself: of an autograd.Function whose `forward` takes `*arguments`, a compiler would
    believe that it takes a context, too.
    """
    if not torch.compiler.is_compiling():
        if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return False
    return not (torch.is_grad_enabled() and any([x is not None and x.requires_grad for x in arrays]))


def bare(arguments: list[object] | tuple[object, ...]) -> bool:
    """Whether an operator may be passed by: nothing stands between its caller and the function that it is made of. No
    mode sees what is called, and tensors among the arguments, or lists of them, are of no other kind.
    """
    if not plain() or torch._C._len_torch_function_stack() or forward_ad._current_level >= 0:
        return False
    watched = torch.is_grad_enabled()
    for x in arguments:
        if isinstance(x, Tensor):
            if type(x) not in _WHOLE or x.is_meta or watched and x.requires_grad:
                return False
        elif isinstance(x, list) and not bare(x):
            return False
    return True
