"""Rotary position embedding: pairs of a head's numbers are turned by angles that grow with the position.

Su et al. 2021, "RoFormer", equation 34: pair j of a token at position p is turned by p * theta^(-2j / width). The
scalings change these frequencies, so that a model reads further than it was trained on.

The arithmetic is the published one: frequencies are rounded to float32, the angle is the float32 product of position
and frequency, cosine and sine are of that angle. Frequencies are the true values rounded once, so that they are the
same on every machine; those that PyTorch computes differ from them by some units in the last place.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from maskattn._declared import Declared, choice, declared, flag, integer, integers, member, number, numbers
from maskattn._problems import Problems
from maskattn.typing import NumPyArray


class Scaling(Declared):
    """What makes other frequencies of the plain ones.

    Attributes:
        follows_length: whether they depend on the length of the call, the largest position plus one.
    """

    follows_length: bool = False

    def frequencies(self, plain: NumPyArray, theta: float, length: int) -> NumPyArray:
        """The frequencies [width / 2] of a call of `length` tokens, in float64, of the plain ones."""
        raise NotImplementedError(f"{type(self).__name__} does not define frequencies(plain, theta, length)")

    def factor(self) -> float:
        """What multiplies cosine and sine."""
        return 1.0


@declared
class LinearScaling(Scaling):
    """Frequencies divided by `by`: position interpolation (Chen et al. 2023, section 2)."""

    by: float = number(above=0, meaning="what divides them")

    def frequencies(self, plain: NumPyArray, theta: float, length: int) -> NumPyArray:
        return plain / self.by


@declared
class DynamicNTK(Scaling):
    """Theta grown with the length of the call, theta * (by * length / trained - (by - 1))^(width / (width - 2)).

    As transformers and the post that proposed it have it; calls of at most `trained` tokens have the plain frequencies.
    """

    by: float = number(minimum=1, meaning="how many times the trained length is meant to be read")
    trained: int = integer(minimum=1, meaning="the length of training")
    follows_length = True

    def frequencies(self, plain: NumPyArray, theta: float, length: int) -> NumPyArray:
        pairs = len(plain)
        return np.asarray(plain * self.growth(max(length, self.trained)) ** (-np.arange(pairs) / max(pairs - 1, 1)))

    def growth(self, length: Any) -> Any:
        """What theta^((width - 2) / width) is multiplied by for a call of `length` tokens, at least `trained`."""
        return self.by * length / self.trained - (self.by - 1)


@declared
class Yarn(Scaling):
    """Fast pairs as they are, slow ones divided by `by`, a ramp in between (Peng et al. 2023, YaRN, section 3)."""

    by: float = number(minimum=1, meaning="s, how many times the trained length is read")
    trained: int = integer(minimum=1, meaning="the length of training")
    fast: float = number(above=0, default=32.0, meaning="beta: pairs that turn so often over the trained length stay")
    slow: float = number(above=0, default=1.0, meaning="alpha: pairs that turn less often than that are divided")
    whole: bool = flag(default=True, meaning="whether the ramp begins and ends at whole pairs")
    attention_factor: float | None = number(
        above=0, none="0.1 ln(by) + 1", default=None, meaning="multiplies cosine and sine"
    )

    def frequencies(self, plain: NumPyArray, theta: float, length: int) -> NumPyArray:
        pairs = len(plain)

        def turning(often: float) -> float:
            return pairs * math.log(self.trained / (often * 2 * math.pi)) / math.log(theta)

        low, high = turning(self.fast), turning(self.slow)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        slowed = np.clip((np.arange(pairs) - low) / (high - low if high != low else 0.001), 0, 1)
        return np.asarray(plain / self.by * slowed + plain * (1 - slowed))

    def factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.by) + 1.0


@declared
class LongRope(Scaling):
    """Each frequency divided by a number of its own, one list for calls of the trained length and one for longer ones.

    Ding et al. 2024, LongRoPE; the switch and the attention factor are those of Phi-3.
    """

    short: tuple[float, ...] = numbers(above=0, meaning="what divides, one per pair, up to `trained` tokens")
    long: tuple[float, ...] = numbers(above=0, meaning="and for longer calls")
    trained: int = integer(minimum=1, meaning="the length of training")
    by: float = number(above=0, default=1.0, meaning="how many times that is read")
    attention_factor: float | None = number(
        above=0,
        none="sqrt(1 + ln(by) / ln(trained)), or 1 where by <= 1",
        default=None,
        meaning="multiplies cosine and sine",
    )
    follows_length = True

    def _check(self, problems: Problems) -> None:
        """the two lists differ in length"""
        if len(self.short) != len(self.long):
            problems.value(f"short and long must be one per pair each, got {len(self.short)} and {len(self.long)}")

    def frequencies(self, plain: NumPyArray, theta: float, length: int) -> NumPyArray:
        return np.asarray(plain / np.array(self.long if length > self.trained else self.short))

    def factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.by <= 1 else math.sqrt(1 + math.log(self.by) / math.log(self.trained))


@declared
class Llama3(Scaling):
    """Pairs with long waves divided by `by`, those with short waves as they are, a ramp in between: Llama 3.1's."""

    by: float = number(above=0, meaning="what divides")
    low: float = number(above=0, meaning="waves longer than trained / low are divided")
    high: float = number(above=0, meaning="waves shorter than trained / high stay")
    trained: int = integer(minimum=1, meaning="the length of training")

    def _check(self, problems: Problems) -> None:
        """low is not below high"""
        if self.low >= self.high:
            problems.value(f"low must be below high, got {self.low} and {self.high}")

    def frequencies(self, plain: NumPyArray, theta: float, length: int) -> NumPyArray:
        turns = self.trained * plain / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return np.asarray((1 - kept) * plain / self.by + kept * plain)


