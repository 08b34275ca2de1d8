"""Two runs of a whole model, compared layer by layer: of a checkpoint in PyTorch, and of what was made of it in JAX."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from maskattn import standards
from maskattn.arrays import dtype_named
from maskattn.convert.twins import JaxModel, Numbers, TorchModel, WithinLimits
from maskattn.models import WholeModel, files
from maskattn.models.files import Source
from maskattn.models.leaves import Tensor
from maskattn.models.sample import sample
from maskattn.typing import NumPyArray as Array, NumPyDType

#: What is done now.
Progress = Callable[[str], None]
#: Of a few labels the root mean square is chance.
FEW = 64
NEEDED = ("torch", "jax", "flax")


@dataclass(frozen=True)
class Compared(WithinLimits):
    """One of the things that a whole model gives.

    Attributes:
        name: the path of a block, or "hidden", "logits", "pooled", ...
        error, limit: how far one run is off from the other, and what it may be: see `standards.whole_model_error`.
        share: error / limit.
    """

    name: str
    error: float
    limit: float
    share: float


def judged(name: str, ours: Array, theirs: Array, right: Array, dtype: str = "float32", few: int = FEW) -> Compared:
    """One of the things that a model gives; `few` as in `standards.whole_model_error`."""
    error, limit = standards.whole_model_error(ours, theirs, right, dtype, few)
    return Compared(name, error, limit, float(standards.share(error, limit)))


def absent() -> list[str]:
    """Of what both twins need, what is not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def read(source: Source, dtype: NumPyDType | None = None) -> tuple[WholeModel, Numbers]:
    """A model's table, and its tensors as the file has them, each for one use; float64 is narrowed to float32, which
    both frameworks have.

    Args:
        dtype: what floating-point tensors are cast to; None: nothing.

    Raises:
        ValueError: as `files.load`.
    """

    def cast(name: str, tensor: Tensor, array: Array) -> Array:
        wanted = dtype or (dtype_named("float32") if array.dtype == np.float64 else None)
        return array if wanted is None or not files.is_floating(array.dtype) else array.astype(wanted, copy=False)

    table, arrays, _ = files.load(source, cast)
    return table, lambda name, tensor: arrays.pop(name)


def compare(
    source: Source,
    written: Source,
    dtype: NumPyDType | None = None,
    *,
    partly: bool = False,
    progress: Progress = lambda what: None,
) -> list[Compared]:
    """A checkpoint in PyTorch and what was made of it in JAX, on inputs of their own: what every block gives, in order,
    the last hidden states, logits and pooled vectors. Parameters are as stored, all is computed in float32; the limit
    is of PyTorch's own error against float64. One model at a time is in memory.

    Args:
        source, written: checked by `files.checked`.
        dtype: what floating-point tensors of the source are cast to, as in the file.
        partly: whether the file may lack a head: what it does not give is then not compared.
    """
    progress("reading the source for PyTorch")
    table, numbers = read(source, dtype)
    model, given = TorchModel(table, numbers, "float32", blocks=True), sample(table, source.config)
    progress("the source in PyTorch")
    theirs = model(given)
    progress("the source in PyTorch, in float64")
    right = model(given, "float64")
    del model, numbers
    progress("reading the file for JAX")
    table, numbers = read(written)
    progress("the file in JAX")
    ours = JaxModel(table, numbers, "float32", blocks=True)(given)
    return list(compared(ours, {name: x for name, x in theirs.items() if name in ours or not partly}, right))


def compared(ours: Mapping[str, Array], theirs: Mapping[str, Array], right: Mapping[str, Array]) -> Iterator[Compared]:
    """All that two runs gave, block by block; what has another shape, or is missing, is as far off as can be."""
    blocks = any(name.startswith("before ") for name in theirs)
    for name, his in theirs.items():
        if blocks and "hidden_states." in name:
            continue
        mine = ours.get(name)
        if mine is None or mine.shape != his.shape or (his.dtype.kind in "biu" and not np.array_equal(mine, his)):
            yield Compared(name, float("inf"), 0.0, float("inf"))
        elif his.dtype.kind not in "biu":  # which patches are seen
            yield judged(name, mine, his, right[name])
