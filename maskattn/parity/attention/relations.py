"""Relations that hold between two computations of one kernel: bit for bit in `exact`, within both limits elsewhere.

Each relation is a function of an adapter and a seed that returns findings; `RELATIONS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from maskattn import masks, standards
from maskattn.parity.attention import checks
from maskattn.parity.attention.adapters import Adapter
from maskattn.parity.attention.arrays import cotangent, inputs
from maskattn.parity.attention.case import Case, Shape
from maskattn.parity.draws import Draws
from maskattn.parity.findings import Finding, bits_equal
from maskattn.typing import NumPyArray as Array

Arrays = dict[str, Array]

SELF = Shape(batch=2, q_len=12, kv_len=12, heads=4, kv_heads=2, head_dim=5, v_head_dim=3)
#: Which axis is the queries' (or keys') in each result.
_QUERY_SIDE, _KEY_SIDE = ("output", "lse", "d_query"), ("d_key", "d_value")


class Scene:
    """One attention: a case, its inputs and cotangents, to be run as it is or changed."""

    def __init__(self, name: str, mask: masks.Mask | None, shape: Shape, seed: int, dtype: str = "float32") -> None:
        self.case = Case(f"relation/{name}", "relations", shape, dtype, mask, seed=seed)
        self.arrays, self.cotangent = inputs(self.case), cotangent(self.case)

    def run(self, adapter: Adapter) -> Arrays:
        """The results of the scene as it stands."""
        results = adapter.run(self.case, self.arrays, None, self.cotangent)
        return {name: array for name, array in results.items() if name != "mask"}

    def changed(self, mask: Any, change: Callable[[str, Array], Array] = lambda _, array: array, **sizes: int) -> Scene:
        """The scene with another mask, every array (inputs and cotangents, by name) changed, and other sizes."""
        made: Scene = object.__new__(Scene)
        shape = replace(self.case.shape, **sizes)
        made.case = replace(self.case, mask=mask, shape=shape)
        made.arrays = {name: change(name, self.arrays[name]) for name in ("query", "key", "value")}
        made.arrays["mask"] = made.case.allowed
        made.cotangent = {f"d_{name}": change(f"d_{name}", array) for name, array in self.cotangent.items()}
        made.cotangent = {name[2:]: array for name, array in made.cotangent.items()}
        return made

    def compare(self, relation: str, adapter: Adapter, left: Arrays, right: Arrays) -> list[Finding]:
        """Findings for every quantity in both: bits in `exact`, elsewhere twice the limit that each has by itself."""
        subject = adapter.name
        names = [name for name in left if name in right]
        if getattr(adapter, "kernel", "exact") == "exact" and self.case.dtype == "float32":
            return [bits_equal(relation, subject, name, left[name], right[name]) for name in names]
        verdict = checks.judge(self.case, self.arrays, self.cotangent)
        findings = []
        for name in names:
            limit = 2 * standards.tier2_limit(self.case.dtype, verdict.magnitude[name], verdict.logit, verdict.length)
            worst = float(checks.errors(left[name], right[name].astype(np.float64)).max(initial=0))
            message = "" if worst <= limit else f"{worst:.3g} apart, limit {limit:.3g}"
            findings.append(Finding(relation, subject, name, not message, message, worst, limit, left[name].size))
        return findings


def _side(name: str) -> str:
    """ "q" for arrays whose axis 1 is the queries', "k" for the keys'."""
    return "k" if name in ("key", "value", *_KEY_SIDE) else "q"


def _rows(index: Any) -> Callable[[str, Array], Array]:
    """Takes these rows of the batch."""
    return lambda _, array: array[index]


def _queries(index: Any) -> Callable[[str, Array], Array]:
    """Takes these queries; what is the keys' stays."""
    return lambda name, array: array if _side(name) == "k" else array[:, index]


def left_padding(adapter: Adapter, seed: int) -> list[Finding]:
    """Sequences padded on the left give what they give padded on the right."""
    size = SELF.kv_len
    lengths = Draws(seed).integers(1, size + 1, (SELF.batch,))
    kept = np.arange(size) < lengths[:, None]
    right = Scene("padding", masks.Causal() & masks.KeyMask(kept) & masks.QueryMask(kept), SELF, seed)

    def shifted(_: str, array: Array) -> Array:
        return np.stack([np.roll(row, size - n, axis=0) for row, n in zip(array, lengths, strict=True)])

    moved = shifted("", kept)
    left = right.changed(masks.Causal() & masks.KeyMask(moved) & masks.QueryMask(moved), shifted)
    expected = {name: shifted(name, array) for name, array in right.run(adapter).items()}
    return right.compare("left padding = right padding", adapter, expected, left.run(adapter))


