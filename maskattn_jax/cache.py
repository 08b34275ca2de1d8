"""The key/value cache of decoding, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from maskattn._problems import describe
from maskattn.arrays import peek
from maskattn.attention import FLOAT_DTYPES
from maskattn.cache import BROKEN, CacheBase
from maskattn.cache.checks import check_empty, check_update
from maskattn.config import AttentionConfig
from maskattn.typing import NumPyArray, Traced
from maskattn_jax._mesh import rows_of
from maskattn_jax._scope import own_modes
from maskattn_jax.types import Array, DType, Given, Operand

__all__ = ["Cache"]


@partial(jax.tree_util.register_dataclass, data_fields=("key", "value", "lengths", "lost"), meta_fields=())
@dataclass(frozen=True, eq=False, repr=False)
class Cache(CacheBase[Array]):
    """Keys and values of the tokens so far, for decoding: a pytree of arrays whose shapes never change.

    A row is one sequence without gaps, each row as long as it is: token p of it has position p, and lies in slot p
    (rolling: p % size). `update` adds tokens, and `attention(query, cache.key, cache.value, cache.mask(mask, L))`
    attends to them: as attention over whole sequences does, one token at a time or many. A layer that shares the cache
    of another reads it, and adds nothing.

    Nothing is written in place, but by XLA where the old cache is donated (`jax.jit(..., donate_argnums=...)`).

    Attributes:
        key: [B, size, K, D], the keys in all slots. value: [B, size, K, Dv], the values.
        lengths: int32 [B], how many tokens each row has; more than `size` (rolling: 2**30 or more) where a row ran over
            or was told wrong positions and lengths were traced: from then on it attends to nothing.
        lost: int32 [B], of a rolling cache how many tokens at a row's beginning are no longer held; else None.
    """

    key: Float[Array, "B size K D"]
    value: Float[Array, "B size K Dv"]
    lengths: Int32[Array, " B"]
    lost: Int32[Array, " B"] | None = None

    @classmethod
    def empty(
        cls,
        batch: int,
        size: int,
        num_kv_heads: int,
        head_dim: int,
        v_head_dim: int | None = None,
        *,
        rolling: bool = False,
        dtype: DType = jnp.float32,
    ) -> Cache:
        """A cache without tokens.

        Args:
            batch, size: rows, and slots of each.
            num_kv_heads, head_dim: of the keys. v_head_dim: the width of the values, by default head_dim.
            rolling: whether the oldest token of a row makes room for its newest: for windows. A step of L tokens by a
                window of W keys, the query's own included, needs W + L - 1 slots.
            dtype: of keys and values: float64, float32, bfloat16 or float16.

        Raises:
            TypeError, ValueError: one error that names every argument at fault.
        """
        check_empty(batch, size, num_kv_heads, head_dim, v_head_dim, rolling, jnp.dtype(dtype).name, FLOAT_DTYPES)
        width = head_dim if v_head_dim is None else v_head_dim
        key, value = (jnp.zeros((batch, size, num_kv_heads, n), dtype) for n in (head_dim, width))
        lengths = jnp.zeros(batch, jnp.int32)
        return cls(key, value, lengths, jnp.zeros(batch, jnp.int32) if rolling else None)

    @classmethod
    def for_config(
        cls,
        config: AttentionConfig,
        batch: int,
        size: int,
        *,
        rolling: bool = False,
        dtype: DType = jnp.float32,
    ) -> Cache:
        """A cache without tokens, for a module of this configuration.

        Args:
            config: which has the sizes of keys and values.
            batch, size, rolling, dtype: as in `empty`.

        Raises:
            TypeError, ValueError: no configuration, or as `empty`.
        """
        if not isinstance(config, AttentionConfig):
            raise TypeError(f"Cache.for_config: config must be an AttentionConfig, got {describe(config)}")
        sizes = (config.num_kv_heads, config.head_dim, config.v_head_dim)
        return cls.empty(batch, size, *sizes, rolling=rolling, dtype=dtype)

    @own_modes
    def update(
        self,
        key: Float[Operand, "B L K D"],
        value: Float[Operand, "B L K Dv"],
        positions: Int[Given, "B L"] | None = None,
        *,
        lengths: Int[Given, " B"] | None = None,
        valid: Bool[Given, "B L"] | None = None,
    ) -> Cache:
        """The cache with L more tokens in each row, or as many as are real.

        Args:
            key: [B, L, K, D]. value: [B, L, K, Dv], of the cache's dtype.
            positions: int [B, L], by default the next ones of each row. They follow one another, and begin at most
                where the row ends; where they begin before that, the row is rewound to there first.
            lengths: int [B], how many of the L tokens are real, the others padding at the end.
            valid: bool [B, L], which of them are real, wherever the padding is. Padding takes no slot and no position.

        Raises:
            TypeError, ValueError: one error that lists everything wrong: widths, heads, batch, dtypes; a row that would
                have more tokens than slots; positions that are negative, leave a gap or do not follow one another.
                Where these values are traced, such tokens are not kept, and the row attends to nothing until it is
                rewound.
        """
        check_update(self, key, value, positions, lengths, valid, (jax.Array, np.ndarray))
        placed = self._placed(key.shape[1], positions, lengths, valid)
        held, more = (self.key, self.value), (jnp.asarray(key), jnp.asarray(value))
        keys, values = (_written(x, placed.slots, new) for x, new in zip(held, more, strict=True))
        return Cache(keys, values, placed.lengths, placed.lost)

    @own_modes
    def reorder(self, indices: Int[Given, " N"]) -> Cache:
        """The cache whose row n is row indices[n] of this one: beams that survive, prompts that are continued often.

        Args:
            indices: int [N]; N may differ from B.

        Raises:
            TypeError, ValueError: they are no such array, or name a row that is not there (where they are traced, such
                a row attends to nothing).
        """
        rows, lengths, lost = self._picked(indices)
        return Cache(rows_of(self.key, rows), rows_of(self.value, rows), lengths, lost)

    @own_modes
    def rewind(self, lengths: int | Int[Given, " B"]) -> Cache:
        """The cache without the tokens from lengths[b] on: guesses that were refused, a row that begins anew at 0.

        Args:
            lengths: an int, or int [B], at most the lengths so far.

        Raises:
            TypeError, ValueError: they are no such numbers, are negative, or exceed the lengths so far (where they are
                traced, no row is made longer, or shorter than 0).
        """
        kept, lost = self._rewound(lengths)
        return Cache(self.key, self.value, kept, lost)

    @own_modes
    def resize(self, size: int) -> Cache:
        """The same tokens in another number of slots; a rolling cache that becomes smaller keeps the last ones.

        A long step of a rolling cache needs it, since its first queries attend to what its last tokens replace:
        `wide = cache.resize(cache.size + L).update(key, value)`, attend to `wide`, and go on with
        `wide.resize(cache.size)`.

        Args:
            size: how many slots each row will have.

        Raises:
            TypeError, ValueError: no int, fewer than 1, or a row has more tokens (where lengths are traced, such a row
                attends to nothing).
        """
        lost, slots = self._resized(size)
        if slots is not None:
            return Cache(_read(self.key, slots), _read(self.value, slots), self.lengths, lost)
        more = max(0, size - self.size)
        key, value = (jnp.pad(x[:, :size], [(0, 0), (0, more), (0, 0), (0, 0)]) for x in (self.key, self.value))
        return Cache(key, value, self.lengths, lost)

    def _count(self, size: int) -> Array:
        return jnp.arange(size, dtype=jnp.int32)

    def _array(self, x: Traced) -> Array:
        return jnp.asarray(x)

    def _whole(self, x: Traced) -> Array:
        return jnp.asarray(x, jnp.int32)

    def _read(self, x: Traced) -> NumPyArray | None:
        return peek(x)

    def _picked_of(self, x: Array, rows: Array) -> Array:
        return rows_of(x, rows)

    def _least(self, x: Array) -> Array:
        return jnp.min(x, 1, initial=BROKEN)


# Row by row, so that a mesh may divide rows and heads, and nothing is sent. Jitted for calls that are not: a vmap takes
# long then.


@partial(jax.jit, inline=True)
@jax.vmap
def _written(row: Array, slots: Array, new: Array) -> Array:
    """A row with what is kept in slots of its own; what is not kept goes to one that does not exist."""
    return row.at[slots].set(new, mode="drop")


@partial(jax.jit, inline=True)
@jax.vmap
def _read(row: Array, slots: Array) -> Array:
    """What lies in some slots of a row."""
    return row[slots]
