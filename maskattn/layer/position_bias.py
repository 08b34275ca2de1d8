"""Biases by position that a layer learns, or computes: each makes a `Bias` of the layer's parameters."""

from __future__ import annotations

import math

import numpy as np

from maskattn._declared import Declared, choice, declared, flag, integer, integers, numbers
from maskattn._problems import Problems
from maskattn.typing import NumPyArray


class PositionBias(Declared):
    """A bias that belongs to a layer: where query and key stand says what is added to the logit."""


@declared
class WindowTable(PositionBias):
    """A learned number for each offset within a window: Swin's and BEiT's, `biases.RelativeTable`.

    Its table is `relative_position_bias.table` [offsets, H].
    """

    window: tuple[int, ...] = integers(minimum=1, least=1, most=3, meaning="lengths of the axes")
    first: bool = flag(default=False, meaning="whether a token that is no place of the window comes first, as in BEiT")

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return math.prod(2 * n - 1 for n in self.window) + 3 * self.first


@declared
class T5Table(PositionBias):
    """A learned number for each bucket of distances: T5's, `biases.T5Buckets`.

    Its table is `relative_attention_bias.table` [buckets, H].
    """

    buckets: int = integer(minimum=2, default=32, meaning="rows of the table")
    max_distance: int = integer(minimum=1, default=128, meaning="from here on all distances share the last bucket")
    bidirectional: bool = flag(default=True, meaning="whether keys after the query have buckets of their own")

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return self.buckets


@declared
class ContinuousTable(PositionBias):
    """A table that a small network makes of the offsets: Swin v2's continuous position bias.

    Liu et al. 2022, section 3.3: 16 * sigmoid(linear(relu(linear(offset)))), of offsets on a logarithmic scale. Its
    parameters are `cpb_mlp.0.kernel` [2, hidden], `cpb_mlp.0.bias` [hidden] and `cpb_mlp.2.kernel` [hidden, H].
    """

    window: tuple[int, ...] = integers(minimum=1, per=2, meaning="height and width of the window")
    hidden: int = integer(minimum=1, default=512, meaning="the width of the network")
    pretrained: tuple[int, ...] = integers(
        minimum=0, per=2, default=(0, 0), meaning="the window of pre-training, where offsets count by that; 0: this one"
    )

    def offsets(self) -> NumPyArray:
        """What the network reads of each offset, float64 [offsets, 2]: sign(x) * log2(1 + |x|) / 3, x the offset by the
        largest of its axis, times 8."""
        axes = []
        for own, trained in zip(self.window, self.pretrained, strict=True):
            most = (trained or own) - 1
            axes.append(np.arange(1 - own, own) / most * 8 if most else np.zeros(2 * own - 1))
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        return np.asarray(np.sign(grid) * np.log2(np.abs(grid) + 1) / 3)


@declared
class Slopes(PositionBias):
    """A slope per head, times the distance: ALiBi, `biases.ALiBi`. Nothing is learned."""

    slopes: tuple[float, ...] | None = numbers(
        above=None, none="the published ones", default=None, meaning="one per head"
    )
    form: str = choice("distance", "key", default="key", meaning="which of the two is added")


@declared
class Disentangled(PositionBias):
    """Content to position and position to content: DeBERTa's (He et al. 2021, section 3.1), v2 and v3's buckets.

    The score of a query and a key is the sum of q.k, q.(key of the relative position) and k.(query of the relative
    position), each of which is present as said here, times `scale`: DeBERTa's is 1 / sqrt(D * (1 + terms)). A call
    brings the table of relative positions, `relative` [2 * span, E].
    """

    span: int = integer(minimum=1, meaning="half of the table's rows: offsets are clamped to [-span, span)")
    buckets: int = integer(minimum=0, default=0, meaning="of the logarithmic distances (position_buckets); 0: none")
    max_distance: int = integer(minimum=1, default=512, meaning="the distance of the last bucket")
    to_position: bool = flag(default=True, meaning="whether queries meet the keys of positions (c2p)")
    from_position: bool = flag(default=True, meaning="whether keys meet the queries of positions (p2c)")
    shared: bool = flag(
        default=True,
        meaning="whether the layer's own projections make keys and queries of positions; otherwise `pos_key.kernel` "
        "[E, H * D] and `pos_query.kernel` with its bias do",
    )

    def _check(self, problems: Problems) -> None:
        """no term is present"""
        if not (self.to_position or self.from_position):
            problems.value("to_position or from_position must be True, got neither")

    @property
    def terms(self) -> int:
        """How many there are beside q.k."""
        return self.to_position + self.from_position