def packed(adapter: Adapter, seed: int) -> list[Finding]:
    """Sequences laid end to end under Segments give what each gives in a padded batch."""
    sizes = (5, 4, 3)
    shape = replace(SELF, batch=1)
    ids = np.repeat(np.arange(3), sizes)[None]
    row = Scene("packed", masks.Segments(ids) & masks.Causal(), shape, seed)
    starts = np.cumsum((0, *sizes[:-1]))

    def apart(_: str, array: Array) -> Array:
        made = np.zeros((3, SELF.q_len, *array.shape[2:]), array.dtype)
        for i, (start, n) in enumerate(zip(starts, sizes, strict=True)):
            made[i, :n] = array[0, start : start + n]
        return made

    kept = np.arange(SELF.q_len) < np.array(sizes)[:, None]
    batch = row.changed(masks.Causal() & masks.KeyMask(kept) & masks.QueryMask(kept), apart, batch=3)
    separate = batch.run(adapter)
    joined = {
        name: np.concatenate([array[i, :n] for i, n in enumerate(sizes)])[None] for name, array in separate.items()
    }
    return row.compare("packed = separate", adapter, row.run(adapter), joined)


def _random_scene(name: str, seed: int) -> tuple[Scene, Array]:
    keep = Draws(seed).booleans(SELF.scores, 0.6)
    return Scene(name, masks.Dense(keep), SELF, seed), keep


def batch_slice(adapter: Adapter, seed: int) -> list[Finding]:
    """A batch gives what its rows give one at a time."""
    scene, keep = _random_scene("batch slice", seed)
    whole, findings = scene.run(adapter), []
    for b in range(SELF.batch):
        alone = scene.changed(masks.Dense(keep[b : b + 1]), _rows(slice(b, b + 1)), batch=1)
        part = {name: array[b : b + 1] for name, array in whole.items()}
        findings += alone.compare("batch slice = batch", adapter, part, alone.run(adapter))
    return findings


def permutations(adapter: Adapter, seed: int) -> list[Finding]:
    """Permuting batch rows, kv groups of heads, or queries permutes the results and changes no number.

    Queries: the gradients of keys and values are sums over queries in another order and are left out.
    """
    scene, keep = _random_scene("permutation", seed)
    whole, findings, groups = scene.run(adapter), [], SELF.heads // SELF.kv_heads
    b, g, q = (np.roll(np.arange(n), 1) for n in (SELF.batch, SELF.kv_heads, SELF.q_len))
    h = (g[:, None] * groups + np.arange(groups)).ravel()
    kinds: dict[str, tuple[Array, Callable[[str, Array], Array]]] = {
        "batch": (keep[b], _rows(b)),
        "heads": (keep[:, h], lambda name, array: array[:, :, g if _side(name) == "k" else h]),
        "queries": (keep[:, :, q], _queries(q)),
    }
    for kind, (mask, change) in kinds.items():
        got = scene.changed(masks.Dense(mask), change).run(adapter)
        names = _QUERY_SIDE if kind == "queries" else tuple(whole)
        expected = {name: change(name, whole[name]) for name in names}
        findings += scene.compare(f"permuted {kind}", adapter, expected, got)
    return findings


def causal_prefix(adapter: Adapter, seed: int) -> list[Finding]:
    """Under a causal mask, the first m positions, a later chunk and single decoding steps equal the full pass."""
    scene = Scene("causal prefix", masks.Causal(), SELF, seed)
    whole, findings, m = scene.run(adapter), [], 7
    short = scene.changed(masks.Causal(), lambda _, array: array[:, :m], q_len=m, kv_len=m)
    names = ("output", "lse", "d_query")
    findings += short.compare("causal prefix", adapter, {n: whole[n][:, :m] for n in names}, short.run(adapter))
    for start, stop in ((m, SELF.q_len), (m, m + 1), (SELF.q_len - 1, SELF.q_len)):
        window = slice(start, stop)
        step = scene.changed(
            masks.Causal().at(q_offset=start),
            _queries(window),
            q_len=stop - start,
        )
        expected = {n: whole[n][:, window] for n in names}
        findings += step.compare(f"causal steps {start}:{stop}", adapter, expected, step.run(adapter))
    return findings


