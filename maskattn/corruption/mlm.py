from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from maskattn._arithmetic import never, zero
from maskattn._problems import Problems
from maskattn.corruption._base import Array, Scheme, flag, fraction, ready
from maskattn.corruption._ops import BITS, NUMPY, Ops, chance, previous, rank
from maskattn.numerics import rng


class Masked(NamedTuple):
    """What `MLM` returns; integers in the framework's index dtype."""

    #: int [B, L]: the tokens with those that were replaced
    tokens: Array
    #: int [B, L]: the original token where one is to be predicted, `ignore_index` elsewhere
    labels: Array
    #: bool [B, L]: True = to be predicted, whether it was replaced or not
    selected: Array


@dataclass(frozen=True, repr=False)
class MLM(Scheme):
    """BERT's masked language model: some tokens are to be predicted; most of those are replaced by a mask token.

    Devlin et al. 2019 (arXiv:1810.04805, section 3.1, page 4, and appendix A.1): 15 % of the tokens are selected; of
    those 80 % become [MASK], 10 % a random token, 10 % stay.

    Each token is selected by itself with probability `rate`, as in Hugging Face's collator; with `exact_count` as in
    BERT's own code (create_pretraining_data.py): of n tokens that are not special, max(1, round(rate * n)) are.
    With `whole_words` words are selected; each of a word's tokens is then replaced, or not, by itself. With both,
    words come in random order and are taken unless there would be too many tokens.

    A random token is drawn from the whole vocabulary, as in both sources: a 31-bit word modulo `vocab_size`.

    Args:
        mask_id: the token that stands for a hidden one.
        vocab_size: random tokens are in [0, vocab_size).
        rate, mask_share, random_share: fractions in [0, 1]; the shares are of what is selected and their sum is at most
            1; rate must be above 0.

    >>> from maskattn import corruption
    >>> scheme = corruption.MLM(mask_id=103, vocab_size=30522)
    >>> tokens = [[101, 7592, 2088, 2003, 1037, 2204, 2173, 102, 0]]
    >>> drawn = scheme.apply(16, tokens, special=[[True, *[False] * 6, True, True]])
    >>> drawn.tokens
    array([[ 101, 7592, 2088,  103, 1037, 2204, 2173,  102,    0]])
    >>> drawn.labels
    array([[-100, -100, -100, 2003, 1037, -100, -100, -100, -100]])

    Raises:
        ValueError: a fraction is outside its interval, or an id outside the vocabulary. TypeError: something is not a
        number. All of it at once.
    """

    mask_id: int
    vocab_size: int
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_words: bool = False
    exact_count: bool = False
    ignore_index: int = -100

    def __post_init__(self) -> None:
        problems = Problems("MLM")
        mask_id = problems.integer("mask_id", self.mask_id, minimum=0)
        vocab_size = problems.integer("vocab_size", self.vocab_size, minimum=1)
        if not problems.reasons and not mask_id < vocab_size < 2**31:
            problems.value(f"vocab_size must be in (mask_id {mask_id}, 2**31), got {vocab_size}")
        rate = fraction(problems, "rate", self.rate)
        if rate == 0:
            problems.value("rate must be above 0, or nothing is ever to be predicted, got 0")
        shares = [fraction(problems, name, getattr(self, name)) for name in ("mask_share", "random_share")]
        if not problems.reasons and sum(shares) > 1:
            problems.value(f"mask_share + random_share must be at most 1, got {shares[0]} + {shares[1]}")
        for name in ("whole_words", "exact_count"):
            flag(problems, name, getattr(self, name))
        ignore_index = problems.integer("ignore_index", self.ignore_index)
        if not problems.reasons and 0 <= ignore_index < vocab_size:
            problems.value(f"ignore_index must be no token of the vocabulary, got {ignore_index}")
        ready(problems, self, mask_id=mask_id, vocab_size=vocab_size, ignore_index=ignore_index, rate=rate)
        for name, share in zip(("mask_share", "random_share"), shares, strict=True):
            object.__setattr__(self, name, share)

    def apply(
        self, key: Array, tokens: Array, special: Array = None, words: Array = None, *, ops: Ops = NUMPY
    ) -> Masked:
        """Corrupt a batch of tokens.

        Args:
            key: see `Scheme`.
            tokens: int [B, L].
            special: bool [B, L], True = spared: [CLS], [SEP] and padding. None: no token is.
            words: int [B, L], for `whole_words` only: which word a token belongs to, as a tokenizer's `word_ids()`
                (-1 for None). Neighbours with equal numbers are one word; a special token ends one.

        Raises:
            ValueError, TypeError: shapes or dtypes are wrong, or words are missing or given for nothing.
        """
        problems = Problems("MLM")
        tokens = problems.array("tokens", tokens, "int", "[B, L]", (2,))
        given = {"special": special, "words": words}
        for name, kind in (("special", "bool"), ("words", "int")):
            if given[name] is not None:
                given[name] = problems.array(name, given[name], kind, "[B, L]", (2,))
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
        key = ops.key(key)
        selected = self._select(ops, ops.fold_in(key, 0), spared, None if words is None else ops.array(given["words"]))
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
