"""Tensors that seem to be on a GPU, where there is none: for choices, refusals, and what would wait for it."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

#: What gives a number, or sizes, of a tensor's values.
READING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten.repeat_interleave.Tensor,
}


@functools.cache
def guard() -> None:
    """Build and load the device guard, once in a process: some 3 s."""
    if torch.version.cuda is not None:  # that build has a guard of its own
        return
    compiler = shutil.which("g++")
    assert compiler is not None, "tests of the CUDA branch need g++"
    from torch.utils.cpp_extension import include_paths

    torch.ones(1, requires_grad=True).sum().backward()  # autograd's threads are those of the devices known by now
    libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "fake_cuda.so"
        source = Path(__file__).with_suffix(".cpp")
        options = ["-shared", "-fPIC", "-std=c++20", *(f"-I{path}" for path in include_paths())]
        linked = [f"-L{libraries}", "-lc10", f"-Wl,-rpath,{libraries}"]
        subprocess.run([compiler, *options, str(source), "-o", str(made), *linked], check=True)
        torch.ops.load_library(made)


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """Within, `device="cuda"` makes tensors without values."""
    guard()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class NoWaiting(TorchDispatchMode):
    """Raises where an operation would wait for a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in READING:
            raise AssertionError(f"{function} reads values")
        before = {x.device.type for x in args if isinstance(x, torch.Tensor)}
        result = function(*args, **kwargs)
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            after = {result.device.type} | (before if function is torch.ops.aten.copy_.default else set())
            moved = before | after == {"cpu", "cuda"}
            waits = result.device.type == "cpu" or not kwargs.get("non_blocking", False)
            if moved and waits:
                raise AssertionError(f"{function} from {before} to {result.device} waits")
        return result
