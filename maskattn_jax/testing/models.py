"""The models of the training runs: this twin's attention between Flax's own layers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from maskattn import masks
from maskattn.biases import RelativeTable
from maskattn.parity.training.tasks import Stack, Task
from maskattn_jax import losses, rng
from maskattn_jax.corruption import corrupt
from maskattn_jax.dropout import drop
from maskattn_jax.multihead import MultiHeadAttention
from maskattn_jax.seed import Attention

Array = Any

__all__ = ["MODELS", "Autoencoder", "Block", "CausalLanguageModel", "MaskedLanguageModel", "ShiftedWindows"]


class Block(nnx.Module):
    """Attention and an MLP, each with layer norm, dropout and a sum.

    Args:
        stack: what the block is one of.
    """

    def __init__(self, stack: Stack, *, rngs: nnx.Rngs) -> None:
        config, width = stack.attention, stack.attention.embed_dim
        self.stack = stack
        if stack.seed_module:
            rates = (config.dropout_rate, config.out_dropout_rate)
            self.attention = Attention(width, config.num_heads, True, None, *rates, rngs=rngs)
        else:
            self.attention = MultiHeadAttention(config, rngs=rngs)
        self.attention_norm = _layer_norm(width, stack.epsilon, rngs)
        self.mlp_norm = _layer_norm(width, stack.epsilon, rngs)
        self.up = nnx.Linear(width, stack.hidden, rngs=rngs)
        self.down = nnx.Linear(stack.hidden, width, rngs=rngs)
        if stack.window is not None:
            rows = (2 * stack.window[0] - 1) * (2 * stack.window[1] - 1)
            self.table = nnx.Param(jnp.zeros((rows, config.num_heads)))

    def __call__(self, x: Array, key: Array, **given: Any) -> Array:
        """x [B, L, E] -> [B, L, E]; `given` goes to the attention (mask, True = may attend; kernel)."""
        attention_key, mlp_key = rng.split(key)
        if self.stack.window is not None:
            given["bias"] = RelativeTable(self.table[...], self.stack.window)
        given["dropout_key"] = attention_key
        if self.stack.norm_first:
            x = x + self.attention(self.attention_norm(x), **given)
            return x + self._mlp(self.mlp_norm(x), mlp_key)
        x = self.attention_norm(x + self.attention(x, **given))
        return self.mlp_norm(x + self._mlp(x, mlp_key))

    def _mlp(self, x: Array, key: Array) -> Array:
        x = nnx.gelu(self.up(x), approximate=self.stack.approximate)
        return drop(self.down(x), self.stack.rate, key)


class MaskedLanguageModel(nnx.Module):
    """BERT's: embeddings, blocks that see no padding, the hidden tokens predicted."""

    def __init__(self, task: Task, *, rngs: nnx.Rngs) -> None:
        width = task.stack.attention.embed_dim
        self.task = task
        self.embed = _embedding(task.classes, width, rngs)
        self.positions = nnx.Param(jnp.zeros((task.length, width)))
        self.norm = _layer_norm(width, task.stack.epsilon, rngs)
        self.blocks = _blocks(task.stack, rngs)
        self.head = nnx.Linear(width, task.classes, rngs=rngs)

    def __call__(self, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """tokens [B, L], lengths [B], special [B, L] -> the loss."""
        scheme_key, drop_key, *keys = rng.split(key, 2 + self.task.stack.depth)
        hidden = corrupt(self.task.scheme, scheme_key, batch["tokens"], special=batch["special"])
        x = drop(self.norm(self.embed(hidden.tokens) + self.positions[...]), self.task.stack.rate, drop_key)
        for block, block_key in zip(self.blocks, keys, strict=True):
            x = block(x, block_key, mask=masks.KeyPadding(batch["lengths"]), kernel=kernel)
        return losses.cross_entropy(self.head(x), hidden.labels)


class Autoencoder(nnx.Module):
    """MAE's: an encoder of the patches that are kept, a decoder of all, the removed ones predicted."""

    def __init__(self, task: Task, *, rngs: nnx.Rngs) -> None:
        assert task.decoder is not None
        width, narrow = task.stack.attention.embed_dim, task.decoder.attention.embed_dim
        self.task = task
        self.patches = nnx.Linear(task.patch**2, width, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((task.length, width)))
        self.blocks = _blocks(task.stack, rngs)
        self.norm = _layer_norm(width, task.stack.epsilon, rngs)
        self.bridge = nnx.Linear(width, narrow, rngs=rngs)
        self.mask_token = nnx.Param(jnp.zeros(narrow))
        self.decoder_positions = nnx.Param(jnp.zeros((task.length, narrow)))
        self.decoder = _blocks(task.decoder, rngs)
        self.decoder_norm = _layer_norm(narrow, task.decoder.epsilon, rngs)
        self.head = nnx.Linear(narrow, task.patch**2, rngs=rngs)

    def __call__(self, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """images [B, H, W, 1] -> the loss."""
        scheme_key, *keys = rng.split(key, 1 + len(self.blocks) + len(self.decoder))
        target = losses.patchify(batch["images"], self.task.patch)
        rows, length, _ = target.shape
        drawn = corrupt(self.task.scheme, scheme_key, rows, length)
        x = jnp.take_along_axis(self.patches(target) + self.positions[...], drawn.keep[..., None], 1)
        for block, block_key in zip(self.blocks, keys[: len(self.blocks)], strict=True):
            x = block(x, block_key, kernel=kernel)
        x = self.bridge(self.norm(x))
        removed = jnp.broadcast_to(self.mask_token[...], (rows, length - x.shape[1], x.shape[2]))
        x = (
            jnp.take_along_axis(jnp.concatenate([x, removed], 1), drawn.restore[..., None], 1)
            + self.decoder_positions[...]
        )
        for block, block_key in zip(self.decoder, keys[len(self.blocks) :], strict=True):
            x = block(x, block_key, kernel=kernel)
        return losses.mae_loss(self.head(self.decoder_norm(x)), target, drawn.removed, normalize=True)


class ShiftedWindows(nnx.Module):
    """Swin's: blocks of windows, every second one shifted, with learned position biases; hidden patches predicted."""

    def __init__(self, task: Task, *, rngs: nnx.Rngs) -> None:
        width = task.stack.attention.embed_dim
        self.task = task
        self.patches = nnx.Linear(task.patch**2, width, rngs=rngs)
        self.mask_token = nnx.Param(jnp.zeros(width))
        self.blocks = _blocks(task.stack, rngs)
        self.norm = _layer_norm(width, task.stack.epsilon, rngs)
        self.head = nnx.Linear(width, task.patch**2, rngs=rngs)

    def __call__(self, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """images [B, H, W, 1] -> the loss."""
        window = self.task.stack.window
        assert window is not None
        scheme_key, *keys = rng.split(key, 1 + len(self.blocks))
        target = losses.patchify(batch["images"], self.task.patch)
        rows, length, _ = target.shape
        removed = corrupt(self.task.scheme, scheme_key, rows).removed
        grid = removed.shape[1:]
        x = self.patches(target).reshape(rows, *grid, -1)
        x = jnp.where(removed[..., None], self.mask_token[...], x)
        for i, (block, block_key) in enumerate(zip(self.blocks, keys, strict=True)):
            shift = tuple(n // 2 * (i % 2) for n in window)
            x = _windows(jnp.roll(x, tuple(-n for n in shift), (1, 2)), window)
            x = block(x, block_key, mask=masks.ShiftedWindow(grid, window, shift), kernel=kernel)
            x = jnp.roll(_grid(x, grid, window), shift, (1, 2))
        prediction = self.head(self.norm(x.reshape(rows, length, -1)))
        return losses.mae_loss(prediction, target, removed.reshape(rows, length), normalize=True)


class CausalLanguageModel(nnx.Module):
    """GPT-2's, with grouped heads: each next token predicted."""

    def __init__(self, task: Task, *, rngs: nnx.Rngs) -> None:
        width = task.stack.attention.embed_dim
        self.task = task
        self.embed = _embedding(task.classes, width, rngs)
        self.positions = nnx.Param(jnp.zeros((task.length, width)))
        self.blocks = _blocks(task.stack, rngs)
        self.norm = _layer_norm(width, task.stack.epsilon, rngs)
        self.head = nnx.Linear(width, task.classes, rngs=rngs)

    def __call__(self, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """tokens [B, L + 1] -> the loss."""
        drop_key, *keys = rng.split(key, 1 + self.task.stack.depth)
        x = drop(self.embed(batch["tokens"][:, :-1]) + self.positions[...], self.task.stack.rate, drop_key)
        for block, block_key in zip(self.blocks, keys, strict=True):
            x = block(x, block_key, mask=masks.Causal(), kernel=kernel)
        return losses.cross_entropy(self.head(self.norm(x)), batch["tokens"][:, 1:])


#: By the name of the task.
MODELS: dict[str, Any] = {
    "mlm": MaskedLanguageModel,
    "mae": Autoencoder,
    "swin": ShiftedWindows,
    "causal": CausalLanguageModel,
}


def _blocks(stack: Stack, rngs: nnx.Rngs) -> Any:
    return nnx.List([Block(stack, rngs=rngs) for _ in range(stack.depth)])


def _embedding(tokens: int, width: int, rngs: nnx.Rngs) -> Any:
    """In the dtype of its parameters, as other layers are: `nnx.Embed` keeps the one that it was made in."""
    layer = nnx.Embed(tokens, width, rngs=rngs)
    layer.dtype = None
    return layer


def _layer_norm(width: int, epsilon: float, rngs: nnx.Rngs) -> Any:
    """The variance as the mean of squared distances from the mean: Flax's default is the mean square less the squared
    mean, which loses digits where the mean is large.
    """
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def _windows(x: Array, window: tuple[int, int]) -> Array:
    """[B, H, W, E] -> [B * windows, tokens of a window, E], windows and tokens in row-major order."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window[0], window[0], width // window[1], window[1], channels)
    return x.swapaxes(2, 3).reshape(-1, window[0] * window[1], channels)


def _grid(x: Array, grid: tuple[int, int], window: tuple[int, int]) -> Array:
    """The inverse of `_windows`."""
    rows, columns = grid[0] // window[0], grid[1] // window[1]
    x = x.reshape(-1, rows, columns, *window, x.shape[-1])
    return x.swapaxes(2, 3).reshape(-1, *grid, x.shape[-1])
