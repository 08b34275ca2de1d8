"""The models of the training runs in PyTorch: this twin's attention between PyTorch's own layers."""

from __future__ import annotations

import torch
from torch import Tensor as Array, nn
from torch.nn import functional as F

from maskattn.parity.training import models
from maskattn.parity.training.tasks import Task, Trunk
from maskattn_torch import losses, rng
from maskattn_torch.corruption import corrupt
from maskattn_torch.dropout import drop
from maskattn_torch.multihead import MultiHeadAttention
from maskattn_torch.seed import Attention

__all__ = ["OPERATIONS", "Block", "TaskModel"]


def _gelu(x: Array, approximate: bool) -> Array:
    return F.gelu(x, approximate="tanh" if approximate else "none")


OPERATIONS = models.Operations(torch, torch.take_along_dim, _gelu, rng.split, corrupt, drop, losses)


class Block(nn.Module):
    """Attention and an MLP, each with layer norm, dropout and a sum.

    Args:
        stack: what the block is one of.
    """

    def __init__(self, stack: Trunk) -> None:
        super().__init__()
        self.stack = stack
        for name, part in models.Block.parts(stack, _Build()).items():
            setattr(self, name, part)

    def forward(self, x: Array, key: Array, **given: object) -> Array:
        """x [B, L, E] -> [B, L, E]; `given` goes to the attention (mask, True = may attend; kernel)."""
        return models.Block.apply(self, OPERATIONS, x, key, **given)


class TaskModel(nn.Module):
    """The model of a task.

    Args:
        task: what is trained.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        for name, part in models.MODELS[task.name].parts(task, _Build()).items():
            setattr(self, name, part)

    def forward(self, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """What the task's batches hold -> the loss."""
        return models.MODELS[self.task.name].loss(self, OPERATIONS, batch, key, kernel)


class _Build:
    """As `maskattn.parity.training.models.Build`."""

    linear, embedding = nn.Linear, nn.Embedding

    def norm(self, width: int, epsilon: float) -> object:
        return nn.LayerNorm(width, eps=epsilon)

    def table(self, *shape: int) -> object:
        return nn.Parameter(torch.zeros(shape))

    def attention(self, stack: Trunk) -> object:
        config = stack.attention
        if not stack.seed_module:
            return MultiHeadAttention(config)
        rates = (config.dropout_rate, config.out_dropout_rate)
        return Attention(config.embed_dim, config.num_heads, True, None, *rates)

    def blocks(self, stack: Trunk) -> object:
        return nn.ModuleList([Block(stack) for _ in range(stack.depth)])
