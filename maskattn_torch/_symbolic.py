"""Sizes and numbers that a compiler leaves open: what is asked of them must not become a condition of the graph."""

from __future__ import annotations

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

__all__ = ["below", "is_open", "known", "may_be_open"]

#: A size that is known to stay below has a range that somebody gave.
_MOST = 1 << 62


def known(condition: bool) -> bool:
    """Whether a comparison of sizes or numbers holds whatever those may be that a compiler leaves open."""
    return statically_known_true(condition) if torch.compiler.is_compiling() else bool(condition)


def below(size: int, limit: float) -> bool:
    """Whether a size is below a limit. In all of a range, where one was given (torch.export, mark_dynamic with a
    maximum); a compiler that is free to compile again is told to do so beyond the limit.
    """
    if torch.compiler.is_compiling() and (torch.compiler.is_exporting() or statically_known_true(size < _MOST)):
        return statically_known_true(size < limit)
    return bool(size < limit)


def may_be_open() -> bool:
    """Whether sizes and numbers may be open now: a compiler reads along, or tensors are of a mode."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def is_open(number: object) -> bool:
    """Whether this is an int that is left open."""
    if isinstance(number, torch.SymInt):
        return True
    if not torch.compiler.is_compiling() or isinstance(number, bool) or not isinstance(number, int):
        return False
    # the compiler shows open ints as ints: of a number that it knows, it knows the remainder
    return not any([statically_known_true(number % 7 == remainder) for remainder in range(7)])
