from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maskattn._arithmetic import never, zero
from maskattn._declared import declared, flag, integer, number
from maskattn._problems import Problems
from maskattn.corruption._base import Scheme
from maskattn.corruption._ops import BITS, NUMPY, Ops, chance, previous, rank
from maskattn.numerics import rng
from maskattn.typing import Traced as Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, UInt32


class Masked(NamedTuple):
    """What `MLM` returns; integers in the framework's index dtype.

    Attributes:
        tokens: int [B, L]: the tokens with those that were replaced.
        labels: int [B, L]: the original token where one is to be predicted, `ignore_index` elsewhere.
        selected: bool [B, L]: True = to be predicted, whether it was replaced or not.
    """

    tokens: Int[Array, "B L"]
    labels: Int[Array, "B L"]
    selected: Bool[Array, "B L"]


@declared
class MLM(Scheme[Masked]):
    """BERT's masked language model: some tokens are to be predicted; most of those are replaced by a mask token.

    Devlin et al. 2019 (arXiv:1810.04805, section 3.1, page 4, and appendix A.1): 15 % of the tokens are selected; of
    those 80 % become [MASK], 10 % a random token, 10 % stay.

    Each token is selected by itself with probability `rate`, as in Hugging Face's collator; with `exact_count` as in
    BERT's own code (create_pretraining_data.py): of n tokens that are not special, max(1, round(rate * n)) are.
    With `whole_words` words are selected; each of a word's tokens is then replaced, or not, by itself. With both,
    words come in random order and are taken unless there would be too many tokens.

    A random token is drawn from the whole vocabulary, as in both sources: a 31-bit word modulo `vocab_size`.

    >>> from maskattn import corruption
    >>> scheme = corruption.MLM(mask_id=103, vocab_size=30522)
    >>> tokens = [[101, 7592, 2088, 2003, 1037, 2204, 2173, 102, 0]]
    >>> drawn = scheme.apply(16, tokens, special=[[True, *[False] * 6, True, True]])
    >>> drawn.tokens
    array([[ 101, 7592, 2088,  103, 1037, 2204, 2173,  102,    0]])
    >>> drawn.labels
    array([[-100, -100, -100, 2003, 1037, -100, -100, -100, -100]])
    """

    mask_id: int = integer(minimum=0, meaning="the token that stands for a hidden one")
    vocab_size: int = integer(minimum=1, below=2**31, meaning="random tokens are in [0, vocab_size)")
    rate: float = number(above=0, maximum=1, default=0.15, meaning="the fraction of the tokens that is selected")
    mask_share: float = number(
        minimum=0, maximum=1, default=0.8, meaning="of what is selected, the fraction that becomes mask_id"
    )
    random_share: float = number(
        minimum=0, maximum=1, default=0.1, meaning="of what is selected, the fraction that becomes a random token"
    )
    whole_words: bool = flag(default=False, meaning="whether words are selected instead of tokens")
    exact_count: bool = flag(default=False, meaning="whether every row has as many selected as rate asks for")
    ignore_index: int = integer(default=-100, meaning="the label where nothing is to be predicted")

    def _check(self, problems: Problems) -> None:
        """mask_id is no token of the vocabulary, ignore_index is one, or the shares sum to more than 1"""
        if self.mask_id >= self.vocab_size:
            problems.value(f"vocab_size must be in (mask_id {self.mask_id}, 2**31), got {self.vocab_size}")
        elif 0 <= self.ignore_index < self.vocab_size:
            problems.value(f"ignore_index must be no token of the vocabulary, got {self.ignore_index}")
        if self.mask_share + self.random_share > 1:
            problems.value(f"mask_share + random_share must be at most 1, got {self.mask_share} + {self.random_share}")

    def apply(
        self,
        key: int | UInt32[Array, " 2"],
        tokens: Int[Array, "B L"],
        special: Bool[Array, "B L"] | None = None,
        words: Int[Array, "B L"] | None = None,
        *,
        ops: Ops = NUMPY,
    ) -> Masked:
        """Corrupt a batch of tokens.

        Args:
            key: see `Scheme`.
            tokens: int [B, L].
            special: bool [B, L], True = spared: [CLS], [SEP] and padding. None: no token is.
            words: int [B, L], for `whole_words` only: which word a token belongs to, as a tokenizer's `word_ids()`
                (-1 for None: spared, as special tokens are). Neighbours with equal numbers are one word; a special
                token ends one.

        Raises:
            ValueError, TypeError: shapes or dtypes are wrong, or words are missing or given for nothing.
        """
        problems = Problems("MLM")
        tokens = problems.array("tokens", tokens, "int", "[B, L]")
        given: dict[str, Any] = {"special": special, "words": words}
        for name, kind in (("special", "bool"), ("words", "int")):
            if given[name] is not None:
                given[name] = problems.array(name, given[name], kind, "[B, L]")
                if not problems.reasons and tuple(given[name].shape) != tuple(tokens.shape):
                    problems.value(
                        f"{name} must have the shape {list(tokens.shape)} of tokens, got {list(given[name].shape)}"
                    )
        if self.whole_words != (words is not None):
            problems.value(
                f"words must {'' if self.whole_words else 'not '}be given, whole_words is {self.whole_words}"
            )
        problems.raise_if_any()
        tokens = ops.array(tokens)
        spared = never(tokens) if special is None else ops.array(given["special"])
        words = None if words is None else ops.array(given["words"])
        spared = spared if words is None else spared | (words < 0)
        key = ops.key(key)
        selected = self._select(ops, ops.fold_in(key, 0), spared, words)
        fate = ops.words(ops.fold_in(key, 1), tokens.shape) >> (BITS - 23)
        masked = fate < rng.bernoulli_limit(self.mask_share)
        changed = fate < rng.bernoulli_limit(self.mask_share + self.random_share)
        other = ops.words(ops.fold_in(key, 2), tokens.shape) % self.vocab_size
        shown = ops.where(selected & masked, self.mask_id, ops.where(selected & changed, other, tokens))
        return Masked(shown, ops.where(selected, tokens, self.ignore_index), selected)

    def _select(self, ops: Ops, key: Array, spared: Array, words: Array | None) -> Array:
        if words is None and not self.exact_count:
            return chance(ops, key, self.rate, spared.shape) & ~spared
        draws = ops.words(key, spared.shape) >> 1
        if words is None:
            order = rank(ops, ops.where(spared, 2**30, draws))
            return (order < self._count(ops, spared)[:, None]) & ~spared
        moved = ops.concatenate([words[:, :1], words[:, :-1]]) != words
        first = previous(ops, never(moved), True) | moved | spared | previous(ops, spared, False)
        word = ops.cumsum(first) - 1  # which word of its row, from 0
        if not self.exact_count:
            chosen = chance(ops, key, self.rate, spared.shape)
            return ops.take_along(chosen, word) & ~spared
        # word j begins at begins[j]; beyond the last word this is no beginning, and the word has no tokens
        length = spared.shape[1]
        begins = ops.argsort(ops.where(first, 0, 1))
        there = ops.arange(length) < ops.sum(first)[:, None]
        begins = ops.where(there, begins, length)
        ends = ops.concatenate([begins[:, 1:], zero(begins[:, :1]) + length])
        candidate = there & ~ops.take_along(spared, ops.where(there, begins, 0))
        sizes = ops.where(candidate, ends - begins, 0)
        order = ops.argsort(draws)
        most = self._count(ops, spared)

        def take(total: Array, size: Array) -> tuple[Array, Array]:
            taken = total + size <= most
            return ops.where(taken, total + size, total), taken

        taken = ops.scan(take, zero(most), ops.take_along(sizes, order))
        return ops.take_along(ops.take_along(taken, ops.argsort(order)), word) & ~spared

    def _count(self, ops: Ops, spared: Array) -> Array:
        """How many of each row are selected: int [B]."""
        length = spared.shape[1]
        counts = np.array([min(n, max(1, round(self.rate * n))) for n in range(length + 1)])
        return ops.array(counts)[ops.sum(~spared)]
