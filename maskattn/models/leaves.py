"""The layers that hold parameters, framework-free: what each is called, and how its tensors lie.

A leaf's name is its path in the model that published it ("self_attn.q_proj"), and both twins make a module there. Its
tensors are described as PyTorch has them, with what Flax calls them and the order of axes there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

from maskattn.typing import Array as AnyArray, NumPyArray, Traced

#: A logical axis of a parameter, which a mesh may divide; None: never divided.
Axis = str | None
#: What the numbers of a new model are; see `Tensor`.
Begins = float | Callable[[tuple[int, ...]], NumPyArray] | None

B = TypeVar("B", bound=AnyArray)


class Tensor(NamedTuple):
    """One parameter.

    Attributes:
        shape: as published.
        flax: its name in Flax.
        order: which axes of the published one Flax's are, in order.
        axes: logical axes, one for each of Flax's.
        begins: what a new model holds, or makes of the shape; None: numbers drawn from a normal distribution.
        trained: False: a buffer, that no optimizer changes.
    """

    shape: tuple[int, ...]
    flax: str
    order: tuple[int, ...]
    axes: tuple[Axis, ...]
    begins: Begins = None
    trained: bool = True

    @property
    def flax_shape(self) -> tuple[int, ...]:
        """The shape in Flax."""
        return tuple(self.shape[axis] for axis in self.order)


@dataclass(frozen=True)
class Leaf:
    """A layer with parameters of its own.

    Attributes:
        name: its path, from the module that it belongs to.
        adapter: whether its parameters are an adapter's, which are trained alone.
    """

    name: str
    adapter: bool = field(default=False, kw_only=True)

    def within(self) -> tuple[Leaf, ...]:
        """Leaves that stand within its module; their names are paths from where its own is one."""
        return ()

    def tensors(self) -> Mapping[str, Tensor]:
        """Its parameters by their published names, behind the leaf's own and a dot; "" is the leaf itself."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(Leaf):
    """x [..., inputs] -> [..., outputs].

    Attributes:
        turned: whether the published weight is [inputs, outputs], as in GPT-2, and not [outputs, inputs].
        axes: logical axes of inputs and outputs.
        lora: what an adapter adds to it.
        begins: what the weight of a new model holds; None: numbers drawn.
    """

    inputs: int
    outputs: int
    bias: bool = True
    turned: bool = False
    axes: tuple[Axis, Axis] = ("embed", None)
    lora: LoRA | None = None
    begins: float | None = None

    def within(self) -> tuple[Leaf, ...]:
        return () if self.lora is None else (self.lora.down, self.lora.up)

    def tensors(self) -> Mapping[str, Tensor]:
        shape = (self.inputs, self.outputs) if self.turned else (self.outputs, self.inputs)
        made = {"weight": Tensor(shape, "kernel", (0, 1) if self.turned else (1, 0), self.axes, self.begins)}
        return made | ({"bias": Tensor((self.outputs,), "bias", (0,), self.axes[1:], 0.0)} if self.bias else {})


class LoRA(NamedTuple):
    """What is added to a linear layer's output: scale * up(down(x)) (Hu et al. 2021).

    Attributes:
        down: to few numbers. up: from them.
        dropout_rate: of x.
    """

    down: Linear
    up: Linear
    scale: float
    dropout_rate: float = 0.0


@dataclass(frozen=True)
class Norm(Leaf):
    """A norm over the last axis of x [..., width].

    Attributes:
        kind: "layer" or "rms"; or "frames": of each channel over all frames of x [B, frames, width].
        plus_one: whether 1 + scale multiplies.
    """

    width: int
    kind: str = "layer"
    eps: float = 1e-5
    scale: bool = True
    bias: bool = True
    plus_one: bool = False

    def tensors(self) -> Mapping[str, Tensor]:
        made = {"weight": Tensor((self.width,), "scale", (0,), (None,), 0.0 if self.plus_one else 1.0)}
        made |= {"bias": Tensor((self.width,), "bias", (0,), (None,), 0.0)}
        return {name: tensor for name, tensor in made.items() if (self.scale if name == "weight" else self.bias)}


@dataclass(frozen=True)
class Embedding(Leaf):
    """A row of numbers for each of `rows` ids."""

    rows: int
    width: int
    axes: tuple[Axis, Axis] = ("vocab", "embed")

    def tensors(self) -> Mapping[str, Tensor]:
        return {"weight": Tensor((self.rows, self.width), "embedding", (0, 1), self.axes)}


@dataclass(frozen=True)
class Conv(Leaf):
    """A convolution over one axis, or two, of x [..., *places, inputs] -> [..., *places, outputs].

    Attributes:
        size, stride: along each axis. padding: on both sides of each axis.
        groups: of channels, each convolved by itself.
    """

    inputs: int
    outputs: int
    size: tuple[int, ...]
    stride: tuple[int, ...] = (1,)
    padding: int = 0
    groups: int = 1
    bias: bool = True

    def tensors(self) -> Mapping[str, Tensor]:
        shape = (self.outputs, self.inputs // self.groups, *self.size)
        order = (*range(2, len(shape)), 1, 0)
        made = {"weight": Tensor(shape, "kernel", order, (*[None] * len(self.size), None, "embed"))}
        return made | ({"bias": Tensor((self.outputs,), "bias", (0,), ("embed",), 0.0)} if self.bias else {})

    @property
    def is_product(self) -> bool:
        """Whether each number of the input is read once, as of the patches of an image: pieces times a matrix."""
        plain = not self.padding and self.groups == 1
        return plain and len(self.size) == 2 and self.stride == self.size

    def pieces(self, x: B) -> B:
        """x [B, height, width, inputs] -> what each place of the output reads, [B, *places, size * inputs]."""
        image: Traced = x
        (high, wide), (batch, height, width, _) = self.size, image.shape
        rows, columns = height // high, width // wide
        image = image[:, : rows * high, : columns * wide].reshape((batch, rows, high, columns, wide, -1))
        made: B = image.swapaxes(2, 3).reshape((batch, rows, columns, -1))
        return made


@dataclass(frozen=True)
class Array(Leaf):
    """A parameter that stands by itself, such as a learned token."""

    shape: tuple[int, ...]
    begins: Begins = None
    trained: bool = True
    axes: tuple[Axis, ...] = ()

    def tensors(self) -> Mapping[str, Tensor]:
        axes = self.axes or (None,) * len(self.shape)
        last = self.name.rpartition(".")[2]
        return {"": Tensor(self.shape, last, tuple(range(len(self.shape))), axes, self.begins, self.trained)}


def first_numbers(name: str, tensor: Tensor) -> NumPyArray:
    """What a parameter of a new model holds, float32, as published: the same for a name on every machine.

    Where nothing else is said they are drawn from a normal distribution with the standard deviation 0.02, as the models
    of BERT and GPT-2 began.
    """
    if callable(tensor.begins):
        return tensor.begins(tensor.shape)
    if tensor.begins is not None:
        return np.full(tensor.shape, tensor.begins, np.float32)
    draws = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    return (draws.standard_normal(tensor.shape, np.float32) * np.float32(0.02)).astype(np.float32)
