"""A small language model in PyTorch: what docs/port/port.py is a port of."""

import numpy as np
import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal self-attention, x [B, L, E]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (one.view(batch, length, self.heads, -1).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5
        causal = torch.ones(length, length, dtype=torch.bool).tril()  # True = may attend
        weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """One layer, x [B, L, E]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    """Logits [B, L, V] of tokens [B, L]."""

    def __init__(self, vocabulary: int = 50, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


torch.manual_seed(0)
module = Model().eval()
with torch.no_grad():
    for one in module.parameters():  # norms and biases that are all ones or zeros could not be told apart
        one.add_(0.1 * torch.randn(one.shape))
inputs = {"tokens": np.random.default_rng(0).integers(0, 50, (2, 12))}


def model() -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The side of PyTorch, with its inputs."""
    return module, inputs
