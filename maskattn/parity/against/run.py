"""`maskattn parity against huggingface`: every family, every cell."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from maskattn import masks
from maskattn.config import AttentionConfig
from maskattn.parity.against.capture import capture
from maskattn.parity.against.compare import TWINS, Found, Jax, Judge, Torch, layout_of, weights
from maskattn.parity.against.families import FAMILIES, Family

#: The columns, and what each says.
COLUMNS: Mapping[str, str] = {
    "weights": "through the layout into both twins and back, byte for byte",
    "output": "both twins under the mask written in the algebra, within the sum of both bounds",
    "mask": "`masks.for_hf` allows the pairs that the mask written in the algebra does, and gives the same there",
    "gradients": "of inputs and weights, both twins, within the sum of both bounds",
    "decoding": "both twins with a cache, some tokens at once and then one by one, against the whole pass",
}

#: What a family that does not write token by token has in the last column.
NOT_DECODED = "does not decode"


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix.

    Attributes:
        column: of `COLUMNS`.
        share: the largest error by its limit, over the family's layers and both twins; None where nothing was run.
        what: where that was.
        reason: why the family's own behaviour keeps it from holding; "" where it must hold.
    """

    column: str
    share: float | None
    what: str
    reason: str = ""

    @property
    def held(self) -> bool:
        """Whether it is as the matrix says: within its limits, or beyond them where there is a reason."""
        return self.share is None or (self.share <= 1) == (not self.reason)

    @property
    def says(self) -> str:
        """In a word, or the reason."""
        return self.reason or ("holds" if self.held else "FAILED")


@dataclass(frozen=True)
class Row:
    """A family's cells, by column."""

    family: str
    cells: Mapping[str, Cell]

    @property
    def held(self) -> bool:
        """Whether every cell is as the matrix says."""
        return all(cell.held for cell in self.cells.values())


def chosen(pattern: str | None = None) -> tuple[str, ...]:
    """The families whose names match a glob, or contain it; all of them.

    Raises:
        ValueError: none does.
    """
    found = tuple(name for name in FAMILIES if pattern is None or _matches(name, pattern))
    if not found:
        raise ValueError(f"no family matches {pattern!r}: there are {', '.join(FAMILIES)}")
    return found


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern) or pattern in name


def matrix(names: Iterable[str], progress: Callable[[str], None] | None = None) -> Iterator[Row]:
    """The rows of these families, one after the other."""
    for name in names:
        if progress is not None:
            progress(name)
        yield examine(name, FAMILIES[name])


def examine(
    name: str,
    family: Family,
    change: Callable[[AttentionConfig], AttentionConfig] | None = None,
    quick: bool = False,
) -> Row:
    """A family's row.

    Args:
        change: makes the twins' configuration another one, which must show.
        quick: whether JAX, which compiles each layer, runs the first one alone, and does not decode.
    """
    config, layers = capture(family)
    worst: dict[str, tuple[Found, str]] = {}
    for number, (site, captured) in enumerate(zip(family.sites, layers, strict=True)):
        made = AttentionConfig.from_hf(config, site.layer, site.part)
        judge = Judge(site, captured, change(made) if change else made, layout_of(family.layout))
        asked = masks.for_hf(config, site.layer, site.part, length=captured.query.shape[1])
        decodes = family.decodes and site.part in (None, "decoder")
        for twin in TWINS[: 1 if quick and number else None]:
            for column, found in _cells(judge, twin(judge), asked, decodes and not (quick and twin is Jax)):
                if column not in worst or not found.share <= worst[column][0].share:
                    worst[column] = found, f"{site.part or 'layer'} {site.layer}, {twin.name} {found.what}".rstrip()
    cells = {
        column: Cell(column, found.share, where, family.reasons.get(column, ""))
        for column, (found, where) in worst.items()
    }
    missing = {column: Cell(column, None, "", NOT_DECODED) for column in COLUMNS if column not in cells}
    return Row(name, {column: (cells | missing)[column] for column in COLUMNS})


def _cells(judge: Judge, module: Torch | Jax, asked: masks.Mask, decodes: bool) -> Iterator[tuple[str, Found]]:
    """What a twin's module of one layer has in each column."""
    yield "weights", weights(judge, module)
    output, gradients = module.run(judge.written)
    yield "output", judge.output(output)
    yield "gradients", judge.gradients(gradients)
    if isinstance(module, Torch):
        yield "mask", _asked(judge, module, judge.whole(asked))
    if decodes:
        length = judge.captured.query.shape[1]
        yield "decoding", judge.output(module.decode(judge.written, (length - 2, 1, 1)))


def _asked(judge: Judge, module: Torch, mask: masks.Mask) -> Found:
    """The mask of a configuration against the one that is written in the algebra."""
    query, key = judge.captured.query, judge.captured.key
    one, other = (each.dense(query.shape[1], key.shape[1], query.shape[0]) for each in (judge.written, mask))
    if not np.array_equal(one, other):
        return Found(np.inf, f"{int((one != other).sum())} pairs of {mask}")
    return judge.output(module.run(mask, gradients=False)[0])
