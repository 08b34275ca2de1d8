"""The key/value cache of decoding, as a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch.autograd import forward_ad
from torch.utils import _pytree

from maskattn._problems import describe
from maskattn.arrays import peek
from maskattn.attention import FLOAT_DTYPES
from maskattn.cache import BROKEN, CacheBase
from maskattn.cache.checks import check_empty, check_update
from maskattn.config import AttentionConfig
from maskattn.masks import Mask
from maskattn.typing import NumPyArray, Traced
from maskattn_torch._modes import plain, unwatched
from maskattn_torch._slots import Slots, counts
from maskattn_torch.types import Array, Device, DType, Given, Operand

__all__ = ["Cache"]


@dataclass(frozen=True, eq=False, repr=False)
class Cache(CacheBase[Array]):
    """Keys and values of the tokens so far, for decoding: a value of tensors whose shapes never change.

    A row is one sequence without gaps, each row as long as it is: token p of it has position p, and lies in slot p
    (rolling: p % size). `update` adds tokens, and `attention(query, cache.key, cache.value, cache.mask(mask, L))`
    attends to them: as attention over whole sequences does, one token at a time or many. A layer that shares the cache
    of another reads it, and adds nothing.

    Where nobody can ask for a gradient, `update` writes into the tensors that are there: the old cache and the new one
    then share them, so the old one is still right only as long as no row is rewound, or its slots used again (rolling,
    or two updates of one cache). `reorder` and `resize` copy.

    Attributes:
        stored: keys [B, K, size + 1, D] and values [B, K, size + 1, Dv]; what takes no slot goes to the last one.
        lengths: int32 [B], how many tokens each row has; more than `size` (rolling: 2**30 or more) where a row ran over
            or was told wrong positions and lengths could not be read (in compiled code, on a GPU): from then on it
            attends to nothing.
        lost: int32 [B], of a rolling cache how many tokens at a row's beginning are no longer held; else None.
    """

    stored: tuple[Float[Array, "B K slots D"], Float[Array, "B K slots Dv"]]
    lengths: Int32[Array, " B"]
    lost: Int32[Array, " B"] | None = None

    @property
    def key(self) -> Float[Array, "B size K D"]:
        """[B, size, K, D]: the keys in all slots."""
        slots = None if torch.compiler.is_compiling() else self.__dict__.get("_made")
        return self._views()[0] if slots is None else slots.key

    @property
    def value(self) -> Float[Array, "B size K Dv"]:
        """[B, size, K, Dv]: the values in all slots."""
        slots = None if torch.compiler.is_compiling() else self.__dict__.get("_made")
        return self._views()[1] if slots is None else slots.value

    @property
    def size(self) -> int:
        """How many slots each row has."""
        return self.stored[0].shape[2] - 1

    @property
    def first_position(self) -> int | None:
        """The position that the next token of every row will have, where it is one, and can be read at no cost."""
        if self._slots() is None:
            return None
        numbers: list[int] = self.lengths.tolist()
        return numbers[0] if numbers.count(numbers[0]) == len(numbers) and 0 <= numbers[0] < BROKEN else None

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
        dtype: DType = torch.float32,
        device: Device = None,
    ) -> Cache:
        """A cache without tokens.

        Args:
            batch, size: rows, and slots of each.
            num_kv_heads, head_dim: of the keys. v_head_dim: the width of the values, by default head_dim.
            rolling: whether the oldest token of a row makes room for its newest: for windows. A step of L tokens by a
                window of W keys, the query's own included, needs W + L - 1 slots.
            dtype: of keys and values: float64, float32, bfloat16 or float16.
            device: where they are.

        Raises:
            TypeError, ValueError: one error that names every argument at fault.
        """
        check_empty(
            batch, size, num_kv_heads, head_dim, v_head_dim, rolling, str(dtype).removeprefix("torch."), FLOAT_DTYPES
        )
        widths = (head_dim, head_dim if v_head_dim is None else v_head_dim)
        key, value = (torch.zeros(batch, num_kv_heads, size + 1, n, dtype=dtype, device=device) for n in widths)
        lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        return cls((key, value), lengths, torch.zeros_like(lengths) if rolling else None)

    @classmethod
    def for_config(
        cls,
        config: AttentionConfig,
        batch: int,
        size: int,
        *,
        rolling: bool = False,
        dtype: DType = torch.float32,
        device: Device = None,
    ) -> Cache:
        """A cache without tokens, for a module of this configuration.

        Args:
            config: which has the sizes of keys and values.
            batch, size, rolling, dtype, device: as in `empty`.

        Raises:
            TypeError, ValueError: no configuration, or as `empty`.
        """
        if not isinstance(config, AttentionConfig):
            raise TypeError(f"Cache.for_config: config must be an AttentionConfig, got {describe(config)}")
        sizes = (config.num_kv_heads, config.head_dim, config.v_head_dim)
        return cls.empty(batch, size, *sizes, rolling=rolling, dtype=dtype, device=device)

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
                Where these values cannot be read (in compiled code, on a GPU), such tokens are not kept, and the row
                attends to nothing until it is rewound.
        """
        if positions is lengths is valid is None:
            appended = self._appended(key, value)
            if appended is not None:
                return appended
        check_update(self, key, value, positions, lengths, valid, (torch.Tensor,))
        in_place = unwatched(key, value, *self.stored) and self._is_ours()
        first = self._one_place(key.shape[1]) if in_place and positions is lengths is valid is None else None
        if first is not None:
            for held, new in zip(self.stored, (key, value), strict=True):
                if new.shape[1] == 1:
                    held.select(2, first).copy_(new.select(1, 0))
                else:
                    held.narrow(2, first, new.shape[1]).copy_(new.transpose(1, 2))
            ends = self.lengths + key.shape[1]
            lost = None if self.lost is None else torch.maximum(self.lost, ends - self.size)
            return self._beside(Cache(self.stored, ends, lost))
        placed = self._placed(key.shape[1], positions, lengths, valid)
        rows = torch.arange(key.shape[0], device=self.lengths.device)[:, None]
        at = (rows, placed.slots.long())
        written = []
        for held, new in zip(self.stored, (key, value), strict=True):
            tokens_first = held.transpose(1, 2)
            if in_place:
                tokens_first.index_put_(at, new)
                written.append(held)
            else:
                written.append(tokens_first.index_put(at, new).transpose(1, 2))
        return Cache((written[0], written[1]), placed.lengths, placed.lost)

    def reorder(self, indices: Int[Given, " N"]) -> Cache:
        """The cache whose row n is row indices[n] of this one: beams that survive, prompts that are continued often.

        Args:
            indices: int [N]; N may differ from B.

        Raises:
            TypeError, ValueError: they are no such array, or name a row that is not there (where they cannot be read,
                such a row attends to nothing).
        """
        rows, lengths, lost = self._picked(indices)
        key, value = (x.index_select(0, rows) for x in self.stored)
        return Cache((key, value), lengths, lost)

    def rewind(self, lengths: int | Int[Given, " B"]) -> Cache:
        """The cache without the tokens from lengths[b] on: guesses that were refused, a row that begins anew at 0.

        Args:
            lengths: an int, or int [B], at most the lengths so far.

        Raises:
            TypeError, ValueError: they are no such numbers, are negative, or exceed the lengths so far (where they
                cannot be read, no row is made longer, or shorter than 0).
        """
        kept, lost = self._rewound(lengths)
        return Cache(self.stored, kept, lost)

    def resize(self, size: int) -> Cache:
        """The same tokens in another number of slots; a rolling cache that becomes smaller keeps the last ones.

        A long step of a rolling cache needs it, since its first queries attend to what its last tokens replace:
        `wide = cache.resize(cache.size + L).update(key, value)`, attend to `wide`, and go on with
        `wide.resize(cache.size)`.

        Args:
            size: how many slots each row will have.

        Raises:
            TypeError, ValueError: no int, fewer than 1, or a row has more tokens (where lengths cannot be read, such a
                row attends to nothing).
        """
        lost, slots = self._resized(size)
        if slots is not None:
            rows, picked = self._count(slots.shape[0])[:, None], slots
            key, value = (torch.cat([x[rows, :, picked].transpose(1, 2), x[:, :, -1:]], 2) for x in self.stored)
            return Cache((key, value), self.lengths, lost)
        kept, more = min(size, self.size), max(1, size + 1 - self.size)
        key, value = (torch.nn.functional.pad(x[:, :, :kept], (0, 0, 0, more)) for x in self.stored)
        return Cache((key, value), self.lengths, lost)

    def _views(self) -> tuple[Array, Array]:
        """Keys and values without the last slot, tokens first."""
        slots = self._slots()
        if slots is not None:
            return slots.key, slots.value
        key, value = self.stored
        return key[:, :, :-1].transpose(1, 2), value[:, :, :-1].transpose(1, 2)

    def _slots(self) -> Slots | None:
        """What is known of the tensors, where they are what they seem and on the CPU: the same of later steps."""
        if not plain():
            return None
        found: Slots | None = self.__dict__.get("_made")
        if found is None:
            known = [type(x) is Array and x.is_cpu and x.is_contiguous() and not x.requires_grad for x in self.stored]
            if not all(known) or type(self.lengths) is not Array or not self.lengths.is_cpu or not self.batch:
                return None
            found = self.__dict__["_made"] = Slots(self.stored)
        return found

    def _beside(self, other: Cache) -> Cache:
        """`other`, whose tensors are those of this one, with what is known of them."""
        slots = self._slots()
        if slots is not None:
            other.__dict__["_made"] = slots
        return other

    def _appended(self, key: Array, value: Array) -> Cache | None:
        """The cache with one more token in each row, written in place; None where that is not seen at once to be so."""
        slots = self._slots()
        if slots is None or not slots.take(key, value) or forward_ad._current_level >= 0:
            return None
        numbers, lost, size = self.lengths.tolist(), self.lost, slots.size
        if max(numbers) >= (size if lost is None else BROKEN - 1):
            return None
        slots.write(key, value, numbers)
        ends = [n + 1 for n in numbers]
        if lost is not None:
            known = lost.tolist()
            gone = [max(a, b - size) for a, b in zip(known, ends, strict=True)]
            lost = lost if gone == known else counts(gone)
        made = object.__new__(Cache)
        made.__dict__.update(stored=slots.stored, lengths=counts(ends), lost=lost, _made=slots)
        return made

    def _next_of_one(self) -> Array | None:
        if self._slots() is None:
            return None
        return counts(self.lengths.tolist()).unsqueeze(1)

    def _of_one_token(self, mask: Mask) -> Mask | None:
        slots = self._slots()
        found = None if slots is None else slots.mask(mask, self.lengths, self.lost)
        return super()._of_one_token(mask) if found is None else found

    def _one_place(self, q_len: int) -> int | None:
        """The slot of the next token of every row, where it can be read, is the same, and so many follow it."""
        if not plain() or self.lengths.device.type != "cpu":
            return None
        numbers, size = self.lengths.tolist(), self.size
        first: int = numbers[0] if numbers else 0
        if self.lost is not None:
            first = first % size if first < BROKEN else size
        return first if numbers.count(numbers[0] if numbers else 0) == len(numbers) and first + q_len <= size else None

    def _is_ours(self) -> bool:
        """Whether the tensors may be written to here: those of inference mode only there."""
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return True
        return not self.stored[0].is_inference()

    def _count(self, size: int) -> Array:
        return torch.arange(size, dtype=torch.int32, device=self.lengths.device)

    def _array(self, x: Traced) -> Array:
        return torch.as_tensor(x, device=self.lengths.device)

    def _whole(self, x: Traced) -> Array:
        numbers: Array = x.to(torch.int32)
        return numbers

    def _read(self, x: Traced) -> NumPyArray | None:
        return peek(x) if plain() and (not isinstance(x, torch.Tensor) or x.is_cpu) else None

    def _all_up_to(self, limit: int) -> bool:
        if not plain() or self.lengths.device.type != "cpu":
            return False
        return max(self.lengths.tolist(), default=0) <= limit

    def _takes(self, key: Array, value: Array) -> bool:
        q_len = key.shape[1] if key.ndim == 4 else -1
        for held, new in zip(self.stored, (key, value), strict=True):
            batch, heads, _, width = held.shape
            if new.shape != (batch, q_len, heads, width) or new.dtype is not held.dtype:
                return False
        return True

    def _picked_of(self, x: Array, rows: Array) -> Array:
        return x[rows]

    def _least(self, x: Array) -> Array:
        return torch.amin(x, 1) if x.shape[1] else x.new_full(x.shape[:1], BROKEN)


def _of(key: Array, value: Array, lengths: Array, lost: Array | None) -> Cache:
    return Cache((key, value), lengths, lost)


_pytree.register_pytree_node(
    Cache,
    lambda cache: ([*cache.stored, cache.lengths, cache.lost], None),
    lambda leaves, _: _of(*leaves),
)
