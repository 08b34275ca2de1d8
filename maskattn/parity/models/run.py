"""`maskattn parity models`: tiny models of transformers, made at random, against both twins, whole."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from maskattn import models, standards
from maskattn.arrays import dtype_named
from maskattn.convert.compare import Compared, judged
from maskattn.models import WholeModel
from maskattn.parity.models.peer import FEATURES, Peer
from maskattn.parity.models.tiny import TINY, Tiny
from maskattn.parity.models.twins import TWINS, Arrays, Given, Twin
from maskattn.typing import NumPyArray as Array

#: The columns, and what each says.
COLUMNS: Mapping[str, str] = {
    "hidden": "hidden states of every layer, and the pooled vector, in float32",
    "logits": "what the head makes of them, in float32",
    "gradients": "of every parameter, by its published name, in float32: of a random projection of all that is given",
    "bfloat16": "everything once more in bfloat16, beside transformers' own error",
}
#: What our models give also where the class of transformers keeps it for itself.
MORE = {"hidden", "pooled"}
#: Of fewer vectors than these, or of fewer numbers, the error is chance; what they are made of is compared.
_FEW = 8
#: What `--dtype` runs.
DTYPES: Mapping[str, tuple[str, ...]] = {"float32": ("hidden", "logits", "gradients"), "bfloat16": ("bfloat16",)}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        share: the largest error by its limit, over both twins, both sides of padding and all numbers.
        what: where that was.
    """

    share: float
    what: str

    @property
    def held(self) -> bool:
        """Whether it is within its limit."""
        return self.share <= 1


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        name: of its row in `maskattn.parity.models.tiny`.
        cells: by column; None where the model gives no such thing.
        error: why it was not run; "" where it was.
    """

    name: str
    cells: Mapping[str, Cell | None] = field(default_factory=dict)
    error: str = ""

    @property
    def held(self) -> bool:
        """Whether it ran, and every cell is within its limit."""
        return not self.error and all(cell is None or cell.held for cell in self.cells.values())


def chosen(pattern: str | None = None) -> tuple[str, ...]:
    """The rows whose names match a glob, or contain it; all of them.

    Raises:
        ValueError: none does.
    """
    found = tuple(name for name in TINY if pattern is None or fnmatch.fnmatch(name, pattern) or pattern in name)
    if not found:
        raise ValueError(f"no model matches {pattern!r}: there are {', '.join(TINY)}")
    return found


def matrix(
    names: Iterable[str], columns: Sequence[str] = tuple(COLUMNS), progress: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """The rows of these models, one after the other; what goes wrong with one is its row's error."""
    for name in names:
        if progress is not None:
            progress(name)
        try:
            yield examine(name, columns)
        except ImportError:
            raise
        except Exception as error:
            yield Row(name, {}, f"{'' if isinstance(error, ValueError) else f'{type(error).__name__}: '}{error}")


def examine(
    name: str,
    columns: Sequence[str] = tuple(COLUMNS),
    *,
    twins: Sequence[type[Twin]] = TWINS,
    sides: int | None = None,
    compiled: bool = True,
    change: Callable[[WholeModel], WholeModel] | None = None,
    tiny: Tiny | None = None,
) -> Row:
    """The row of a model.

    Args:
        sides: on how many sides of its row the batch is padded; None: on all.
        compiled: whether JAX compiles the model; else it runs each operation by itself.
        change: makes the twins' table another one, which must show.
        tiny: the row of the name; None: of `TINY`.

    Raises:
        ValueError: no table is known of the model, or an option of it is refused.
    """
    tiny = tiny or TINY[name]
    peer = Peer.of(name, tiny)
    worst: dict[str, Cell | None] = dict.fromkeys(columns)

    def note(column: str, cell: Cell) -> None:
        before = worst[column]
        if before is None or not cell.share <= before.share:
            worst[column] = cell

    for dtype, wanted in DTYPES.items():
        asked = [column for column in wanted if column in columns]
        if not asked:
            continue
        theirs = peer if dtype == "float32" else peer.to(dtype)
        table = models.describe(theirs.config, theirs.tensors)
        made = [twin(change(table) if change else table, theirs.tensors, dtype, compiled) for twin in twins]
        for side in (tiny.padding or ("",))[:sides]:
            case = Case(theirs, theirs.batch(tiny, side), dtype, "gradients" in asked, _FEW - 1)
            for twin in made:
                for column, cell in case.judge(twin):
                    if column in asked:
                        where = f"{twin.name} {cell.what}" + (f", padded {side}" if side else "")
                        note(column, Cell(cell.share, where))
    return Row(name, worst)


