"""Writing token after token: the loop, and how a token is chosen, once for both twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from maskattn._problems import Problems
from maskattn.arrays import to_numpy
from maskattn.models.encoder_decoder import EncoderDecoder
from maskattn.models.model import WholeModel
from maskattn.numerics import rng
from maskattn.typing import NumPyArray as Array

Caches = TypeVar("Caches")


class Steps(Protocol[Caches]):
    """A model that writes."""

    @property
    def multiple(self) -> int:
        """What lengths of prompts and caches are made multiples of, so that few programs are compiled."""

    def start(self, batch: int, size: int) -> Caches:
        """Caches without tokens, of `size` slots."""

    def step(self, tokens: Array, valid: Array, last: Array, caches: Caches) -> tuple[Array, Caches]:
        """Tokens int [B, L], of which `valid` are no padding -> float32 logits [B, V] at the places `last` int [B], and
        the new caches; the old ones are not used again."""


@dataclass(frozen=True)
class Choice:
    """How a token is chosen from logits [B, V].

    Attributes:
        temperature: what divides the logits before one is drawn; 0 takes the largest, the first of equals.
        top_k: how many of the largest can be drawn; 0: all.
        top_p: the largest are kept until their probabilities reach it (Holtzman et al. 2020, section 3.1).
        key: of the draws, two words.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    key: Array | None = None

    def tokens(self, logits: Array, step: int) -> Array:
        """int64 [B], the tokens of a step: the same for the same logits, whatever made them.

        Row b draws u from `uniform(fold_in(key, step), [B])[b]`: the first token, in the order of ids, at which the
        running sum of probabilities, in float64, is above u.
        """
        if not self.temperature:
            return np.asarray(logits.argmax(-1), np.int64)
        assert self.key is not None
        wide = logits.astype(np.float64) / self.temperature
        chances = np.exp(wide - wide.max(-1, keepdims=True))
        order = np.argsort(-chances, -1, kind="stable")
        sorted_chances = np.take_along_axis(chances, order, -1)
        kept = np.ones_like(chances, bool)
        if self.top_k:
            kept[:, self.top_k :] = False
        before = np.cumsum(sorted_chances, -1) - sorted_chances
        kept &= before < self.top_p * chances.sum(-1, keepdims=True)
        kept[:, 0] = True
        allowed = np.zeros_like(kept)
        np.put_along_axis(allowed, order, kept, -1)
        sums = np.cumsum(np.where(allowed, chances, 0.0), -1)
        drawn = rng.uniform(rng.fold_in(self.key, step), (len(logits),), dtype=np.float64)
        found = (sums > drawn[:, None] * sums[:, -1:]).argmax(-1)
        return np.asarray(found, np.int64)


