"""How large the tiles of a GPU's kernels are: what was measured, and what else its shared memory leaves room for.

Measured on one H200 (bfloat16, D 128, a prototype of these kernels): forward 128 x 64 with 8 warps and 3 stages; dq 128
x 64, 8, 2; dk/dv 64 x 128, 8, 2; with documents, whose tiles are mixed or empty for the most part, forward 64 x 64, 4,
3. The others are not measured: each list goes on with less, and the first that fits into shared memory is taken. Of
those tried where Triton compiled these kernels for 9.0 they are the ones that spill least (D 256 and float32 do, some),
and what the compiler then takes is what `_forward`, `_dq` and `_dkv` say, or less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a tile, and how the compiler divides and overlaps the work on one."""

    q: int
    k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Sizes:
    """The tiles of the three passes of a call; static. `interpret`: the kernels are interpreted, for tests.

    A leaf of `Conditions` without arrays: what is visited is planned where a pass is traced.
    """

    forward: Tile
    dq: Tile
    dkv: Tile
    interpret: bool


jax.tree_util.register_static(Sizes)

#: The smallest side of an operand of a product.
LEAST = 16
#: Wider heads are left to the loops of XLA: accumulators would not fit into registers.
WIDEST = 256
#: Bytes of shared memory that one program may take, by compute capability (CUDA's programming guide, table of technical
#: specifications); of others, what the smallest of these have.
_SHARED = {"8.0": 163 << 10, "8.7": 163 << 10, "9.0": 227 << 10, "10.0": 227 << 10, "10.3": 227 << 10}
_SHARED_LEAST = 99 << 10
#: What reductions and changes of layout take besides.
_SCRATCH = 12 << 10

_SMALL = (Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 1), Tile(16, 16, 4, 1))
_FORWARD = (Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), *_SMALL)
_DOCUMENTS = (Tile(64, 64, 4, 3), *_SMALL)
_DQ = (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), *_SMALL)
_DKV = (Tile(64, 128, 8, 2), Tile(32, 64, 8, 2), *_SMALL)
#: In float32 a product of full precision runs on the cores for single numbers, out of registers: small tiles.
_WIDE = (Tile(32, 32, 8, 2), Tile(32, 32, 8, 1), Tile(16, 16, 4, 1))


class Widths(NamedTuple):
    """The padded widths of a head's keys and values, and the bytes of a number."""

    depth: int
    v_depth: int
    bytes: int
    explicit: int = 0  # bytes for each pair of explicit masks and biases, which are read by tiles, too


def choose(
    lengths: tuple[int, int], widths: Widths, documents: bool, blocks: tuple[int, int] | None, interpret: bool
) -> Sizes:
    """The tiles of a call of these lengths; `documents`: most tiles are mixed or empty. With `blocks`, the caller's
    wish, they are no larger than the powers of two that are not below it.
    """
    wide = widths.bytes > 2
    lists = (_WIDE, _WIDE, _WIDE) if wide else (_DOCUMENTS if documents else _FORWARD, _DQ, _DKV)
    found = [_first(tiles, needs, widths) for tiles, needs in zip(lists, (_forward, _dq, _dkv), strict=True)]
    most = lengths if blocks is None else tuple(map(min, lengths, blocks))
    forward, dq, dkv = (_fitted(tile, most) for tile in found)
    return Sizes(forward, dq, dkv, interpret)


def _first(tiles: tuple[Tile, ...], needs: Callable[[Tile, Widths], int], widths: Widths) -> Tile:
    room = _shared_memory() - _SCRATCH
    return next((tile for tile in tiles if needs(tile, widths) <= room), tiles[-1])


def _forward(tile: Tile, widths: Widths) -> int:
    rows = tile.q * widths.depth + tile.stages * tile.k * (widths.depth + widths.v_depth)
    return widths.bytes * rows + tile.stages * tile.q * tile.k * widths.explicit


def _dq(tile: Tile, widths: Widths) -> int:
    both = widths.depth + widths.v_depth
    return widths.bytes * (tile.q * both + tile.stages * tile.k * both) + _pairs(tile, widths)


def _dkv(tile: Tile, widths: Widths) -> int:
    both = widths.depth + widths.v_depth
    return widths.bytes * (tile.k * both + tile.stages * tile.q * both) + _pairs(tile, widths)


def _pairs(tile: Tile, widths: Widths) -> int:
    """What the gradients of logits take on their way into a product, and explicit arrays."""
    return tile.q * tile.k * (widths.bytes + tile.stages * widths.explicit)


def _fitted(tile: Tile, most: tuple[int, ...]) -> Tile:
    """The tile cut to what is shorter, with as many warps as it then keeps busy."""
    q, k = (min(side, max(LEAST, power_of_two(length))) for side, length in zip((tile.q, tile.k), most, strict=True))
    return Tile(q, k, tile.warps if (q, k) == (tile.q, tile.k) else 4, tile.stages)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _shared_memory() -> int:
    try:
        device = jax.local_devices(backend="gpu")[0]
    except RuntimeError:  # lowered where there is none: as Pallas does, for 9.0
        return _SHARED["9.0"]
    return _SHARED.get(str(getattr(device, "compute_capability", "")), _SHARED_LEAST)