@declared
class Rotary(Declared):
    """Queries and keys turned by their positions.

    >>> from maskattn.layer import Rotary
    >>> Rotary(theta=100.0).frequencies(8)
    array([1.        , 0.31622776, 0.1       , 0.03162277], dtype=float32)
    >>> Rotary(theta=100.0, axes=(2, 2)).frequencies(8)  # of an image: rows, then columns
    array([1. , 0.1, 1. , 0.1], dtype=float32)
    """

    theta: float = number(above=0, default=10000.0, meaning="the base of the frequencies")
    width: int | None = integer(
        minimum=2, none="all of it", default=None, meaning="how much of a head is turned, its first numbers; even"
    )
    pairs: str = choice(
        "half",
        "interleaved",
        default="half",
        meaning="which numbers are a pair: i and i + width / 2, or 2i and 2i + 1",
    )
    scaling: Scaling | None = member(
        Scaling, none="none", default=None, meaning="LinearScaling, DynamicNTK, Yarn, LongRope or Llama3"
    )
    axes: tuple[int, ...] = integers(
        minimum=1,
        default=(),
        meaning="how many pairs each axis of the positions turns, in order (rows and columns of an image, say); () is "
        "one axis",
    )
    restart: bool = flag(
        default=True, meaning="whether the frequencies of each axis begin anew, as in vision, or run on, as in Qwen2-VL"
    )

    def _check(self, problems: Problems) -> None:
        """width is odd"""
        if self.width is not None and self.width % 2:
            problems.value(f"width must be even, pairs are turned, got {self.width}")

    def misfits(self, head_dim: int) -> list[str]:
        """Why heads of this width cannot be turned; empty where they can."""
        width, reasons = self.turned(head_dim), []
        if width > head_dim or width % 2:
            reasons.append(f"rotary: width must be even and at most head_dim {head_dim}, got {width}")
        if self.axes and 2 * sum(self.axes) != width:
            reasons.append(f"rotary: axes must have {width // 2} pairs together, got {self.axes}")
        if isinstance(self.scaling, LongRope) and 2 * len(self.scaling.short) != width:
            reasons.append(
                f"rotary: scaling must have {width // 2} numbers, one per pair, got {len(self.scaling.short)}"
            )
        return reasons

    def turned(self, head_dim: int) -> int:
        """How many numbers of a head are turned."""
        return head_dim if self.width is None else self.width

    @property
    def follows_length(self) -> bool:
        """Whether the frequencies depend on the length of the call, the largest position plus one."""
        return self.scaling is not None and self.scaling.follows_length

    @property
    def factor(self) -> float:
        """What multiplies cosine and sine."""
        return 1.0 if self.scaling is None else self.scaling.factor()

    def frequencies(self, head_dim: int, length: int = 0) -> NumPyArray:
        """Angle per position of each pair, float32 [width / 2].

        Args:
            head_dim: D, the width of a head.
            length: of the call, the largest position plus one; read where `follows_length`.
        """
        return _frequencies(self, self.turned(head_dim), length if self.follows_length else 0)


@lru_cache(maxsize=256)
def _frequencies(rotary: Rotary, width: int, length: int) -> NumPyArray:
    if rotary.axes and rotary.restart:
        steps = np.concatenate([np.arange(pairs) / pairs for pairs in rotary.axes])
    else:
        steps = np.arange(width // 2) * 2 / width
    plain = np.asarray(rotary.theta**-steps)
    if rotary.scaling is not None:
        plain = rotary.scaling.frequencies(plain, rotary.theta, length)
    made = plain.astype(np.float32)
    made.setflags(write=False)
    return made
