"""Parameters of two programs, paired by their numbers: names and arrangement may differ, and fused ones are found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from maskattn.diagnose.arrangement import PRECISIONS, Rows, Whole, apart, arranged, rounded, within
from maskattn.diagnose.matching import live
from maskattn.diagnose.trace import Trace
from maskattn.typing import NumPyArray


@dataclass(frozen=True)
class Pair:
    """A parameter of PyTorch's side and one of JAX's.

    Attributes:
        torch, jax: their names.
        how: "equal", "reshaped", "transposed", "in another order", "part of" (PyTorch's lies in JAX's), "holds" (JAX's
            lies in PyTorch's), or "differs".
        detail: where the one lies in the other, or by what it differs.
        rounded: the dtype that one side's numbers are rounded to; "" where none is.
        finer: the side that has more digits then, "torch" or "jax".
        places: of each number of PyTorch's (JAX's, where PyTorch's holds it), the place in the other one, flat.
    """

    torch: str
    jax: str
    how: str
    detail: str = ""
    rounded: str = ""
    finer: str = ""
    places: NumPyArray | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        middle = {"part of": "is part of", "holds": "holds", "differs": "differs from"}.get(self.how)
        said = f"{self.torch} {middle} {self.jax}" if middle else f"{self.torch} = {self.jax}, {self.how}"
        said += f": {self.detail}" if self.detail else ""
        coarse = {"torch": "JAX", "jax": "PyTorch"}.get(self.finer)
        return said + (f"; {coarse} has it rounded to {self.rounded}" if self.rounded else "")


@dataclass(frozen=True)
class Alike:
    """Parameters that hold one number only, and cannot be told apart.

    Attributes:
        number: what they hold. torch, jax: their names.
    """

    number: float
    torch: tuple[str, ...]
    jax: tuple[str, ...]


@dataclass(frozen=True)
class Parameters:
    """Which parameter is which.

    Attributes:
        pairs: of both sides.
        alike: those of one number.
        torch_only, jax_only: which have no partner, though the outputs depend on them.
        torch_unused, jax_unused: on which the outputs that are compared do not depend.
        exchanged: pairs of pairs whose names say the opposite of their numbers.
    """

    pairs: tuple[Pair, ...] = ()
    alike: tuple[Alike, ...] = ()
    torch_only: tuple[str, ...] = ()
    jax_only: tuple[str, ...] = ()
    torch_unused: tuple[str, ...] = ()
    jax_unused: tuple[str, ...] = ()
    exchanged: tuple[tuple[Pair, Pair], ...] = ()

    @property
    def differing(self) -> tuple[Pair, ...]:
        """Pairs whose numbers differ."""
        return tuple(pair for pair in self.pairs if pair.how == "differs")

    def findings(self) -> Iterator[str]:
        """What of it may explain a difference, as sentences."""
        for pair in self.differing:
            yield str(pair)
        for one, other in self.exchanged:
            yield f"exchanged, as their names have it: {one.torch} = {one.jax}, and {other.torch} = {other.jax}"
        for each in self.alike:
            if bool(each.torch) != bool(each.jax) and each.number:
                where = "PyTorch" if each.torch else "JAX"
                yield f"on the {where} side only, all {each.number:g}: {listed(each.torch or each.jax)}"
        for side, names in (("PyTorch", self.torch_only), ("JAX", self.jax_only)):
            if names:
                yield f"on the {side} side only: {listed(names)}"
        there, here = set(self.torch_unused), set(self.jax_unused)
        for pair in self.pairs:
            if (pair.torch in there) != (pair.jax in here):
                side, name = ("PyTorch", pair.torch) if pair.torch in there else ("JAX", pair.jax)
                yield f"the {side} side does not use {name} ({pair})"
        paired = {name for pair in self.pairs for name in (pair.torch, pair.jax)}
        for side, unused in (("PyTorch", self.torch_unused), ("JAX", self.jax_unused)):
            left = [name for name in unused if name not in paired]
            if left:
                yield f"the outputs that are compared do not depend on these of the {side} side: {listed(left)}"

    def notes(self) -> Iterator[str]:
        """What is no fault: storage, and what cannot be told apart."""
        for precision in PRECISIONS:
            for finer, side in (("torch", "JAX"), ("jax", "PyTorch")):
                names = [one.torch for one in self.pairs if (one.rounded, one.finer) == (precision, finer)]
                if names:
                    what = "1 parameter is" if len(names) == 1 else f"{len(names)} parameters are"
                    text = f"{what} stored rounded to {precision} on the {side} side: both sides were run with the "
                    yield f"{text}rounded numbers ({listed(names, 3)})"
        for one in self.alike:
            if len(one.torch) > 1 or len(one.jax) > 1:
                count = f"{len(one.torch)} parameters of PyTorch and {len(one.jax)} of JAX are all {one.number:g}"
                yield f"{count}: an exchange among them, and what they do, does not show; give them other numbers"

    def instead(self, ours: Trace, theirs: Trace) -> tuple[dict[str, NumPyArray], dict[str, NumPyArray]]:
        """For parameters that the other side has rounded, the rounded numbers, by name, of PyTorch and of JAX."""
        found: tuple[dict[str, NumPyArray], dict[str, NumPyArray]] = ({}, {})
        for pair in self.pairs:
            if pair.rounded:
                side = pair.finer == "jax"
                name, trace = (pair.jax, theirs) if side else (pair.torch, ours)
                found[side][name] = rounded(trace.nodes[trace.parameters[name]].value, pair.rounded)
        return found


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in a row, the first of them where they are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def paired(ours: Trace, theirs: Trace, outputs: Sequence[tuple[int, int]]) -> Parameters:
    """Pairs the parameters of two runs.

    Args:
        outputs: numbers of the nodes that are compared, of both sides.
    """
    mine, its = _floating(ours), _floating(theirs)
    alike = _constant(mine, its)
    held = {name for one in alike for name in (*one.torch, *one.jax)}
    single = [one for one in alike if len(one.torch) == len(one.jax) == 1]
    pairs = [_settled(one, mine, its) for one in single]
    left = {name: one for name, one in mine.items() if name not in held}
    right = {name: one for name, one in its.items() if name not in held}
    pairs += _same(left, right)
    left, right = _without(left, {one.torch for one in pairs}), _without(right, {one.jax for one in pairs})
    pairs += _parts(left, right)
    left, right = _without(left, {one.torch for one in pairs}), _without(right, {one.jax for one in pairs})
    pairs += _differing(left, right)
    left, right = _without(left, {one.torch for one in pairs}), _without(right, {one.jax for one in pairs})
    unused = _unused(ours, [one for one, _ in outputs], mine), _unused(theirs, [other for _, other in outputs], its)
    order = {name: number for number, name in enumerate(mine)}
    return Parameters(
        tuple(sorted(pairs, key=lambda one: order[one.torch])),
        tuple(one for one in alike if one not in single),
        tuple(name for name in left if name not in unused[0] and name not in ours.computed),
        tuple(name for name in right if name not in unused[1]),
        tuple(name for name in unused[0] if name not in ours.computed),
        unused[1],
        tuple(_exchanged(pairs)),
    )


def _floating(trace: Trace) -> dict[str, Whole]:
    values = {name: trace.nodes[number].value for name, number in trace.parameters.items()}
    return {name: Whole(value) for name, value in values.items() if value.dtype.kind == "f" and value.size}


def _without(held: dict[str, Whole], names: set[str]) -> dict[str, Whole]:
    return {name: one for name, one in held.items() if name not in names}


def _unused(trace: Trace, outputs: Sequence[int], held: dict[str, Whole]) -> tuple[str, ...]:
    used = live(trace, outputs)
    return tuple(name for name, number in trace.parameters.items() if name in held and number not in used)


def _constant(mine: dict[str, Whole], its: dict[str, Whole]) -> list[Alike]:
    found: dict[float, tuple[list[str], list[str]]] = {}
    for side, held in enumerate((mine, its)):
        for name, one in held.items():
            if one.constant:
                found.setdefault(float(one.ordered[0]), ([], []))[side].append(name)
    return [Alike(number, tuple(here), tuple(there)) for number, (here, there) in found.items()]


def _settled(one: Alike, mine: dict[str, Whole], its: dict[str, Whole]) -> Pair:
    size, other = mine[one.torch[0]].value.size, its[one.jax[0]].value.size
    how = "equal" if size == other else "part of" if size < other else "holds"
    return Pair(one.torch[0], one.jax[0], how, f"all {one.number:g}", places=np.arange(min(size, other)))


def _same(mine: dict[str, Whole], its: dict[str, Whole]) -> list[Pair]:
    """Those that hold the same numbers: exactly, then rounded."""
    pairs: list[Pair] = []
    for precision in ("", *PRECISIONS):
        groups: dict[tuple[int, int], tuple[list[str], list[str]]] = {}
        for side, held in enumerate((mine, its)):
            done = {(one.torch, one.jax)[side] for one in pairs}
            for name, one in held.items():
                if name not in done:
                    groups.setdefault(one.key(precision), ([], []))[side].append(name)
        for here, there in groups.values():
            for at in range(max(len(here), len(there)) if here and there else 0):
                name, other = here[min(at, len(here) - 1)], there[min(at, len(there) - 1)]
                finer = _finer(mine[name], its[other], precision)
                if finer is not None:
                    how, places = arranged(*(rounded(whole.value, precision) for whole in (mine[name], its[other])))
                    pairs.append(Pair(name, other, how, "", precision, finer, places))
    return pairs


def _finer(one: Whole, other: Whole, precision: str) -> str | None:
    """Which side has digits that a dtype does not hold; None where both have: they only are alike then."""
    if not precision:
        return ""
    if other.exact(precision):
        return "torch"
    return "jax" if one.exact(precision) else None


def _parts(mine: dict[str, Whole], its: dict[str, Whole]) -> list[Pair]:
    """Those that lie in larger ones, on either side."""
    found: list[Pair] = []
    for small, large, how in ((mine, its, "part of"), (its, mine, "holds")):
        cut: dict[tuple[str, str], list[Rows]] = {}
        seen: dict[tuple[int, int], int] = {}
        for name, one in small.items():
            nth = seen[one.key("")] = seen.get(one.key(""), -1) + 1
            pair = next(_part(name, one, large, how, cut, nth), None)
            if pair is not None:
                found.append(pair)
    return found


def _part(
    name: str, one: Whole, large: dict[str, Whole], how: str, cut: dict[tuple[str, str], list[Rows]], nth: int
) -> Iterator[Pair]:
    for precision in ("", *PRECISIONS):
        for other, fused in large.items():
            if fused.value.size <= one.value.size:
                continue
            ours, theirs = (one, fused) if how == "part of" else (fused, one)
            finer = _finer(ours, theirs, precision)
            if finer is None:
                continue
            value = rounded(fused.value, precision)
            if (other, precision) not in cut:
                cut[other, precision] = list(apart(value, False))
            place = within(rounded(one.value, precision), value, cut[other, precision], nth)
            if place is not None:
                names = (name, other) if how == "part of" else (other, name)
                yield Pair(*names, how, place[0], precision, finer, place[1])


def _differing(mine: dict[str, Whole], its: dict[str, Whole]) -> list[Pair]:
    """What is left of the same size: the nearest by numbers, else by names."""
    near = []
    for name, one in mine.items():
        for other, two in its.items():
            if one.value.size == two.value.size:
                closeness, said = _apart(one, two)
                far = closeness > 0.5
                near.append((far, -_similar(name, other) if far else 0, closeness, name, other, said))
    found: dict[str, Pair] = {}
    taken: set[str] = set()
    for _, _, _, name, other, said in sorted(near):
        if name not in found and other not in taken:
            found[name] = Pair(name, other, "differs", said)
            taken.add(other)
    return list(found.values())


def _apart(one: Whole, other: Whole) -> tuple[float, str]:
    """How far two arrays are apart on the average, in units of their numbers, and in words by what."""
    moved = other.ordered - one.ordered
    if np.ptp(moved) <= 1e-6 * float(np.abs(other.ordered).max()):
        return 0.0, f"JAX's numbers are {float(moved.mean()):.6g} plus PyTorch's"
    for other_ordered in (other.ordered, other.ordered[::-1]):
        with np.errstate(all="ignore"):
            ratio = other_ordered / one.ordered
        ratio = ratio[np.isfinite(ratio)]
        if ratio.size and np.ptp(ratio) <= 1e-6 * np.abs(ratio).max():
            return 0.0, f"JAX's numbers are {float(ratio.mean()):.6g} times PyTorch's"
    best = (np.inf, 0.0, 0)
    shapes = [other.value] if other.value.ndim != 2 else [other.value, other.value.T]
    for each in shapes:
        if np.squeeze(each).shape == np.squeeze(one.value).shape or len(shapes) == 1:
            gap = np.abs(one.value.ravel() - each.ravel())
            mean = float(gap.mean()) / max(float(np.abs(one.value).mean()), 1e-30)
            best = min(best, (mean, float(gap.max()), int(np.count_nonzero(gap))))
    mean, most, count = best
    if not np.isfinite(mean):
        return mean, f"shapes {one.value.shape} and {other.value.shape}"
    return mean, f"{count} of {one.value.size} numbers, by up to {most:.3g}"


# Names ----------------------------------------------------------------------------------------------------------------


def _words(name: str) -> set[str]:
    return {word for word in re.split(r"[._/\[\]']+", name.lower()) if word}


def _similar(one: str, other: str) -> int:
    return len(_words(one) & _words(other))


def _exchanged(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Pair]]:
    """Pairs of which each one's names agree better with the other's."""
    whole = [one for one in pairs if one.how not in ("part of", "holds", "differs")]
    for at, one in enumerate(whole):
        for other in whole[at + 1 :]:
            if one.places is None or other.places is None or one.places.size != other.places.size:
                continue
            first = _similar(one.torch, other.jax) > _similar(one.torch, one.jax)
            if first and _similar(other.torch, one.jax) > _similar(other.torch, other.jax):
                yield one, other