class Case:
    """What a model of transformers makes of a batch; a float64 run of it says how far that is off.

    Args:
        gradients: whether they are compared too.
        few: as in `standards.whole_model_error`.
    """

    def __init__(self, peer: Peer, batch: Given, dtype: str, gradients: bool, few: int = 0) -> None:
        batch = {key: x.astype(dtype_named(dtype)) if key in FEATURES else x for key, x in batch.items()}
        self.batch, self.dtype, self.few, self.projections = batch, dtype, few, None
        if gradients:
            given = peer.run(batch)[0]
            self.projections = {name: _drawn(peer, batch, name, given[name].shape) for name in _ends(given)}
        self.groups = peer.aliases() if gradients else []
        self.theirs, self.slopes = peer.run(batch, self.projections)
        self.keep = {name: peer.kept(batch, name, x.shape) for name, x in self.theirs.items()}
        self.right, self.right_slopes = peer.to("float64").run(batch, self.projections)

    def judge(self, twin: Twin) -> Iterator[tuple[str, Cell]]:
        """(column, cell) of all that a twin gives."""
        ours, slopes = twin.run(self.batch, self.projections)
        for each in self.compared(ours):
            column = self.dtype if self.dtype in COLUMNS else "logits" if each.name == "logits" else "hidden"
            yield column, Cell(each.share, each.name)
        if self.projections is not None:
            yield from self._gradients(slopes)

    def compared(self, ours: Given) -> Iterator[Compared]:
        """All that a twin gives, in order; what one side alone has is as far off as can be."""
        for name in (*self.theirs, *sorted(ours.keys() - self.theirs.keys() - MORE)):
            if self.dtype != "float32" and name in self.theirs and self._vectors(name) < _FEW:
                continue
            if name not in self.theirs or name not in ours or ours[name].shape != self.theirs[name].shape:
                yield Compared(name, float("inf"), 0.0, float("inf"))
            else:
                mine, his, right = (x[name][self.keep[name]] for x in (ours, self.theirs, self.right))
                yield judged(name, mine, his, right, self.dtype, self.few)

    def _vectors(self, name: str) -> int:
        """How many there are of one of the things that a model gives; or how many numbers each has, if these are fewer:
        two logits of each token of BERT are off by 0.55 to 1.00 of the limit in bfloat16, by the seed."""
        shape = self.theirs[name][self.keep[name]].shape
        return min(int(np.prod(shape[:-1])), shape[-1])

    def _gradients(self, slopes: Arrays) -> Iterator[tuple[str, Cell]]:
        """Of every parameter; one that a twin has not must change nothing in transformers."""
        groups = self.groups
        largest: dict[str, float] = {}
        for name, x in self.slopes.items():
            for within in _around(name):
                largest[within] = max(largest.get(within, 0.0), float(np.abs(x).max()))
        for name in slopes.keys() - {name for group in groups for name in group}:
            yield "gradients", Cell(float("inf"), f"{name}, which transformers has not")
        for group in groups:
            his, right = self.slopes[group[0]], self.right_slopes[group[0]]
            name = next((name for name in group if name in slopes), group[0])
            mine = slopes.get(name, np.zeros_like(his))
            if mine.shape != his.shape:
                yield "gradients", Cell(float("inf"), f"{name}, of the shape {mine.shape}")
                continue
            share = standards.gradient_share(mine, his, right, *(largest[within] for within in _around(name)))
            yield "gradients", Cell(share, name)


def _drawn(peer: Peer, batch: Given, name: str, shape: tuple[int, ...]) -> Array:
    """Standard normal where it is compared, else 0; float32."""
    drawn: Array = np.asarray(np.random.default_rng(math.prod(shape)).standard_normal(shape, np.float32))
    drawn[~peer.kept(batch, name, shape)] = 0
    return drawn


def _around(name: str) -> tuple[str, str]:
    """The layer that a parameter is in, and what that layer is in."""
    layer = name.rpartition(".")[0]
    return layer, f"{layer.rpartition('.')[0]}."


def _ends(given: Arrays) -> list[str]:
    """What a model gives at last."""
    states = [name for name in given if "hidden_states" in name]
    last = {name.partition(".")[0]: name for name in states}
    return [name for name in given if name not in states] + list(last.values())