def same_mask(adapter: Adapter, seed: int) -> list[Finding]:
    """m & m = m, ~~m = m, order is irrelevant, a window as long as the sequence is none, -inf forbids as masks do."""
    n, draws = SELF.kv_len, Draws(seed)
    m: masks.Mask = masks.Causal(1) & masks.KeyPadding(draws.integers(0, n + 1, (SELF.batch,)))
    other = masks.SlidingWindow(3, 2)
    pairs: dict[str, tuple[masks.Mask, masks.Mask]] = {
        "m & m = m": (m, m & m),
        "~~m = m": (m, ~~m),
        "m & n = n & m": (m & other, other & m),
        "dense = expression": (m, masks.Dense(m.dense(n, n, batch=SELF.batch, heads=SELF.heads))),
        "window >= N and causal = causal": (masks.Causal(), masks.Causal() & masks.SlidingWindow(n, n)),
    }
    findings = []
    for name, (left, right) in pairs.items():
        scene = Scene(name, left, SELF, seed)
        findings += scene.compare(name, adapter, scene.run(adapter), scene.changed(right).run(adapter))
    scene = Scene("bool mask = -inf bias", m, SELF, seed)
    bias = np.where(scene.arrays["mask"], 0, -np.inf).astype(np.float32)
    additive = replace(scene.case, mask=None, bias="dense")
    arrays = {**scene.arrays, "mask": np.ones_like(scene.arrays["mask"]), "bias": bias}
    got = adapter.run(additive, arrays, None, scene.cotangent)
    return findings + scene.compare("bool mask = -inf bias", adapter, scene.run(adapter), got)


def grouped(adapter: Adapter, seed: int) -> list[Finding]:
    """Grouped key/value heads give what the same heads repeated give (forward, and the gradient of the query)."""
    scene, keep = _random_scene("grouped", seed)
    groups = SELF.heads // SELF.kv_heads
    full = scene.changed(
        masks.Dense(keep),
        lambda name, array: np.repeat(array, groups, axis=2) if _side(name) == "k" else array,
        kv_heads=SELF.heads,
    )
    whole = scene.run(adapter)
    return scene.compare("GQA = repeated heads", adapter, {n: whole[n] for n in _QUERY_SIDE}, full.run(adapter))


def swin(adapter: Adapter, seed: int) -> list[Finding]:
    """Swin's shifted windows, the windows being the batch, equal the same pattern over the flat grid, unshifted."""
    grid, window, shift = (4, 6), (2, 3), (1, 1)
    flat = Scene("swin", masks.WindowPartition(grid, window, shift), replace(SELF, batch=1, q_len=24, kv_len=24), seed)
    rows, columns = grid[0] // window[0], grid[1] // window[1]

    def windows(_: str, array: Array) -> Array:
        rest = array.shape[2:]
        x = np.roll(array[0].reshape(*grid, *rest), (-shift[0], -shift[1]), axis=(0, 1))
        x = x.reshape(rows, window[0], columns, window[1], *rest).swapaxes(1, 2)
        return x.reshape(rows * columns, window[0] * window[1], *rest)

    inside = flat.changed(masks.ShiftedWindow(grid, window, shift), windows, batch=rows * columns, q_len=6, kv_len=6)
    expected = {name: windows(name, array) for name, array in flat.run(adapter).items()}
    return inside.compare("Swin's windows = flat grid", adapter, expected, inside.run(adapter))


def masked_replaced(adapter: Adapter, seed: int) -> list[Finding]:
    """NaN, infinities or another number in one key and value change no bit of what may not reach it.

    A query that may attend to the changed key is spoiled, and so are the gradients of what a spoiled query attends to;
    everything else must stay, in every kernel that keeps masked values out entirely.
    """
    findings = []
    scene, keep = _random_scene("masked replaced", seed)
    whole, groups = scene.run(adapter), SELF.heads // SELF.kv_heads
    for word, number in {"NaN": np.nan, "inf": np.inf, "-7": -7.0}.items():
        b, s, g = (Draws(f"{seed}{word}").integer(0, n) for n in (SELF.batch, SELF.kv_len, SELF.kv_heads))
        changed = scene.changed(scene.case.mask)
        for name in ("key", "value"):
            changed.arrays[name] = changed.arrays[name].copy()
            changed.arrays[name][b, s, g] = number
        heads = np.arange(SELF.heads) // groups == g
        spoiled = keep[:, :, :, s] & heads[:, None] & (np.arange(SELF.batch) == b)[:, None, None]
        touched = (keep & spoiled[..., None]).any(axis=2).reshape(SELF.batch, SELF.kv_heads, groups, -1).any(axis=2)
        stays = {"q": ~spoiled.transpose(0, 2, 1), "k": ~touched.transpose(0, 2, 1)}
        got = changed.run(adapter)
        for name, array in whole.items():
            where = stays[_side(name)]
            findings.append(bits_equal(f"masked = {word}", adapter.name, name, array[where], got[name][where]))
    return findings


RELATIONS: dict[str, Callable[[Adapter, int], list[Finding]]] = {
    relation.__name__: relation
    for relation in (
        left_padding,
        packed,
        batch_slice,
        permutations,
        causal_prefix,
        same_mask,
        grouped,
        swin,
        masked_replaced,
    )
}
