from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskattn._arithmetic import choose, clip, zero
from maskattn._declared import data, declared
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array, peek, to_numpy
from maskattn._lookup import count, gather, range_max, wide
from maskattn._pairs import fixed
from maskattn._problems import Problems
from maskattn.arrays import how_many_up_to, is_compiling
from maskattn.masks._core import Mask
from maskattn.masks.rows import NO_KEY, NO_QUERY, Rows

if TYPE_CHECKING:
    from jaxtyping import Int


@declared
class Segments(Mask):
    """q_ids[b, q] == k_ids[b, k] >= 0: documents packed into one row see only themselves. True = may attend.

    A negative id is padding: it attends to, and is attended by, nothing; 0 is an ordinary id.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Segments([[0, 0, 1, -1]]), 4, 4))
    ##--
    ##--
    --#-
    ----
    >>> print(masks.draw(masks.Segments([[0, 1, 1]], [[0, 0, 1, 1, 1]]), 3, 5))
    ##---
    --###
    --###
    """

    q_ids: Int[Array, "#B L"] = data("int", "[B, L]", meaning="the document of each query; [1, L] serves every row")
    k_ids: Int[Array, "#B S"] = data("int", "[B, S]", none="q_ids", default=None, meaning="the document of each key")

    rule: ClassVar[str] = "q_ids[b, q] == k_ids[b, k] >= 0"

    def _check(self, problems: Problems) -> None:
        """the batches of q_ids and k_ids differ"""
        rows = [ids.shape[0] for ids in self._ids()]
        if rows[0] != rows[1] and 1 not in rows:
            problems.value(f"q_ids and k_ids must have one batch, got {rows[0]} and {rows[1]}")

    @classmethod
    def from_sizes(cls, q_sizes: object, k_sizes: object = None) -> Segments:
        """Documents of these lengths laid end to end in one row: ids [1, sum(q_sizes)] and [1, sum(k_sizes)].

        Raises:
            ValueError: a size is negative or traced, or the number of documents differs. TypeError: the sizes are not
                ints.
        """
        problems = Problems("Segments.from_sizes")
        given = {"q_sizes": q_sizes} if k_sizes is None else {"q_sizes": q_sizes, "k_sizes": k_sizes}
        for name, sizes in given.items():
            if not is_compiling() and _unreadable(sizes):
                problems.value(f"{name} is traced, but decides shapes: give Segments(ids), or from_cu_seqlens(q_len=)")
        problems.raise_if_any()
        sides = {
            name: problems.array(name, _concrete(sizes), "int", "[documents]", minimum=0)
            for name, sizes in given.items()
        }
        if not problems and len({len(sizes) for sizes in sides.values()}) > 1:
            problems.value(f"one size per document is needed on both sides, got {[len(s) for s in sides.values()]}")
        problems.raise_if_any()
        return cls(*(_runs(given[name], sizes) for name, sizes in sides.items()))

    @classmethod
    def from_cu_seqlens(
        cls,
        cu_seqlens_q: object,
        cu_seqlens_k: object = None,
        *,
        q_len: int | None = None,
        kv_len: int | None = None,
    ) -> Segments:
        """Documents laid end to end, given by FlashAttention's cumulative lengths [0, n0, n0 + n1, ...]: ids [1, q_len]
        and [1, kv_len].

        Args:
            cu_seqlens_q, cu_seqlens_k: those of the queries, and of the keys (None: the same).
            q_len: how many queries there are; those beyond the last document are padding (None: there are none).
            kv_len: how many keys, likewise; only with cu_seqlens_k. Where a length is given, cumulative lengths in a
                framework's array are not read, so they may be traced, and are not checked either.

        Raises:
            ValueError: one does not start at 0, decreases, or ends beyond the length; one is traced, and the length is
                not given. TypeError: they are not ints.
        """
        problems = Problems("Segments.from_cu_seqlens")
        given = [("cu_seqlens_q", cu_seqlens_q, "q_len", q_len)]
        if cu_seqlens_k is not None:
            given.append(("cu_seqlens_k", cu_seqlens_k, "kv_len", kv_len))
        elif kv_len is not None:
            problems.value("kv_len is that of cu_seqlens_k, which was not given")
        ids = [_documents(problems, *each) for each in given]
        problems.raise_if_any()
        return cls(*ids)

    def _ids(self) -> tuple[Array, Array]:
        return self.q_ids, self.q_ids if self.k_ids is None else self.k_ids

    def reads(self) -> dict[str, Any]:
        q_ids, k_ids = self._ids()
        return {"q_ids": q_ids, "k_ids": k_ids}

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        q_ids, k_ids = self._ids()
        q_id, q_inside = gather(q_ids, b, q)
        k_id, k_inside = gather(k_ids, b, k)
        return (q_id == k_id) & (q_id >= 0) & q_inside & k_inside

    def rows(self, b: Array, h: Array, q: Array, k: Array) -> Rows:
        q_ids, k_ids = self._ids()
        q_id, q_inside = gather(wide(q_ids), b, q)
        k_id, k_inside = gather(wide(k_ids), b, k)
        q_tag = choose((q_id >= 0) & q_inside, q_id, NO_QUERY)
        return Rows(None, None, q_tag, choose((k_id >= 0) & k_inside, k_id, NO_KEY))

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        q_ids, k_ids = self._ids()
        q_least, q_most, q_all = _summary(q_ids, b, q_lo, q_hi)
        k_least, k_most, k_all = _summary(k_ids, b, k_lo, k_hi)
        some = (q_most >= 0) & (k_most >= 0) & (q_least <= k_most) & (k_least <= q_most)
        one = (q_least == q_most) & (k_least == k_most) & (q_least == k_least)
        return some, one & q_all & k_all

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("bqk") if "batch" in self.sizes() else frozenset("qk")

    def sizes(self) -> dict[str, int]:
        q_ids, k_ids = self._ids()
        rows = (q_ids.shape[0], k_ids.shape[0])
        return fixed(0 if 0 in rows else max(rows), q_len=q_ids.shape[1], kv_len=k_ids.shape[1])

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        q_ids = np.sort(draws.integers(-1, 3, (shape.batch, shape.q_len)), axis=1)
        if shape.q_len == shape.kv_len:
            return [cls(q_ids)]
        return [cls(q_ids, np.sort(draws.integers(-1, 3, (shape.batch, shape.kv_len)), axis=1))]