@dataclass(frozen=True)
class Plan(Generic[Caches]):
    """What is asked of a model that writes.

    Attributes:
        new: tokens to write at most.
        ends: ids behind which a row is finished. pad: what a finished row has.
        progress: called with the tokens int64 [B] of each step.
    """

    steps: Steps[Caches]
    choice: Choice
    new: int
    ends: tuple[int, ...] = ()
    pad: int = 0
    progress: Callable[[Array], None] | None = None

    def write(self, tokens: Array, mask: Array) -> Array:
        """The new tokens int64 [B, n], n at most `new`, of prompts int [B, L] where mask bool [B, L] is True."""
        batch, length = tokens.shape
        many = self.steps.multiple
        wide = -(-length // many) * many
        caches = self.steps.start(batch, -(-(length + self.new) // many) * many)
        given, valid = np.zeros((batch, wide), np.int64), np.zeros((batch, wide), bool)
        given[:, :length], valid[:, :length] = tokens, mask
        last = wide - 1 - valid[:, ::-1].argmax(-1)
        written: list[Array] = []
        open_rows = np.ones(batch, bool)
        for step in range(self.new):
            logits, caches = self.steps.step(given, valid, last, caches)
            chosen = np.where(open_rows, self.choice.tokens(logits, step), self.pad)
            written.append(chosen)
            if self.progress is not None:
                self.progress(chosen)
            open_rows &= ~np.isin(chosen, self.ends)
            if not open_rows.any():
                break
            given, valid, last = chosen[:, None], open_rows[:, None], np.zeros(batch, np.int64)
        return np.stack(written, 1) if written else np.zeros((batch, 0), np.int64)


def checked(
    where: str,
    tokens: object,
    mask: object,
    *,
    new: object,
    temperature: float,
    top_k: int,
    top_p: float,
    key: Array | None,
    ends: Sequence[int] | int | None,
) -> tuple[Array, Array, Choice, tuple[int, ...]]:
    """Prompts and mask in NumPy, the choice, and the ends.

    Raises:
        TypeError, ValueError: lists every argument at fault.
    """
    problems = Problems(where)
    ids = to_numpy(tokens)
    kept = np.ones(ids.shape, bool) if mask is None else to_numpy(mask) != 0
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        problems.value(f"tokens must be integers [B, L] and not empty, got {ids.dtype} {list(ids.shape)}")
    elif kept.shape != ids.shape:
        problems.value(f"attention_mask must be {list(ids.shape)}, as tokens are, got {list(kept.shape)}")
    elif mask is not None and to_numpy(mask).dtype.kind not in "biu":
        problems.type(f"attention_mask must be bool or integers, 1 = keep, got {to_numpy(mask).dtype}")
    elif not kept.any(-1).all():
        problems.value("attention_mask must keep a token of every row")
    problems.integer("max_new_tokens", new, minimum=0)
    problems.integer("top_k", top_k, minimum=0)
    if not temperature >= 0:
        problems.value(f"temperature must be at least 0, got {temperature}")
    if not 0 < top_p <= 1:
        problems.value(f"top_p must be in (0, 1], got {top_p}")
    if temperature and key is None:
        problems.value("key must be given where temperature is above 0, since tokens are drawn")
    problems.raise_if_any()
    stops = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
    return ids, kept, Choice(float(temperature), int(top_k), float(top_p), key), stops


def prompted(where: str, table: WholeModel, given: dict[str, Any], begin: Any) -> tuple[Any, Any, dict[str, Any]]:
    """What a model writes behind, its mask, and what its encoder reads.

    Args:
        given: tokens, attention_mask and features, of which those that are None are left out of the last.
        begin: int [B, T], what a decoder beside an encoder begins with, or None: the start of its configuration.

    Raises:
        ValueError: tokens, features or the beginning are missing, or nothing reads them.
    """
    if not isinstance(table, EncoderDecoder):
        if given["tokens"] is None or given["features"] is not None or begin is not None:
            raise ValueError(f"{where}: a {table.model_type} model writes behind tokens alone")
        return given["tokens"], given["attention_mask"], {}
    given = {name: x for name, x in given.items() if x is not None}
    kind = "features" if table.hears else "tokens"
    if kind not in given:
        raise ValueError(f"{where}: {kind} must be given, a {table.model_type} model reads them")
    if begin is None and table.start is None:
        raise ValueError(f"{where}: decoder_tokens must be given, the configuration has no decoder_start_token_id")
    return np.full((len(given[kind]), 1), table.start) if begin is None else begin, None, given


def written(
    table: WholeModel,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    writer: Callable[[dict[str, Any]], Steps[Any]],
    known: dict[str, Any],
    begin: object,
    *,
    new: int,
    ends: Sequence[int] | int | None,
    progress: Callable[[Array], None] | None = None,
    **choice: Any,
) -> Array:
    """The new tokens int64 [B, n] of `Model.generate`.

    Args:
        config, generation: what config.json and generation_config.json say; the latter of ends first.
        writer: what an encoder reads -> the model that writes. known, begin: as in `prompted`.
        new, ends, choice: as in `checked`; ends None are those that the configuration says. progress: as in `Plan`.

    Raises:
        TypeError, ValueError: lists every argument at fault; the model has no logits, or reads later tokens.
    """
    where = "Model.generate"
    check_writes(where, table)
    prompt, mask, given = prompted(where, table, known, begin)
    ends = {**config, **generation}.get("eos_token_id") if ends is None else ends
    ids, kept, how, stops = checked(where, prompt, mask, new=new, ends=ends, **choice)
    model: Any = table  # of one of the two kinds that write
    places = model.tokens.positions
    longest = int(kept.sum(-1).max()) + new - 1
    if places is not None and longest > places.most:
        raise ValueError(
            f"{where}: the table of positions is for {places.most} tokens, got prompts and max_new_tokens that need "
            f"{longest}"
        )
    pad = config.get("pad_token_id")
    return Plan(writer(given), how, new, stops, pad if isinstance(pad, int) else 0, progress).write(ids, kept)


def check_writes(where: str, table: WholeModel) -> None:
    """Raise a ValueError where a model cannot write: it has no logits, or attends to later tokens."""
    if getattr(table, "head", None) is None:
        raise ValueError(f"{where}: the {table.model_type} model has no logits: its checkpoint has no head")
    later = np.arange(1, 4096)
    for mask in {block.attention.mask for block in table.stacks()[-1].blocks}:
        if np.asarray(mask.allowed(0, 0, 0, later)).any():
            raise ValueError(f"{where}: the {table.model_type} model attends to later tokens, so it cannot write")
