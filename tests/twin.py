"""The fixture `twin`: a test that takes it is run in each framework, on the same NumPy inputs, with one judge."""

from __future__ import annotations

import contextlib
import functools
import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from maskattn.arrays import to_numpy


class Twin:
    """A framework as tests see it; whatever is not here is of its package: `twin.lower`, `twin.attention`, ..."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.package: ModuleType = importlib.import_module(f"maskattn_{name}")
        self.framework: ModuleType = importlib.import_module(name)

    def __repr__(self) -> str:
        return self.name

    def __getattr__(self, name: str) -> Any:
        if hasattr(self.package, name):
            return getattr(self.package, name)
        return importlib.import_module(f"{self.package.__name__}.{name}")

    def array(self, x: Any) -> Any:
        """A copy of NumPy's array, bit for bit, bfloat16 too."""
        return importlib.import_module(f"{self.package.__name__}.testing.adapter").from_numpy(np.asarray(x))

    def to_numpy(self, x: Any) -> np.ndarray:
        return to_numpy(x)

    def compile(self, function: Any) -> Any:
        """jax.jit, or torch.compile of one graph; what it computes is then PyTorch's own (backend eager)."""
        if self.name == "jax":
            return self.framework.jit(function)
        self.framework._dynamo.reset()
        return self.framework.compile(function, fullgraph=True, backend="eager", dynamic=False)

    def grad(self, function: Any, *arrays: Any) -> list[np.ndarray]:
        """The gradients of one number by each array, in NumPy."""
        if self.name == "jax":
            return [to_numpy(x) for x in self.framework.grad(function, tuple(range(len(arrays))))(*arrays)]
        given = [self.array(to_numpy(x)).requires_grad_() for x in arrays]
        return [to_numpy(x) for x in self.framework.autograd.grad(function(*given), given)]

    def vjp(self, function: Any, arrays: Any, cotangents: Any, *more: Any) -> list[np.ndarray]:
        """function(*arrays, *more), and the gradients by the arrays, in NumPy; in JAX under one jit."""
        if self.name == "jax":
            jax = self.framework

            @jax.jit
            def both(arrays: Any, cotangents: Any, more: Any) -> Any:
                found, pull = jax.vjp(lambda *given: function(*given, *more), *arrays)
                return *found, *pull(cotangents)

            return [to_numpy(x) for x in both(arrays, cotangents, more)]
        given = [self.array(x).requires_grad_() for x in arrays]
        found = function(*given, *map(self.array, more))
        grads = self.framework.autograd.grad(found, given, [self.array(x) for x in cotangents])
        return [to_numpy(x) for x in (*found, *grads)]

    def x64(self, wanted: bool = True) -> Any:
        """A context in which float64 and int64 stay what they are."""
        return self.framework.enable_x64(wanted) if self.name == "jax" else contextlib.nullcontext()

    def vmap(self, function: Any, **options: Any) -> Any:
        return (self.framework if self.name == "jax" else self.framework.func).vmap(function, **options)

    @property
    def numpy(self) -> Any:
        """jax.numpy, or torch."""
        return self.framework.numpy if self.name == "jax" else self.framework

    def tree_map(self, function: Any, *trees: Any) -> Any:
        if self.name == "jax":
            return self.framework.tree.map(function, *trees)
        return self.framework.utils._pytree.tree_map(function, *trees)


def same(found: Any, expected: Any) -> None:
    """Asserts the same dtype, shape and bits."""
    found, expected = to_numpy(found), to_numpy(expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()


def same_tensors(found: Any, expected: Any) -> None:
    """Asserts the same names in the same order, and the same dtype, shape and bits of each."""
    assert list(found) == list(expected)
    for name in expected:
        try:
            same(found[name], expected[name])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def to_torch(x: Any) -> Any:
    """A tensor with a copy of NumPy's array."""
    return load("torch").array(x)


load = functools.cache(Twin)


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("jax", "torch")])
def twin(request: pytest.FixtureRequest) -> Twin:
    """Each framework in turn."""
    return load(request.param)
