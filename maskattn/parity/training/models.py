"""The models of the training runs, written once: what each is made of and how it computes. A twin hands in what builds
the parts in its framework, and the operations that differ there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from maskattn import masks
from maskattn.biases import RelativeTable
from maskattn.parity.training.tasks import Task, Trunk
from maskattn.typing import Traced as Array


class Build(Protocol):
    """Makes parts of models in one framework, their numbers yet to be loaded."""

    def linear(self, inputs: int, outputs: int) -> object: ...
    def norm(self, width: int, epsilon: float) -> object: ...
    def embedding(self, tokens: int, width: int) -> object: ...
    def table(self, *shape: int) -> object: ...
    def attention(self, stack: Trunk) -> object: ...
    def blocks(self, stack: Trunk) -> object: ...


@dataclass(frozen=True)
class Operations:
    """What models compute with in one framework.

    Attributes:
        arrays: the framework's own functions: broadcast_to, concatenate, roll, where.
        take: (x, indices, axis) -> what stands there along the axis.
        gelu: (x, approximate) -> GELU, by tanh where approximate, else by erf.
        split, corrupt, drop, losses: the twin's.
    """

    arrays: ModuleType
    take: Callable[..., Array]
    gelu: Callable[[Array, bool], Array]
    split: Callable[..., Array]
    corrupt: Callable[..., Any]
    drop: Callable[..., Array]
    losses: ModuleType


class Block:
    """Attention and an MLP, each with layer norm, dropout and a sum."""

    @staticmethod
    def parts(stack: Trunk, build: Build) -> dict[str, object]:
        """By name."""
        width = stack.attention.embed_dim
        parts = {
            "attention": build.attention(stack),
            "attention_norm": build.norm(width, stack.epsilon),
            "mlp_norm": build.norm(width, stack.epsilon),
            "up": build.linear(width, stack.hidden),
            "down": build.linear(stack.hidden, width),
        }
        if stack.window is not None:
            rows, columns = (2 * size - 1 for size in stack.window)
            parts["table"] = build.table(rows * columns, stack.attention.num_heads)
        return parts

    @staticmethod
    def apply(own: Any, ops: Operations, x: Array, key: Array, **given: Any) -> Array:
        """x [B, L, E] -> [B, L, E]; `given` goes to the attention (mask, True = may attend; kernel)."""
        attention_key, mlp_key = ops.split(key)
        if own.stack.window is not None:
            given["bias"] = RelativeTable(own.table[...], own.stack.window)
        given["dropout_key"] = attention_key

        def mlp(x: Array) -> Array:
            return ops.drop(own.down(ops.gelu(own.up(x), own.stack.approximate)), own.stack.rate, mlp_key)

        if own.stack.norm_first:
            x = x + own.attention(own.attention_norm(x), **given)
            return x + mlp(own.mlp_norm(x))
        x = own.attention_norm(x + own.attention(x, **given))
        return own.mlp_norm(x + mlp(x))


class MaskedLanguageModel:
    """BERT's: embeddings, blocks that see no padding, the hidden tokens predicted."""

    @staticmethod
    def parts(task: Task, build: Build) -> dict[str, object]:
        """By name."""
        width = task.stack.attention.embed_dim
        return {
            "embed": build.embedding(task.classes, width),
            "positions": build.table(task.length, width),
            "blocks": build.blocks(task.stack),
            "norm": build.norm(width, task.stack.epsilon),
            "head": build.linear(width, task.classes),
        }

    @staticmethod
    def loss(own: Any, ops: Operations, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """tokens [B, L], lengths [B], special [B, L] -> the loss."""
        scheme_key, drop_key, *keys = ops.split(key, 2 + own.task.stack.depth)
        hidden = ops.corrupt(own.task.scheme, scheme_key, batch["tokens"], special=batch["special"])
        x = ops.drop(own.norm(own.embed(hidden.tokens) + own.positions[...]), own.task.stack.rate, drop_key)
        x = _through(own.blocks, x, keys, mask=masks.KeyPadding(batch["lengths"]), kernel=kernel)
        return ops.losses.cross_entropy(own.head(x), hidden.labels)


class Autoencoder:
    """MAE's: an encoder of the patches that are kept, a decoder of all, the removed ones predicted."""

    @staticmethod
    def parts(task: Task, build: Build) -> dict[str, object]:
        """By name."""
        assert task.decoder is not None
        width, narrow = task.stack.attention.embed_dim, task.decoder.attention.embed_dim
        return {
            "patches": build.linear(task.patch**2, width),
            "positions": build.table(task.length, width),
            "blocks": build.blocks(task.stack),
            "norm": build.norm(width, task.stack.epsilon),
            "bridge": build.linear(width, narrow),
            "mask_token": build.table(narrow),
            "decoder_positions": build.table(task.length, narrow),
            "decoder": build.blocks(task.decoder),
            "decoder_norm": build.norm(narrow, task.decoder.epsilon),
            "head": build.linear(narrow, task.patch**2),
        }

    @staticmethod
    def loss(own: Any, ops: Operations, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """images [B, H, W, 1] -> the loss."""
        depth = own.task.stack.depth
        scheme_key, *keys = ops.split(key, 1 + depth + own.task.decoder.depth)
        target = ops.losses.patchify(batch["images"], own.task.patch)
        rows, length, _ = target.shape
        drawn = ops.corrupt(own.task.scheme, scheme_key, rows, length)
        x = ops.take(own.patches(target) + own.positions[...], drawn.keep[..., None], 1)
        x = own.bridge(own.norm(_through(own.blocks, x, keys[:depth], kernel=kernel)))
        removed = ops.arrays.broadcast_to(own.mask_token[...], (rows, length - x.shape[1], x.shape[2]))
        x = ops.take(ops.arrays.concatenate([x, removed], 1), drawn.restore[..., None], 1)
        x = _through(own.decoder, x + own.decoder_positions[...], keys[depth:], kernel=kernel)
        return ops.losses.mae_loss(own.head(own.decoder_norm(x)), target, drawn.removed, normalize=True)


class ShiftedWindows:
    """Swin's: blocks of windows, every second one shifted, with learned position biases; hidden patches predicted."""

    @staticmethod
    def parts(task: Task, build: Build) -> dict[str, object]:
        """By name."""
        width = task.stack.attention.embed_dim
        return {
            "patches": build.linear(task.patch**2, width),
            "mask_token": build.table(width),
            "blocks": build.blocks(task.stack),
            "norm": build.norm(width, task.stack.epsilon),
            "head": build.linear(width, task.patch**2),
        }

    @staticmethod
    def loss(own: Any, ops: Operations, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """images [B, H, W, 1] -> the loss."""
        window = own.task.stack.window
        scheme_key, *keys = ops.split(key, 1 + own.task.stack.depth)
        target = ops.losses.patchify(batch["images"], own.task.patch)
        rows, length, _ = target.shape
        removed = ops.corrupt(own.task.scheme, scheme_key, rows).removed
        grid = removed.shape[1:]
        x = own.patches(target).reshape(rows, *grid, -1)
        x = ops.arrays.where(removed[..., None], own.mask_token[...], x)
        for i, (block, block_key) in enumerate(zip(own.blocks, keys, strict=True)):
            shift = tuple(n // 2 * (i % 2) for n in window)
            x = _windows(ops.arrays.roll(x, tuple(-n for n in shift), (1, 2)), window)
            x = block(x, block_key, mask=masks.ShiftedWindow(grid, window, shift), kernel=kernel)
            x = ops.arrays.roll(_grid(x, grid, window), shift, (1, 2))
        prediction = own.head(own.norm(x.reshape(rows, length, -1)))
        return ops.losses.mae_loss(prediction, target, removed.reshape(rows, length), normalize=True)


class CausalLanguageModel:
    """GPT-2's, with grouped heads: each next token predicted. The parts are BERT's."""

    parts = MaskedLanguageModel.parts

    @staticmethod
    def loss(own: Any, ops: Operations, batch: dict[str, Array], key: Array, kernel: str) -> Array:
        """tokens [B, L + 1] -> the loss."""
        drop_key, *keys = ops.split(key, 1 + own.task.stack.depth)
        x = ops.drop(own.embed(batch["tokens"][:, :-1]) + own.positions[...], own.task.stack.rate, drop_key)
        x = _through(own.blocks, x, keys, mask=masks.Causal(), kernel=kernel)
        return ops.losses.cross_entropy(own.head(own.norm(x)), batch["tokens"][:, 1:])


#: By the name of the task.
MODELS: dict[str, Any] = {
    "mlm": MaskedLanguageModel,
    "mae": Autoencoder,
    "swin": ShiftedWindows,
    "causal": CausalLanguageModel,
}


def _through(blocks: Iterable[Callable[..., Array]], x: Array, keys: Iterable[Array], **given: object) -> Array:
    for block, key in zip(blocks, keys, strict=True):
        x = block(x, key, **given)
    return x


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
