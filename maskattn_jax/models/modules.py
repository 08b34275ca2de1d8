"""Modules of whole models: made from a table, named as the model that it describes was published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskattn import models
from maskattn.attention import KernelCannot
from maskattn.models import Inputs, Output, TokenModel, leaves
from maskattn.models.attention import Given
from maskattn.models.block import Block as BlockTable
from maskattn.models.files import Origin
from maskattn.models.part import Run
from maskattn.typing import KernelName
from maskattn_jax import rng
from maskattn_jax.models.ops import OPS, Plain
from maskattn_jax.types import Array, DType, Given as Numbers, RandomKey

__all__ = ["Block", "Group", "Model", "Norm"]

#: (published name, what it is) -> its numbers, as Flax has them.
Start = Callable[[str, leaves.Tensor], Array]

jax.tree_util.register_dataclass(Output, ["hidden", "logits", "pooled", "hidden_states", "cache"], [])


class Group(nnx.Module):
    """Modules by their names; those that are numbers by index, too."""

    def __getitem__(self, index: int) -> Any:
        return getattr(self, str(index))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __iter__(self) -> Iterator[Any]:
        return (module for name, module in vars(self).items() if isinstance(module, nnx.Module))


class Norm(nnx.Module):
    """Layer norm or RMS norm over the last axis; computed in float32 at least, rounded once."""

    def __init__(self, table: leaves.Norm, start: Callable[[str], Array]) -> None:
        self.table = table
        self.scale = nnx.data(nnx.Param(start("weight")) if table.scale else None)
        self.bias = nnx.data(nnx.Param(start("bias")) if table.bias else None)

    def __call__(self, x: Array) -> Array:
        """x [..., width] -> the same."""
        table = self.table
        wide = jnp.promote_types(x.dtype, jnp.float32)
        made = x.astype(wide)
        if table.kind == "layer":
            made = made - made.mean(-1, keepdims=True)
        made = made * jax.lax.rsqrt(jnp.square(made).mean(-1, keepdims=True) + table.eps)
        if self.scale is not None:
            scale = self.scale[...].astype(wide)
            made = made * (scale + 1 if table.plus_one else scale)
        if self.bias is not None:
            made = made + self.bias[...].astype(wide)
        return made.astype(x.dtype)


class Block(Group):
    """A block of a model."""

    def __init__(self, table: BlockTable) -> None:
        self.table = table

    def __call__(self, h: Array, run: Run[Array], given: Given[Array], cache: Any = None) -> tuple[Array, Any]:
        """h [B, L, E] -> [B, L, E], and the new cache where there is one."""
        return self.table.apply(self, h, run, given, cache)


class Model(Group):
    """A whole model of a table (`maskattn.models.describe`); `maskattn_jax.models.load` makes one of a checkpoint.

    Args:
        table: the model.
        start: what each parameter begins with; None: what a new model has.
        origin: what it was loaded from.
        dtype: of the computation; None: that of the parameters.
    """

    def __init__(
        self,
        table: TokenModel,
        start: Start | None = None,
        *,
        origin: Origin | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.table, self.origin, self.dtype = table, origin, dtype
        for path, block in table.blocks():
            _place(self, path, Block(block))
        for path, leaf in dict(table.leaves()).items():
            _hold(self, path, leaf, start or _begin, dtype)

    @property
    def config(self) -> dict[str, Any]:
        """What the config.json said that it was loaded with; empty where it was not loaded."""
        return {} if self.origin is None else self.origin.config

    def __call__(
        self,
        tokens: Array | None = None,
        attention_mask: Numbers | None = None,
        *,
        token_types: Numbers | None = None,
        positions: Numbers | None = None,
        global_tokens: Numbers | None = None,
        decoder_tokens: Numbers | None = None,
        decoder_attention_mask: Numbers | None = None,
        memory: Array | None = None,
        images: Array | None = None,
        features: Array | None = None,
        noise: Array | None = None,
        cache: tuple[Any, ...] | None = None,
        valid: Numbers | None = None,
        hidden_states: bool = False,
        dropout_key: RandomKey | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
    ) -> Output[Array]:
        """What the model makes of tokens, images or sound: hidden states, logits, pooled vectors.

        Args:
            tokens: int [B, L].
            attention_mask: [B, L], 1 = keep, 0 = padding; None keeps all.
            token_types: int [B, L], of models that have several; None: all 0.
            positions: int [L] or [B, L]; None counts as the model's own code does.
            global_tokens: bool [B, L], True = global, of models with global attention.
            decoder_tokens, decoder_attention_mask: [B, T], of models with an encoder and a decoder.
            memory: [B, L, E], what such a model's encoder gave before, which is then not run.
            images: [B, channels, height, width]. features: of sound, [B, samples] or [B, channels, frames].
            noise: [B, patches], by which a masked autoencoder chooses what it sees.
            cache: of decoding, an entry for each layer (`cache`); the new one is in the output.
            valid: bool [B, L], which tokens enter the cache; the others are padding.
            hidden_states: whether those of every layer are returned.
            dropout_key: a seed in [0, 2**31) or two uint32 words, needed where dropout is on.
            deterministic: True applies no dropout; None: where no key is given.
            kernel: as in `attention`.
        """
        key = None if deterministic or dropout_key is None else rng.words(dropout_key)
        if kernel == "exact":
            raise KernelCannot(kernel, ["whole models have no exact arithmetic yet"])
        given: Inputs[Any] = Inputs(
            tokens,
            attention_mask,
            token_types,
            positions,
            global_tokens,
            decoder_tokens,
            decoder_attention_mask,
            memory,
            images,
            features,
            noise,
            cache,
            valid,
            hidden_states,
        )
        return self.table.apply(self, given, Run(OPS if self.dtype is None else Plain(self.dtype), kernel, key))


def _begin(name: str, tensor: leaves.Tensor) -> Array:
    return jnp.asarray(models.first_numbers(name, tensor).transpose(tensor.order))


def _place(root: nnx.Module, path: str, module: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            setattr(root, name, Group())
        root = getattr(root, name)
    setattr(root, last, module)


def _hold(root: nnx.Module, path: str, leaf: leaves.Leaf, start: Start, dtype: DType | None) -> None:
    """Make the module of a leaf, with its parameters."""
    tensors = leaf.tensors()
    if isinstance(leaf, leaves.Array):
        kind = nnx.Param if tensors[""].trained else nnx.Variable
        _place(root, path, nnx.data(kind(start(path, tensors[""]))))
        return

    def begin(name: str) -> Array:
        return start(f"{path}.{name}", tensors[name])

    _place(root, path, _module(leaf, begin, dtype))


def _module(leaf: leaves.Leaf, begin: Callable[[str], Array], dtype: DType | None) -> nnx.Module:
    if isinstance(leaf, leaves.Norm):
        return Norm(leaf, begin)
    rngs = nnx.Rngs(0)
    weight = begin("weight")
    if isinstance(leaf, leaves.Embedding):
        table = nnx.Embed(leaf.rows, leaf.width, embedding_init=lambda *_: weight, rngs=rngs)
        table.dtype = dtype  # None: the one that its numbers have, as of the other layers
        return table
    bias = begin("bias") if "bias" in leaf.tensors() else None
    made: dict[str, Any] = {"use_bias": bias is not None, "dtype": dtype, "rngs": rngs}
    made |= {"kernel_init": lambda *_: weight, "bias_init": lambda *_: bias}
    if isinstance(leaf, leaves.Linear):
        return nnx.Linear(leaf.inputs, leaf.outputs, **made)
    assert isinstance(leaf, leaves.Conv)
    padding = [(leaf.padding, leaf.padding)] * len(leaf.size)
    options: dict[str, Any] = {"strides": leaf.stride, "padding": padding, "feature_group_count": leaf.groups}
    return nnx.Conv(leaf.inputs, leaf.outputs, leaf.size, **options, **made)
