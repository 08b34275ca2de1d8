"""What a case is: data. Every number that `arrays` makes from it follows from its seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskattn import biases, masks
from maskattn.arrays import dtype_named
from maskattn.config import AttentionConfig
from maskattn.numerics import dropout, rng
from maskattn.typing import NumPyArray as Array, NumPyDType, SharedAxis


@dataclass(frozen=True)
class Shape:
    """The sizes of one attention: B, L, S, H, K, D, Dv."""

    batch: int
    q_len: int
    kv_len: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """[B, H, L, S]."""
        return (self.batch, self.heads, self.q_len, self.kv_len)


@dataclass(frozen=True, eq=False)
class Case:
    """One thing to compute.

    Attributes:
      id: unique, `family/shape/dtype/...`; the same id is the same case for ever.
      family: the line of the report it is counted in: a mask's class name, or what else is tried.
      mask: the mask object (True = may attend), or None.
      bias: "dense" (an array in the inputs, differentiated), a `Bias` object, or None.
      sinks: whether the inputs hold sinks.
      config: where given, the case is a whole `MultiHeadAttention` and the inputs hold its weights.
      plant: a value put into every key and value that no query may reach.
      spread: the standard deviation of the queries; large values make large logits.
      dropout_rate, dropout_broadcast: as of attention; a module's rates are in its config.
      tags: free words: "smoke" marks the few cases that stand for all.
    """

    id: str
    family: str
    shape: Shape
    dtype: str
    mask: masks.Mask | None
    bias: Any = None
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    empty_rows: str = "zero"
    config: AttentionConfig | None = None
    plant: float | None = None
    spread: float = 2.0
    dropout_rate: float = 0.0
    dropout_broadcast: tuple[SharedAxis, ...] = ()
    seed: int = 0
    tags: frozenset[str] = field(default_factory=frozenset)

    def __repr__(self) -> str:
        return f"Case({self.id!r})"

    @property
    def numpy_dtype(self) -> NumPyDType:
        """The dtype of query, key, value and output."""
        return dtype_named(self.dtype)

    @property
    def lse_dtype(self) -> NumPyDType:
        """float64 for float64 inputs, float32 otherwise."""
        return np.dtype(np.float64 if self.dtype == "float64" else np.float32)

    @property
    def allowed(self) -> Array:
        """The mask as bool [B, H, L, S]."""
        s = self.shape
        if self.mask is None:
            return np.ones(s.scores, dtype=bool)
        dense = self.mask.dense(s.q_len, s.kv_len, batch=s.batch, heads=s.heads)
        return np.ascontiguousarray(np.broadcast_to(dense, s.scores))

    @property
    def dropout_key(self) -> Array:
        """The key of the case's dropout, two uint32 words: attention's own, or the one that the module is given."""
        return rng.fold_in(rng.key(self.seed), 1)

    @property
    def dropped(self) -> dict[str, Any]:
        """`keep` (bool [B, H, L, S], True = kept) and `dropout_rate` of the attention weights; {} without dropout."""
        rate, key = self.dropout_rate, self.dropout_key
        if self.config is not None:
            rate, key = self.config.dropout_rate, rng.fold_in(key, 0)
        if not rate:
            return {}
        keep = dropout.dense(rate, key, self.shape.scores, self.dropout_broadcast)
        return {"keep": np.ascontiguousarray(np.broadcast_to(keep, self.shape.scores)), "dropout_rate": rate}

    @property
    def table(self) -> Array | None:
        """The learned table of the bias, which is differentiated too, or None."""
        return self.bias.table if isinstance(self.bias, biases.TableBias) else None

    @property
    def must_raise(self) -> bool:
        """Whether the right answer is an error: `empty_rows="error"` and a row that may attend to nothing."""
        return self.empty_rows == "error" and not self.sinks and not self.allowed.any(axis=-1).all()
