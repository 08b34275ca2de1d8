"""Corruption schemes (`maskattn.corruption`) in PyTorch: the same result as NumPy and JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor as Array

from maskattn.corruption import Ops, Scheme
from maskattn_torch import rng
from maskattn_torch.types import Device, Given, RandomKey

__all__ = ["corrupt"]

Result = TypeVar("Result")


def corrupt(scheme: Scheme[Result], key: RandomKey, *args: object, device: Device = None, **named: object) -> Result:
    """`scheme.apply(key, *args, **named)` on tensors: integers in its result are int64.

    Args:
        scheme: what to apply.
        key: a seed in [0, 2**31), or two uint32 words.
        args, named: what `apply` of the scheme takes.
        device: of the result; by default that of the first tensor given, else the CPU.

    Raises:
        TypeError: scheme is no Scheme. ValueError, TypeError: as its `apply`.
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"corrupt: scheme must be a scheme of maskattn.corruption, got {scheme!r}")
    if device is None:
        device = next((x.device for x in (*args, *named.values()) if isinstance(x, torch.Tensor)), torch.device("cpu"))
    return scheme.apply(key, *args, **named, ops=_TorchOps(device))


class _TorchOps(Ops):
    xp, rng, integer = torch, rng, torch.int64

    def __init__(self, device: Device) -> None:
        self.device = device

    def key(self, key: RandomKey) -> Array:
        return rng.words(key, self.device)

    def words(self, key: Array, shape: Sequence[int]) -> Array:
        signed = rng.bits(key, tuple(shape)).view(torch.int32).to(torch.int64)
        return (signed & 0xFFFFFFFF) >> 1

    def array(self, x: Given) -> Array:
        x = torch.as_tensor(x, device=self.device)
        return x if x.dtype == torch.bool else x.to(torch.int64)

    def to_float(self, x: Array) -> Array:
        return torch.as_tensor(x, dtype=torch.float32, device=self.device)

    def arange(self, n: int) -> Array:
        return torch.arange(n, device=self.device)

    def zeros(self, shape: Sequence[int]) -> Array:
        return torch.zeros(tuple(shape), dtype=torch.int64, device=self.device)

    def sort(self, x: Array) -> Array:
        return torch.sort(x, dim=-1).values

    def argsort(self, x: Array) -> Array:
        return torch.argsort(x, dim=-1, stable=True)

    def take_along(self, x: Array, index: Array) -> Array:
        return torch.gather(x, -1, index)
