"""The models of the training runs in JAX: this twin's attention between Flax's own layers."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from maskattn.parity.training import models
from maskattn.parity.training.tasks import Task, Trunk
from maskattn_jax import losses, rng
from maskattn_jax.corruption import corrupt
from maskattn_jax.dropout import drop
from maskattn_jax.multihead import MultiHeadAttention
from maskattn_jax.seed import Attention

__all__ = ["OPERATIONS", "Block", "TaskModel"]


OPERATIONS = models.Operations(jnp, jnp.take_along_axis, nnx.gelu, rng.split, corrupt, drop, losses)


class Block(nnx.Module):
    """Attention and an MLP, each with layer norm, dropout and a sum.

    Args:
        stack: what the block is one of.
    """

    def __init__(self, stack: Trunk, *, rngs: nnx.Rngs) -> None:
        self.stack = stack
        for name, part in models.Block.parts(stack, _Build(rngs)).items():
            setattr(self, name, part)

    def __call__(self, x: Array, key: Array, **given: object) -> Array:
        """x [B, L, E] -> [B, L, E]; `given` goes to the attention (mask, True = may attend; kernel)."""
        return models.Block.apply(self, OPERATIONS, x, key, **given)


class TaskModel(nnx.Module):
    """The model of a task.

    Args:
        task: what is trained.
    """

    def __init__(self, task: Task, *, rngs: nnx.Rngs) -> None:
        self.task = task
        for name, part in models.MODELS[task.name].parts(task, _Build(rngs)).items():
            setattr(self, name, part)

    def __call__(self, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """What the task's batches hold -> the loss."""
        return models.MODELS[self.task.name].loss(self, OPERATIONS, batch, key, kernel)


class _Build:
    """As `maskattn.parity.training.models.Build`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rngs = rngs

    def linear(self, inputs: int, outputs: int) -> object:
        return nnx.Linear(inputs, outputs, rngs=self.rngs)

    def embedding(self, tokens: int, width: int) -> object:
        """In the dtype of its parameters, as other layers are: `nnx.Embed` keeps the one that it was made in."""
        layer = nnx.Embed(tokens, width, rngs=self.rngs)
        layer.dtype = None
        return layer

    def norm(self, width: int, epsilon: float) -> object:
        """The variance as the mean of squared distances from the mean: Flax's default is the mean square less the
        squared mean, which loses digits where the mean is large.
        """
        return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=self.rngs)

    def table(self, *shape: int) -> object:
        return nnx.Param(jnp.zeros(shape))

    def attention(self, stack: Trunk) -> object:
        config = stack.attention
        if not stack.seed_module:
            return MultiHeadAttention(config, rngs=self.rngs)
        rates = (config.dropout_rate, config.out_dropout_rate)
        return Attention(config.embed_dim, config.num_heads, True, None, *rates, rngs=self.rngs)

    def blocks(self, stack: Trunk) -> object:
        return nnx.List([Block(stack, rngs=self.rngs) for _ in range(stack.depth)])