def _runs(given: object, sizes: Any) -> Any:
    """Ids [1, sum(sizes)] of so many tokens each."""
    if is_compiling() and isinstance(given, (list, tuple)):  # constants to PyTorch's compiler, as their array is not
        return np.concatenate([np.zeros(0, np.int64), *(np.full(count, i) for i, count in enumerate(given))])[None]
    return np.repeat(np.arange(len(sizes)), sizes)[None]


def _concrete(value: object) -> Any:
    """Sizes decide shapes, so they must be readable now: a framework's array is brought to NumPy."""
    return to_numpy(value) if hasattr(value, "dtype") else value


def _unreadable(value: object) -> bool:
    """Whether it is an array whose values cannot be read now."""
    return hasattr(value, "dtype") and peek(value) is None


def _documents(problems: Problems, name: str, cumulative: Any, length_name: str, length: int | None) -> Any:
    """The document of each token, [1, length], by cumulative lengths; -1 beyond the last."""
    traced = hasattr(cumulative, "dtype") and not isinstance(cumulative, np.ndarray) and length is not None
    if not traced and _unreadable(cumulative):
        problems.value(f"{name} is traced: {length_name} must be given, how many tokens there are")
        return None
    constant = not traced and not is_compiling()
    ends = problems.array(name, cumulative if traced else _concrete(cumulative), "int", "[documents + 1]")
    length = length if length is None else problems.integer(length_name, length, minimum=0)
    if problems:
        return None
    if len(ends) == 0 or constant and (ends[0] != 0 or (np.diff(ends) < 0).any()):
        problems.value(f"{name} must start at 0 and not decrease, got {ends.tolist() if constant else []}")
        return None
    last = cumulative[-1] if isinstance(cumulative, (list, tuple)) else ends[-1]  # a list's, whoever reads along
    length = int(last) if length is None else length
    if constant and last > length:
        problems.value(f"{length_name} must be at least {last}, where the last document of {name} ends, got {length}")
        return None
    ended, documents = how_many_up_to(ends[1:], length), len(ends) - 1
    past = ended // documents if documents else ended * 0 + 1  # 1 beyond the last document, else 0
    return (ended - past * (ended + 1))[None]


def _summary(ids: Array, b: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """(least, most, all): of the ids that are not negative in ids[b, low..high]; most is -1 where there are none."""
    size = ids.shape[1]
    if 0 in ids.shape:
        nothing = zero(low, high, b) - 1
        return nothing, nothing, nothing == 0
    real = ids >= 0
    number = count(real, b, low, high)
    # where the range lies outside the data, some entry is summarised in its place, and nothing was found
    first, last = clip(low, 0, size - 1), clip(high, 0, size - 1)
    top = ids.max()
    most = range_max(choose(real, ids, -1), b, first, last)
    least = top - range_max(choose(real, top - ids, -1), b, first, last)
    return least, choose(number > 0, most, -1), number == high - low + 1
